"""What a ``selection.json`` has to be: types, ranges, and lengths that agree with one another."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from slamkern.errors import SlamkernError

Index = Annotated[int, Field(ge=0)]


class SelectionFile(BaseModel):
    """The fields of the file; what else stands there is left alone, for a later version may write more."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    layers: Annotated[tuple[Index, ...], Field(min_length=1)]
    scores: tuple[tuple[float, ...], ...]
    score: str
    k: Index
    model: str
    signature: str = ""
    languages: tuple[str, ...] = ()
    rule: str = "list"
    num_layers: Index = 0
    neurons: dict[str, Annotated[tuple[Index, ...], Field(min_length=1)]] | None = None
    stability: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = None

    @model_validator(mode="after")
    def _agree(self) -> "SelectionFile":
        unique = {"layers": self.layers, "languages": self.languages}
        unique |= {f"neurons of layer {layer}": ids for layer, ids in (self.neurons or {}).items()}
        for name, values in unique.items():
            _without_repetition(name, values)
        if self.num_layers and max(self.layers) >= self.num_layers:
            raise ValueError(f"layer {max(self.layers)}, but its model has layers 0 to {self.num_layers - 1}")
        for name, rows in (("scores", self.scores), ("stability", self.stability or ())):
            if rows and self.num_layers and len(rows) != self.num_layers:
                raise ValueError(f"{name} of {len(rows)} layers, but the model has {self.num_layers}")
        if any(len(row) != len(self.languages) for row in self.scores):
            raise ValueError(f"scores that are not of its {len(self.languages)} languages in every layer")
        if self.neurons is not None and set(self.neurons) != set(map(str, self.layers)):
            raise ValueError(f"neurons of the layers {', '.join(self.neurons)}, but it selects others")
        return self


def _without_repetition(name: str, values: Sequence[Any]) -> None:
    if len(set(values)) < len(values):
        raise ValueError(f"{name} that repeat: {', '.join(map(str, values))[:60]}")


def check_selection(text: str, where: str) -> SelectionFile:
    """The fields of a selection in JSON; SlamkernError with the first that is wrong."""
    try:
        return SelectionFile.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"][:3])) + ": " if first["loc"] else "it has "
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] != "value_error":
            message += f", not {first['input']!r:.60}"
        raise SlamkernError(f"{where} is not a selection.json: {place}{message}") from error
