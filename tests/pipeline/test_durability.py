"""What a power cut may leave: no name without its content, no record before what it records.

The calls of fsync and rename of a whole run are noted in their order, and that order is checked.
"""

import os
from pathlib import Path

import pytest
from support.tiny_run import tiny_run

from slamkern.pipeline import run

Event = tuple[str, Path]

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="finds the file of a descriptor in /proc")


def noted(out: Path, monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """("sync" or "rename", path) of a tiny run into ``out``; a rename is noted with the name that it gives."""
    events: list[Event] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        events.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}"))))

    def renamed(source: Path, target: Path) -> None:
        replace(source, target)
        events.extend([("from", Path(source)), ("rename", Path(target))])

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    run.run(tiny_run(out.parent), out, progress=False)
    return events


def disorder(events: list[Event]) -> str | None:
    """The first rename whose file was not on disk before it, or whose folder was not directly after it."""
    for place, (kind, path) in enumerate(events):
        if kind == "from" and ("sync", path) not in events[:place]:
            return f"{path.name} was not synced before its rename"
        if kind == "rename" and events[place + 1 : place + 2] != [("sync", path.parent)]:
            return f"the folder of {path.name} was not synced after its rename"
    return None


def test_a_run_puts_everything_on_disk_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        events = noted(out, patch)
    ours = [event for event in events if event[1].is_relative_to(out)]
    assert disorder(ours) is None

    names = {path for kind, path in ours if kind == "rename"}
    inside = {path for path in out.rglob("*") if path.parent.name.startswith("checkpoint-")}
    written = {path for path in out.rglob("*") if path.is_file()} - inside
    assert written - names == {out / "train/metrics.jsonl"}, "files that got their name before their content"

    def last(kind: str, name: str) -> int:
        return max(place for place, event in enumerate(ours) if event == (kind, out / name))

    # The scores are there only if the predictions are, a measurement only if its record is, a delta only if its log is.
    for moment in ("before", "after"):
        predictions = last("rename", f"evaluation/{moment}/predictions.jsonl")
        record = last("rename", f"evaluation/{moment}/evaluation.json")
        assert predictions + 1 < record < last("rename", f"evaluation/{moment}.json")
    log = out / "train" / "metrics.jsonl"
    for step in (2, 3):
        saved = last("rename", f"train/checkpoint-{step}")
        before = last("rename", f"train/checkpoint-{step - 1}") if step > 2 else 0
        assert ("sync", log) in ours[before:saved], f"checkpoint-{step} is ahead of its log"
    assert last("sync", "train/metrics.jsonl") < last("rename", "train/delta.safetensors")

    # Without any one of the calls the order is found wrong.
    renames = [place for place, (kind, _) in enumerate(ours) if kind == "from"]
    # After the last file of a checkpoint its folder is synced twice, so that one of the calls could go.
    renames = [place for place in renames if ours[place + 2] not in ours[place + 3 : place + 4]]
    for place in (renames[0], renames[len(renames) // 2], renames[-1]):
        source = ours[place][1]
        assert disorder([event for event in ours if event != ("sync", source)]) is not None
        assert disorder(ours[: place + 2] + ours[place + 3 :]) is not None
