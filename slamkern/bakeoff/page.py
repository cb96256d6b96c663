"""The page of a bake-off: what each cell gained and forgot, as a picture and as tables, self-contained."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slamkern.bakeoff.config import Bakeoff
from slamkern.bakeoff.rows import Row
from slamkern.bakeoff.table import COLUMNS, flat, shown
from slamkern.files import write_text
from slamkern.report.figures import trade_off
from slamkern.report.page import figure_of, render_page

_TITLES = {"screen": "Screen", "final": "Final"}
# What a reader compares first; the rest is in table.csv.
_LOSSES = ("cell", "seed", "train", "layers", "parameters %", "reply loss", "translation loss", "reply loss, English",
           "English loss", "chrF", "distance", "tokens", "processor seconds", "peak GB")  # fmt: skip
_ANSWERS = ("cell", "seed", "questions", "accuracy", "gain", "gain low", "gain high", "better in", "worse in",
            "English", "English gained", "English lost", "in English %", "characters")  # fmt: skip


def write_page(bakeoff: Bakeoff, rows: Sequence[Row], folder: Path) -> Path:
    """Write ``report.html`` of these rows (see ``table``)."""
    sections: list[dict[str, Any]] = []
    for name, title in _TITLES.items():
        chosen = [row for row in rows if row["round"] == name]
        if chosen:
            sections += _sections(chosen, title, folder)
    run = bakeoff.run
    page = render_page(
        title=f"What to train: a bake-off on {Path(run.model.name).name}",
        subtitle=f"{len(bakeoff.bakeoff.cells)} cells on the same examples; losses in nats a token, accuracies in %.",
        facts=[], sections=[*sections, _cells(bakeoff)],
    )  # fmt: skip
    write_text(folder / "report.html", page)
    return folder / "report.html"


def _sections(rows: Sequence[Row], title: str, folder: Path) -> list[dict[str, Any]]:
    values = [flat(row) for row in rows]
    asked = [row for row in values if row["questions"] is not None]
    gain, kept = ("accuracy", "English") if asked else ("reply loss", "English loss")
    points = [
        (f"{row['cell']}" + (f", {row['seed']}" if row["seed"] else ""), row[kept], row[gain])
        for row in values
        if row[kept] is not None and row[gain] is not None
    ]
    found: list[dict[str, Any]] = []
    if points:
        image = trade_off(points, f"{kept}, {'%' if asked else 'nats a token'}",
                          f"{gain}, other languages, {'%' if asked else 'nats a token'}",
                          larger_is_better=bool(asked))  # fmt: skip
        where = "up and right is better" if asked else "down and left is better"
        text = (
            f"Other languages against English; {where}. Each point is a cell and seed; on the line are those that "
            "none beats."
        )
        figures = [figure_of(folder, f"{title.lower()}-trade-off", image, "gain against forgetting")]
        found.append({"title": f"{title}: gain and forgetting", "text": text, "figures": figures})
    found.append({"title": f"{title}: held-out losses", "table": _table(values, _LOSSES)})
    if asked:
        text = (
            "Accuracy is the mean over the languages but English; its gain over the base model has the interval of a "
            "paired bootstrap, clustered by question. Better and worse in: languages where exact tests, corrected by "
            "Holm, say so."
        )
        found.append({"title": f"{title}: answers", "text": text, "table": _table(asked, _ANSWERS)})
    return found


def _table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    used = [name for name in COLUMNS if name in names and any(row[name] is not None for row in rows)]
    cells = [{"cells": [{"text": shown(row[name])} for name in used], "total": row["cell"] == "base"} for row in rows]
    return {"head": used, "rows": cells}


def _cells(bakeoff: Bakeoff) -> dict[str, Any]:
    why = [(cell.name, cell.why) for cell in bakeoff.bakeoff.cells if cell.why]
    text = bakeoff.model_dump_json(indent=2, exclude_defaults=True)
    return {"title": "Cells", "facts": why, "details": {"summary": "full configuration", "text": text}}
