"""Is the folder of a bake-off what its processes wrote, every cell of it? And what is there still to do?

Not checked is what is made again from the rest: table, page, figures, and the logs of processes.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from slamkern.bakeoff.layers import GRADIENT_NORM, STATS, WEIGHT_SNR
from slamkern.bakeoff.rows import ROUNDS
from slamkern.bakeoff.supervisor import tasks_of
from slamkern.bakeoff.work import FACTS, KIND, RECORD, REPLIES, read_bakeoff
from slamkern.errors import DamagedFileError
from slamkern.files import read_checked
from slamkern.pipeline.agreement import check_measurement
from slamkern.pipeline.verify import Check, checks, run_checks
from slamkern.probe.stats import ActivationStats
from slamkern.run_folder import read_record
from slamkern.schemas.check import NotNegative, Schema, check
from slamkern.schemas.predictions import KIND as EVALUATION
from slamkern.schemas.predictions import SETTINGS_FILE
from slamkern.schemas.replies import read_replies_file


class _LayerScores(Schema):
    scores: list[NotNegative]


def is_bakeoff(folder: Path) -> bool:
    """Whether a folder is that of a bake-off, its record gone or not."""
    return (folder / RECORD).exists() or (folder / "cells").is_dir()


def verify(folder: Path) -> tuple[list[Path], list[str], list[str]]:
    """(files that are as they were written, problems in one line each, tasks that are not done)."""
    good, problems = run_checks(_checks(folder))
    if problems:
        return good, problems, []
    tasks = tasks_of(read_bakeoff(folder), folder)
    return good, problems, [task.name for task in tasks if not task.file.exists()]


def _checks(folder: Path) -> Iterator[Check]:
    notes: dict[str, Any] = {}

    def record() -> None:
        read_bakeoff(folder)
        notes.update(read_record(folder / RECORD, KIND)[1])

    yield folder / RECORD, record
    readers: dict[str, Callable[[Path], object]] = {
        REPLIES: read_replies_file, STATS: ActivationStats.load, WEIGHT_SNR: _scores, GRADIENT_NORM: _scores,
    }  # fmt: skip
    for name, read in readers.items():
        if (path := folder / name).exists():
            yield path, lambda read=read, path=path: read(path)  # type: ignore[misc]
    for seed in sorted((folder / "cells").glob("*/seed-*")):
        if (facts := seed / "train" / FACTS).exists():
            yield facts, lambda facts=facts: read_checked(facts)  # type: ignore[misc]
        for path in (seed / f"{name}.json" for name in ROUNDS):
            if path.exists():
                yield path, lambda path=path: _cell(path, notes.get("base_weights"))  # type: ignore[misc]
        for inner in (seed / name for name in ("train", *ROUNDS)):
            if inner.is_dir():
                yield from checks(inner)


def _scores(path: Path) -> None:
    check(_LayerScores, json.dumps(read_checked(path)), f"{path} holds no scores of layers")


def _cell(path: Path, base_weights: str | None) -> None:
    """What a cell measured, against where it lies and what it was put together from."""
    values = check_measurement(path)
    cell, seed = path.parent.parent.name, path.parent.name
    if (values.get("cell"), f"seed-{values.get('seed')}") != (cell, seed):
        raise DamagedFileError(f"{path} is of cell {values.get('cell')!r} with seed {values.get('seed')}")
    facts = path.parent / "train" / FACTS
    if facts.exists() and values.get("training") != read_checked(facts):
        raise DamagedFileError(f"training in {path} is not what {facts} says")
    if base_weights and not values.get("training") and values["evaluation"] is not None:
        answers = path.with_suffix("") / SETTINGS_FILE
        if base_weights != read_record(answers, EVALUATION)[0].get("weights"):
            raise DamagedFileError(f"{answers} is of other weights than the base model that {RECORD} names")
