"""Is a folder what slamkern wrote, all of it? Hashes, schemas, steps and values of every file of ours in it.

A pipeline's folder is checked with the training and the evaluations inside; the folder of a single stage by itself.
Nothing is repaired, no model is loaded.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from slamkern.digests import combined_digest
from slamkern.errors import DamagedFileError, SlamkernError
from slamkern.files import load_tensors, read_checked
from slamkern.probe.stats import ActivationStats
from slamkern.run_folder import read_record
from slamkern.schemas import predictions
from slamkern.schemas.replies import read_replies_file
from slamkern.schemas.training import read_steps
from slamkern.selection.layers import LayerSelection
from slamkern.training import run_log
from slamkern.training.checkpoint import DELTA, SELECTION, STATE, check_finite, list_checkpoints

STATS, RECORD = "stats.safetensors", "run.json"
MEASURED = ("evaluation/before.json", "evaluation/after.json", "metrics.json")
Check = tuple[Path, Callable[[], Any]]


def verify(folder: str | Path) -> tuple[list[Path], list[str]]:
    """(files that are as they were written, problems in one line each).

    SlamkernError for a folder that holds no file of ours.
    """
    folder = Path(folder)
    good: list[Path] = []
    problems: list[str] = []
    for path, check in _checks(folder):
        try:
            check()
        except (SlamkernError, OSError) as error:
            text = " ".join(str(error).split())
            problems.append(text if str(path) in text else f"{path}: {text}")
        else:
            good.append(path)
    if not good and not problems:
        raise SlamkernError(f"{folder} holds no file that slamkern writes; give the folder of a run or of one stage")
    return good, problems


def _checks(folder: Path) -> Iterator[Check]:
    record = folder / RECORD
    if (path := folder / STATS).exists():
        yield path, lambda: ActivationStats.load(path)
    if (chosen := folder / SELECTION).exists():
        yield chosen, lambda: LayerSelection.load(chosen)
    if (folder / predictions.SETTINGS_FILE).exists() or (folder / predictions.PREDICTIONS_FILE).exists():
        yield folder / predictions.PREDICTIONS_FILE, lambda: _evaluation(folder)
    if (replies := folder / "replies.json").exists():
        yield replies, lambda: read_replies_file(replies)
    for name in MEASURED:
        if (measured := folder / name).exists():
            yield measured, lambda measured=measured: read_checked(measured)  # type: ignore[misc]
    if (folder / DELTA).exists() or list_checkpoints(folder) or (folder / "metrics.jsonl").exists():
        yield from _training(folder)
    elif record.exists():
        yield record, lambda: read_record(record, "pipeline")
    for inner in (folder / "train", *sorted((folder / "evaluation").glob("*/"))):
        if inner.is_dir():
            yield from _checks(inner)


def _evaluation(folder: Path) -> None:
    _, notes = read_record(folder / predictions.SETTINGS_FILE, predictions.KIND)
    rows = predictions.read_predictions(folder / predictions.PREDICTIONS_FILE)
    if "result" in notes:
        counted = sum(notes["result"]["n"].values())
        if counted > len(rows):
            raise SlamkernError(f"{len(rows)} predictions, but the result is of {counted}")


def _training(folder: Path) -> Iterator[Check]:
    found: dict[str, Any] = {}

    def record() -> None:
        settings, notes = read_record(folder / RECORD, run_log.KIND)
        found.update(settings, steps=notes["steps"])

    def log() -> None:
        rows = read_steps(folder / "metrics.jsonl")
        steps = found.get("steps")
        if (folder / DELTA).exists() and len(rows) != steps:
            raise SlamkernError(f"holds {len(rows)} steps of a finished run of {steps}")

    yield folder / RECORD, record
    yield folder / "metrics.jsonl", log
    for checkpoint in list_checkpoints(folder):
        state = checkpoint / f"{STATE}.safetensors"
        yield state, lambda state=state: _state(state)  # type: ignore[misc]
        yield checkpoint / DELTA, lambda path=checkpoint / DELTA: _delta(path, found)  # type: ignore[misc]
    if (folder / DELTA).exists():
        yield folder / DELTA, lambda: _delta(folder / DELTA, found)


def _state(path: Path) -> None:
    tensors, metadata = load_tensors(path, "training state")
    check_finite(tensors, "the checkpoint cannot be used")
    if metadata.get("step") != int(path.parent.name.rpartition("-")[2]):
        raise DamagedFileError(f"is of step {metadata.get('step')}")


def _delta(path: Path, run: dict[str, Any]) -> None:
    tensors, metadata = load_tensors(path, "delta")
    check_finite(tensors, "the delta cannot be used")
    names = {name for name in tensors if not name.endswith((".rows", ".columns"))}
    if "trained" in run and names != set(run["trained"]):
        raise SlamkernError(f"holds other tensors than the run trains (first: {min(names ^ set(run['trained']))})")
    if "frozen_weights" in run and combined_digest(metadata["frozen_weights"]) != run["frozen_weights"]:
        raise SlamkernError("was trained on other weights than the run")
