"""A JSON text against a pydantic schema; the first thing that is wrong becomes one line, also for configurations."""

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from slamkern.errors import SlamkernError

T = TypeVar("T")


class Schema(BaseModel):
    """Strict: ``true`` is no number, nothing is infinite. What else stands there is left alone."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, protected_namespaces=())


def check(schema: type[T] | TypeAdapter[T], text: str | bytes, where: str) -> T:
    """The value of a JSON text that `reading.parse_json` has read before.

    SlamkernError begins with ``where`` and names the first field that is wrong.
    """
    adapter = schema if isinstance(schema, TypeAdapter) else TypeAdapter(schema)
    try:
        return adapter.validate_json(text, strict=True)
    except ValidationError as error:
        place, message = first_problem(error)
        raise SlamkernError(": ".join(filter(None, (where, ".".join(place[:4]), message)))) from error


def first_problem(error: ValidationError) -> tuple[tuple[str, ...], str]:
    """Where the first thing that is wrong stands (keys and indices from the outside in), and what it is."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] not in ("value_error", "missing"):  # our own messages name the value
        message += f", not {first['input']!r:.80}"
    return tuple(map(str, first["loc"])), message


def _without_repetition(values: Sequence[Any]) -> Sequence[Any]:
    if len(set(values)) < len(values):
        raise ValueError(f"a value twice in {', '.join(map(str, values)):.60}")
    return values


Unique = AfterValidator(_without_repetition)
Index = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Percent = Annotated[float, Field(ge=0, le=100)]
Name = Annotated[str, Field(min_length=1)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # SHA-256
