"""The committed table of the first study of recipes: what each gained and lost against the base model.

``slamkern bakeoff`` measures such studies now; this reads the files that were measured before it.
"""

from collections.abc import Sequence
from typing import Any


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
