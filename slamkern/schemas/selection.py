"""``selection.json``: chosen layers (and neurons), scores and stability of every layer."""

from typing import Annotated

from pydantic import Field, model_validator

from slamkern.schemas.check import Index, Schema, Share, Unique


class SelectionFile(Schema):
    """The fields of the file."""

    layers: Annotated[tuple[Index, ...], Field(min_length=1), Unique]
    scores: tuple[tuple[float, ...], ...]
    score: str
    k: Index
    model: str
    signature: str = ""
    languages: Annotated[tuple[str, ...], Unique] = ()
    rule: str = "list"
    num_layers: Index = 0
    neurons: dict[str, Annotated[tuple[Index, ...], Field(min_length=1), Unique]] | None = None
    stability: tuple[Share, ...] | None = None

    @model_validator(mode="after")
    def _agree(self) -> "SelectionFile":
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
