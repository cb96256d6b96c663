"""Progress: a log gets a few lines, a terminal gets a bar, and neither changes what is iterated over."""

import io
import sys

import pytest
from tqdm import tqdm

from slamkern import progress
from slamkern.progress import progress_bar


class Stream(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def test_a_log_gets_a_line_every_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Stream(terminal=False)
    monkeypatch.setattr(sys, "stderr", log)
    assert list(progress_bar(range(5000), desc="probe", unit="batch")) == list(range(5000))
    with progress_bar(total=4, initial=3, desc="train", unit="step") as bar:
        bar.set_postfix(loss="0.5", refresh=False)
        bar.update()
    lines = log.getvalue().splitlines()
    assert [line.partition(",")[0] for line in lines[:2]] == ["probe: batch 500/5", "probe: batch 1"]
    assert len(lines) == 11
    assert lines[-1].startswith("train: step 4/4 (100 %), ") and lines[-1].endswith(", loss=0.5")


def test_slow_work_tells_that_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Stream(terminal=False)
    monkeypatch.setattr(sys, "stderr", log)
    clock = iter(range(0, 10_000, 16))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    for _ in progress_bar(iter("abcd"), desc="read", unit="line"):  # of unknown length
        pass
    assert log.getvalue().splitlines() == ["read: line 2, 32 s", "read: line 4, 64 s"]


def test_a_terminal_gets_a_bar_and_silence_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Stream(terminal=True))
    assert isinstance(progress_bar([1], desc="x", unit="x"), tqdm)
    monkeypatch.setattr(sys, "stderr", log := Stream(terminal=False))
    assert list(progress_bar([1, 2], desc="x", unit="x", show=False)) == [1, 2]
    assert log.getvalue() == ""
