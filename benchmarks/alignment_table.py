"""The table of the alignment study: what each recipe gained and lost against the base model, question by question."""

from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import torch

from benchmarks import results
from benchmarks.stage import show as show_rows
from slamkern.evaluation.response_language import response_language
from slamkern.files import write_json
from slamkern.reading import read_json
from slamkern.schemas.predictions import Prediction, read_predictions

COPIED = 0.7


def copies(output: str, question: str) -> bool:
    """Whether the output is the question again, or nearly."""
    return SequenceMatcher(None, output[: 2 * len(question)], question, autojunk=False).ratio() >= COPIED


def answers_of(study: Path, cell: dict[str, Any]) -> dict[str, Prediction]:
    """What the cell answered so far, by question id."""
    files = sorted((study / "cells" / cell["name"]).glob("part-*/predictions.jsonl"))
    return {row.id: row for file in files for row in read_predictions(file)}


def row_of(study: Path, cell: dict[str, Any], base: dict[str, Prediction]) -> dict[str, Any]:
    """Accuracy in percent per language beside the base model's on the same questions, and what else is known."""
    folder = study / "cells" / cell["name"]
    answers = answers_of(study, cell)
    both = [key for key in answers if key in base]
    languages: dict[str, dict[str, Any]] = {}
    for code in cell["languages"]:
        keys = [key for key in both if answers[key].language == code]
        if not keys:
            continue
        said = Counter(response_language(answers[key].output) for key in keys)
        languages[code] = {
            "questions": len(keys),
            "accuracy": 100 * sum(answers[key].correct for key in keys) / len(keys),
            "base": 100 * sum(base[key].correct for key in keys) / len(keys),
            "gained": sum(answers[key].correct and not base[key].correct for key in keys),
            "lost": sum(base[key].correct and not answers[key].correct for key in keys),
            "in_english": 100 * said["en"] / len(keys),
            "copied": 100 * sum(copies(answers[key].output, answers[key].question) for key in keys) / len(keys),
        }
    others = [row for code, row in languages.items() if code != "en"]
    means = {
        f"mean_{name}_without_english": sum(row[name] for row in others) / len(others)
        for name in ("accuracy", "base", "in_english", "copied")
        if others
    }
    summary, losses = folder / "trained" / "summary.json", folder / "losses.json"
    return {
        "cell": cell,
        "languages": languages,
        **means,
        "training": read_json(summary) if summary.exists() else None,
        "losses": read_json(losses) if losses.exists() else None,
    }


def write(study: Path, cells: Sequence[dict[str, Any]], show: bool = False) -> Path:
    """Write the table of all cells with any answers; ``show`` also prints it."""
    settings = read_json(study / "study.json")
    untouched = [cell for cell in cells if not cell["layers"] and not cell["reply_start"]]
    base = {key: row for cell in untouched for key, row in answers_of(study, cell).items()}
    rows = [row_of(study, cell, base) for cell in cells]
    rows = [row for row in rows if row["languages"]]
    slug = settings.get("name", "study")
    path = results.FOLDER / f"alignment-{slug}.json"
    stage = {
        "environment": results.environment(torch.device("cpu")),
        "command": "python -m benchmarks.alignment --study FOLDER",
        "study": {
            key: Path(value).name if key in ("model", "pairs", "msvamp") else value for key, value in settings.items()
        },
        "rows": rows,
    }
    # A file of its own for each model, in the form of those of the devices.
    content = {"device": results.device_name(torch.device("cpu")), "stages": {"alignment": stage}}
    write_json(path, content)
    if show:
        show_rows(f"alignment of {slug}", [flat(row) for row in rows], columns(rows))
    return path


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """One line of the printed table: accuracy (gained, lost) per language."""
    cells = {
        code: f"{entry['accuracy']:.0f} (+{entry['gained']} -{entry['lost']})"
        for code, entry in row["languages"].items()
    }
    losses = row["losses"] or {"translation_loss": {}, "english_loss": None}
    translation = list(losses["translation_loss"].values())
    return {
        "cell": row["cell"]["name"],
        "n": min(entry["questions"] for entry in row["languages"].values()),
        **cells,
        "mean": row.get("mean_accuracy_without_english"),
        "base": row.get("mean_base_without_english"),
        "in English": row.get("mean_in_english_without_english"),
        "copied": row.get("mean_copied_without_english"),
        "translation loss": sum(translation) / len(translation) if translation else None,
        "English loss": losses["english_loss"],
    }


def columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    codes = list(dict.fromkeys(code for row in rows for code in row["languages"]))
    return ["cell", "n", *codes, "mean", "base", "in English", "copied", "translation loss", "English loss"]
