"""``metrics.json`` of a run, the measurements in ``evaluation/``, and the scores of an evaluation."""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from slamkern.files import read_checked
from slamkern.schemas.check import Count, Digest, Index, Name, NotNegative, Percent, Schema, Share, Unique, check


class Translation(Schema):
    """Held-out pairs of one language."""

    loss: NotNegative
    chrf: Percent | None = None


class Scores(Schema):
    """Answer accuracy on a task; every map is by language."""

    task: str
    prompt: str
    rule: str
    n: Annotated[dict[Name, Count], Field(min_length=1)]
    accuracy: dict[str, Percent]
    strict: dict[str, Percent]
    intervals: dict[str, tuple[Percent, Percent]]
    average: Percent
    average_interval: tuple[Percent, Percent]
    strict_average: Percent

    @model_validator(mode="after")
    def _same_languages(self) -> "Scores":
        for name in ("n", "strict", "intervals"):
            if set(getattr(self, name)) != set(self.accuracy):
                raise ValueError(f"{name} and accuracy are of different languages")
        if any(low > high for low, high in (*self.intervals.values(), self.average_interval)):
            raise ValueError("an interval ends before it begins")
        return self


class Measurement(Schema):
    """``before.json`` and ``after.json``; ``loss_texts`` are digests of what the losses were measured on."""

    translation: dict[str, Translation]
    english_loss: NotNegative
    reply_loss: dict[str, NotNegative] | None = None
    loss_texts: dict[str, Digest] | None = None
    evaluation: Scores | None


class Data(Schema):
    path: str
    train_pairs: Index
    held_out_pairs: Index


class Made(Schema):
    date: str
    command: str
    versions: dict[str, str]


class Metrics(Schema):
    """Every number of a run."""

    slamkern: str
    model: str
    model_description: str
    base_weights: Digest | None = None
    made: Made | None = None
    data: Data
    training_prompt: str
    examples: dict[str, Count] = Field(default_factory=dict)
    unfinished_replies: Index = 0
    selected_layers: Annotated[list[Index], Field(min_length=1), Unique]
    steps: Count
    losses: Annotated[list[float], Field(min_length=1)]
    tokens: Count
    tokens_per_second: NotNegative
    padding_share: Share
    peak_memory_bytes: Index
    trained_parameters: Count
    total_parameters: Count
    seconds: dict[str, NotNegative]
    before: Measurement
    after: Measurement
    config: dict[str, Any]

    @model_validator(mode="after")
    def _agree(self) -> "Metrics":
        if set(self.before.translation) != set(self.after.translation):
            raise ValueError("translation before and after is of different languages")
        before, after = self.before.evaluation, self.after.evaluation
        if before and after and before.n != after.n:
            raise ValueError("accuracy before and after is of different questions")
        if len(self.losses) != self.steps:
            raise ValueError(f"{len(self.losses)} losses of {self.steps} steps")
        if self.trained_parameters > self.total_parameters:
            raise ValueError(f"{self.trained_parameters} trained parameters of {self.total_parameters}")
        return self


def read_metrics(path: str | Path, *, required: bool = True) -> dict[str, Any]:
    """The values of a metrics.json; required False: also of one without a hash, which a person wrote."""
    values: dict[str, Any] = read_checked(path, required=required)
    check(Metrics, json.dumps(values), f"{path} is no metrics.json of a run")
    return values


def read_measurement(path: str | Path) -> dict[str, Any]:
    """The values of a before.json or after.json."""
    values: dict[str, Any] = read_checked(path)
    check(Measurement, json.dumps(values), f"{path} is no measurement of a run")
    return values
