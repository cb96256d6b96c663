"""What ``metrics.json`` and ``predictions.jsonl`` have to hold for a report to be drawn; more may stand there."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from slamkern.errors import SlamkernError
from slamkern.reading import LARGEST, parse_json, read_text

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Percent = Annotated[float, Field(ge=0, le=100)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, protected_namespaces=())


class Translation(_Part):
    loss: Annotated[float, Field(ge=0)]
    chrf: Percent | None = None


class Accuracy(_Part):
    task: str
    prompt: str
    rule: str
    n: dict[str, Annotated[int, Field(ge=1)]]
    accuracy: dict[str, Percent]
    strict: dict[str, Percent]
    intervals: dict[str, tuple[Percent, Percent]]
    average: Percent
    average_interval: tuple[Percent, Percent]
    strict_average: Percent

    @model_validator(mode="after")
    def _same_languages(self) -> "Accuracy":
        for name in ("n", "strict", "intervals"):
            if set(getattr(self, name)) != set(self.accuracy):
                raise ValueError(f"{name} and accuracy are of different languages")
        return self


class Measurement(_Part):
    translation: dict[str, Translation]
    english_loss: Annotated[float, Field(ge=0)]
    evaluation: Accuracy | None


class Data(_Part):
    path: str
    train_pairs: Count
    held_out_pairs: Count


class Made(_Part):
    date: str
    command: str
    versions: dict[str, str]


class Metrics(_Part):
    """The fields of metrics.json that a report shows."""

    slamkern: str
    model: str
    model_description: str
    base_weights: str = ""
    made: Made | None = None
    data: Data
    training_prompt: str
    steps: Count
    losses: Annotated[list[float], Field(min_length=1)]
    tokens: Count
    tokens_per_second: Annotated[float, Field(ge=0)]
    padding_share: Share
    peak_memory_bytes: Count
    trained_parameters: Count
    total_parameters: Annotated[int, Field(ge=1)]
    seconds: dict[str, Annotated[float, Field(ge=0)]]
    before: Measurement
    after: Measurement
    config: dict[str, Any]

    @model_validator(mode="after")
    def _same_measurements(self) -> "Metrics":
        if set(self.before.translation) != set(self.after.translation):
            raise ValueError("translation before and after is of different languages")
        before, after = self.before.evaluation, self.after.evaluation
        if before and after and before.n != after.n:
            raise ValueError("accuracy before and after is of different questions")
        return self


class Sample(_Part):
    """What a report shows of a line of predictions.jsonl."""

    id: str
    language: str
    question: str
    gold: str
    output: str
    correct: bool


def read_samples(path: Path) -> list[Sample]:
    """The lines of a predictions file; SlamkernError names the first that is none."""
    samples = []
    for number, line in enumerate(read_text(path, limit=LARGEST).split("\n"), 1):
        if line.strip():
            parse_json(line, f"{path}:{number}")
            try:
                samples.append(Sample.model_validate_json(line))
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(map(str, first["loc"]))
                raise SlamkernError(f"{path}:{number}: {place}: {first['msg']}") from error
    return samples


def read_metrics(path: Path) -> dict[str, Any]:
    """The values of a metrics.json; SlamkernError names the first that is wrong."""
    text = read_text(path)
    values = parse_json(text, str(path))
    try:
        Metrics.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise SlamkernError(f"{path} is no metrics.json of a run: {place + ': ' if place else ''}{message}") from error
    return dict(values)
