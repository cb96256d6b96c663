"""What a bake-off has measured so far: a row a cell and seed, judged on the same questions as the base model."""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from slamkern.bakeoff.config import BASE, Bakeoff, Cell
from slamkern.bakeoff.layers import describe
from slamkern.errors import SlamkernError
from slamkern.evaluation.compare import compare
from slamkern.files import read_checked

Row = dict[str, Any]
ROUNDS = ("screen", "final")
ALLOWED = ("prompt_example",)  # a control begins the reply on purpose
RESAMPLES = 2000  # the rows are made again and again


def read_rows(bakeoff: Bakeoff, folder: Path) -> list[Row]:
    """What there is so far, the screen first, in the order of the cells."""
    rows = []
    for name in ROUNDS:
        base_folder = folder / "cells" / BASE / "seed-0"
        base = _read(base_folder / f"{name}.json")
        for cell in bakeoff.cells.values():
            rows += [
                _row(cell, read_checked(path), path.with_suffix(""), base_folder / name, base, name)
                for path in sorted((folder / "cells" / cell.name).glob(f"seed-*/{name}.json"))
            ]
    return rows


def _read(path: Path) -> Row | None:
    return read_checked(path) if path.exists() else None


def _row(cell: Cell, values: Row, answers: Path, base_answers: Path, base: Row | None, name: str) -> Row:
    row: Row = {
        "cell": cell.name, "seed": values["seed"], "round": name, "definition": describe(cell),
        "training": values["training"],
        "losses": {"translation": {code: entry["loss"] for code, entry in values["translation"].items()},
                   "reply": values.get("reply_loss", {}), "english": values["english_loss"]},
        "chrf": {code: entry["chrf"] for code, entry in values["translation"].items() if "chrf" in entry},
        "answers": None,
    }  # fmt: skip
    if values["evaluation"] is not None and base is not None:
        row["answers"] = _judged(base_answers, answers, values["evaluation"])
    return row


def _judged(before: Path, after: Path, scores: Mapping[str, Any]) -> Row:
    """Paired statistics against the base model (see ``evaluation.compare``), over all languages but English too."""
    codes = list(scores["accuracy"])
    others = [code for code in codes if code != "en"] or codes
    whole = compare(before, after, languages=codes, allow=ALLOWED, resamples=RESAMPLES).to_dict()
    average = compare(before, after, languages=others, allow=ALLOWED, resamples=RESAMPLES, drift=False).to_dict()[
        "average"
    ]
    drift = {code: sides[1] for code, sides in whole["drift"].items()}
    return {"languages": whole["languages"], "average_without_english": average, "responses": drift}


def finalists(bakeoff: Bakeoff, folder: Path) -> list[str]:
    """The best cells of the screen, of those that train something; means over seeds.

    Best by accuracy without English where questions were asked, else by the held-out loss of replies to questions in
    other languages.
    """
    merit: dict[str, list[float]] = {}
    for row in read_rows(bakeoff, folder):
        if row["round"] == "screen" and row["training"]:
            merit.setdefault(row["cell"], []).append(_merit(row))
    ranked = sorted(merit, key=lambda name: -fmean(merit[name]))
    return ranked[: bakeoff.bakeoff.finalists]


def _merit(row: Row) -> float:
    if row["answers"] is not None:
        return float(row["answers"]["average_without_english"]["after"])
    others = [loss for code, loss in row["losses"]["reply"].items() if code != "en"]
    if not others:
        raise SlamkernError("the screen asked no questions and measured no replies: nothing says which cells are best")
    return -fmean(others)
