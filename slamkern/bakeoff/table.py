"""The table of a bake-off: rows of columns, and the files that show them."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from slamkern.bakeoff.rows import Row
from slamkern.files import write_json, write_text
from slamkern.version import __version__

# Losses are in nats a token, accuracies in percent.
COLUMNS = (
    "cell", "seed", "round", "train", "layers", "parameters %", "learning rate", "steps", "tokens",
    "reply loss", "reply loss, English", "translation loss", "English loss", "chrF", "questions", "accuracy", "base",
    "gain", "gain low", "gain high", "better in", "worse in", "English", "English base", "English gained",
    "English lost", "in English %", "characters", "distance", "seconds", "processor seconds", "peak GB",
)  # fmt: skip


def flat(row: Row) -> Row:
    """The values of ``COLUMNS``; None where something was not measured."""
    training, losses, answers = row["training"], row["losses"], row["answers"]
    replies = {code: loss for code, loss in losses["reply"].items() if code != "en"}
    layers = training.get("layers")
    values: Row = {
        "cell": row["cell"], "seed": row["seed"], "round": row["round"],
        "train": row["definition"].get("train", "ffn"),
        "layers": None if layers is None else ranges(layers),
        "reply loss": _mean(replies.values()), "reply loss, English": losses["reply"].get("en"),
        "translation loss": _mean(losses["translation"].values()), "English loss": losses["english"],
        "chrF": _mean(row["chrf"].values()),
    }  # fmt: skip
    if training:
        values |= {
            "parameters %": 100 * training["trained_parameters"] / training["total_parameters"],
            "distance": training["distance"]["relative"], "steps": training["steps"], "tokens": training["tokens"],
            "learning rate": training["learning_rate"], "seconds": training["seconds"],
            "processor seconds": training["processor_seconds"], "peak GB": training["peak_memory_bytes"] / 1e9,
        }  # fmt: skip
    if answers is not None:
        average, languages = answers["average_without_english"], answers["languages"]
        values["questions"] = sum(entry["n"] for entry in languages.values())
        if others := [entry for code, entry in answers["responses"].items() if code != "en"]:
            values |= {
                "accuracy": average["after"], "base": average["before"], "gain": average["difference"],
                "gain low": average["interval"][0], "gain high": average["interval"][1],
                "better in": sum(entry["verdict"] == "better" for entry in languages.values()),
                "worse in": sum(entry["verdict"] == "worse" for entry in languages.values()),
                "in English %": _mean(entry["english"] for entry in others),
                "characters": _mean(entry["characters"] for entry in others),
            }  # fmt: skip
        if english := languages.get("en"):
            values |= {"English": english["after"], "English base": english["before"],
                       "English gained": english["gained"], "English lost": english["lost"]}  # fmt: skip
    return {name: values.get(name) for name in COLUMNS}


def ranges(numbers: Sequence[int]) -> str:
    """``0-3 17`` for 0, 1, 2, 3 and 17, which are in order."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return " ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _mean(values: Any) -> float | None:
    found = list(values)
    return fmean(found) if found else None


def shown(value: Any) -> str:
    """A value as a table has it."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def write_table(rows: Iterable[Row], folder: Path) -> None:
    """``table.json``, everything of the rows, and ``table.csv``, their ``COLUMNS``."""
    found = list(rows)
    write_json(folder / "table.json", {"slamkern": __version__, "rows": found})
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(flat(row) for row in found)
    write_text(folder / "table.csv", text.getvalue())
