"""The records that say what a folder was made with: ``run.json`` of a pipeline or a training, ``evaluation.json``.

``settings`` are what makes two runs the same run; the other fields were noted beside them.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import Field, model_validator

from slamkern.schemas.check import Count, Digest, Name, NotNegative, Schema, Unique
from slamkern.schemas.metrics import Scores


class Record(Schema):
    """Any of them."""

    slamkern_version: str = ""
    kind: str
    settings: dict[str, Any]


class PipelineRecord(Record):
    """``run.json`` of a whole run; the settings are its configuration."""

    seconds: dict[str, NotNegative] | None = None
    base_weights: Digest | None = None


class TrainingSettings(Schema):
    config: dict[str, Any]
    model: Name
    frozen_weights: Digest
    trained: Annotated[list[Name], Field(min_length=1), Unique]
    training_data: Digest
    held_out_data: Digest | None


class TrainingRecord(Record):
    """``run.json`` of a training; ``checkpoints`` and ``selection`` say which files the finished run has."""

    settings: TrainingSettings  # type: ignore[assignment]
    base_model: str
    examples: Count
    steps: Count
    checkpoints: list[Count] = Field(default_factory=list)
    selection: bool = False


class EvaluationSettings(Schema):
    """What an answer depends on besides the question; all but the task may be unknown."""

    task: Name
    weights: Digest | None = None
    dtype: str | None = None
    prompt: str | None = None
    prompt_example: str | None = None
    max_new_tokens: Count | None = None
    stop: list[str] | None = None


class DataRevision(Schema):
    """Which questions they were; see ``data.tasks.Revision``."""

    rows: Count
    sha256: Digest


class EvaluationRecord(Record):
    """``evaluation.json``; result and hash of the predictions are there when it is finished.

    ``data``: the revision of the questions in each language.
    """

    settings: EvaluationSettings  # type: ignore[assignment]
    model: str | None = None
    data: dict[Name, DataRevision] | None = None
    predictions_sha256: Digest | None = None
    result: Scores | None = None

    @model_validator(mode="after")
    def _finished(self) -> "EvaluationRecord":
        if (self.result is None) != (self.predictions_sha256 is None):
            raise ValueError("a result without the hash of its predictions, or the other way round")
        return self


class ComparisonRecord(Record):
    """``compared.json``; ``weights``: of each side that was begun, those of the model or of the delta's file."""

    weights: dict[Name, Digest] | None = None


class BakeoffRecord(Record):
    """``bakeoff.json``; the settings are all but the cells, which may become more."""

    cells: Annotated[list[dict[str, Any]], Field(min_length=1)]
    base_weights: Digest | None = None


RECORDS: Mapping[str, type[Record]] = MappingProxyType(
    {
        "pipeline": PipelineRecord,
        "training": TrainingRecord,
        "evaluation": EvaluationRecord,
        "comparison": ComparisonRecord,
        "bakeoff": BakeoffRecord,
    }
)
