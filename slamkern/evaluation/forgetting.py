"""Held-out losses before and after: English text, translation, replies. A rise is what a model forgot.

Forgetting as PEFT's method comparison has it: cross entropy on fixed text after training minus before, in nats a token.
Both sides read the same tokens, so there is little chance in it and no interval: a loss that rose by more than its
margin is worse, one that fell by more is better, anything else is not worse. Which of them may rise is the user's to
say: who teaches replies may give translation away.

The losses are those that stand beside an evaluation: ``before.json`` for the folder ``before``, as runs write them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from slamkern.schemas.metrics import read_measurement

ENGLISH, HELD_OUT = "english", "held_out"  # the texts, by name
TEXTS = {"english": ENGLISH, "translation": HELD_OUT, "reply": HELD_OUT}  # of each kind of loss


@dataclass(frozen=True)
class Losses:
    """Name of a loss -> its kind (of ``TEXTS``) and nats a token; digests of the texts where known."""

    values: dict[str, tuple[str, float]]
    texts: dict[str, str]


@dataclass(frozen=True)
class LossChange:
    """A loss on both sides, in nats a token."""

    before: float
    after: float
    difference: float
    margin: float
    verdict: str


def read_losses(evaluation: str | Path) -> Losses | None:
    """The losses beside an evaluation's folder (or its ``predictions.jsonl``); None where there are none."""
    path = Path(evaluation)
    folder = path if path.is_dir() else path.parent
    file = folder.parent / f"{folder.name}.json"
    if not file.is_file():
        return None
    measured = read_measurement(file)
    values = {"English text": ("english", measured["english_loss"])}
    values |= {
        f"translation from {code}": ("translation", row["loss"]) for code, row in measured["translation"].items()
    }
    values |= {f"reply to {code}": ("reply", loss) for code, loss in (measured.get("reply_loss") or {}).items()}
    return Losses(values, measured.get("loss_texts") or {})


def compare_losses(
    before: Losses | None, after: Losses | None, margins: Mapping[str, float]
) -> tuple[dict[str, LossChange], list[str], list[str]]:
    """(change of each loss that both sides have, texts not known to be equal, losses left out).

    Left out are those whose texts differ, and those that one side alone has. margins: kind of loss -> nats a token.
    """
    changes: dict[str, LossChange] = {}
    unknown: dict[str, None] = {}
    left_out: list[str] = []
    before, after = (side or Losses({}, {}) for side in (before, after))
    for name in {**before.values, **after.values}:
        if name not in before.values or name not in after.values:
            left_out.append(name)
            continue
        (kind, old), (_, new) = before.values[name], after.values[name]
        text, margin = TEXTS[kind], margins[kind]
        digests = before.texts.get(text), after.texts.get(text)
        if None in digests:
            unknown[f"{text.replace('_', '-')} texts"] = None
        elif digests[0] != digests[1]:
            left_out.append(name)
            continue
        changes[name] = LossChange(old, new, new - old, margin, decide_loss(new - old, margin))
    return changes, list(unknown), left_out


def decide_loss(difference: float, margin: float) -> str:
    """The verdict of a loss that rose by ``difference`` nats."""
    return "worse" if difference > margin else "better" if difference < -margin else "not worse"
