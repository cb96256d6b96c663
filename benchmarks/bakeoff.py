"""A bake-off's table among the results: ``python -m benchmarks.bakeoff FOLDER --name qwen2.5-coder-0.5b``.

FOLDER is what ``slamkern bakeoff --out`` wrote, finished or not; ``configs/`` holds the configurations. One whose
screen asked questions is in a table of its own.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import results
from slamkern.bakeoff.rows import read_rows
from slamkern.bakeoff.work import read_bakeoff
from slamkern.files import write_json

# Of the table in README; the result file holds every row whole.
SHOWN = (
    "round", "cell", "seed", "layers", "parameters %", "learning rate", "tokens", "reply loss", "reply loss, English",
    "translation loss", "English loss", "accuracy", "gain low", "gain high", "better in", "English",
    "English gained", "English lost", "in English %", "distance", "processor seconds", "peak GB",
)  # fmt: skip


def columns(lines: Sequence[results.Row]) -> list[str]:
    """Of ``SHOWN``, those that some line has a value for."""
    return [name for name in SHOWN if any(line[name] is not None for line in lines)]


def main(argv: Sequence[str] | None = None) -> int:
    options = results.folder_options("bakeoff", __doc__, argv)
    bakeoff = read_bakeoff(options.folder)
    run = bakeoff.run
    rows = read_rows(bakeoff, options.folder)
    asked = "bakeoff-answers" if run.evaluate.task is not None else "bakeoff"
    stage = {
        "environment": results.environment(torch.device("cpu")),
        "command": "slamkern bakeoff --config FILE --out FOLDER",
        "study": {
            "model": Path(run.model.name).name, "dtype": run.model.dtype, "align": run.align.model_dump(mode="json"),
            "held_out": run.data.held_out, "cells": {cell.name: cell.why for cell in bakeoff.bakeoff.cells},
        },
        "rows": rows,
    }  # fmt: skip
    path = options.results / f"bakeoff-{options.name}.json"
    write_json(path, {"device": results.device_name(torch.device("cpu")), "stages": {asked: stage}})
    print(f"{path}: {len(rows)} rows")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
