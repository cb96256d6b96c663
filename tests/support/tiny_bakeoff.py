"""A bake-off on a tiny model whose processes are calls: the same work in one process, in seconds."""

from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
from support.tiny_causal_lm import ending_model, save_folder

from slamkern.bakeoff import supervisor, work
from slamkern.bakeoff.config import Bakeoff, build_bakeoff
from slamkern.pipeline.config import build_config

SECTIONS: dict[str, dict[str, Any]] = {
    "data": {"path": "corpus:", "languages": ["de", "zh"], "limit": 16, "held_out": 4},
    "align": {"target": "reply", "examples": 4, "replay": 0.5, "questions": 10, "max_new_tokens": 40},
    "probe": {"questions": 4, "groups": 2},
    "train": {"max_steps": 1, "learning_rate": 0.01, "prompt": "authors", "tokens_per_batch": 1024},
    "evaluate": {"task": "corpus", "limit": 2, "languages": ["en", "de"], "prompt": "authors", "max_new_tokens": 2,
                 "chrf_limit": 0},
}  # fmt: skip


def tiny_bakeoff(folder: Path, cells: list[dict[str, Any]], **section: Any) -> Bakeoff:
    """A bake-off of these cells on a model that is saved under ``folder`` first."""
    save_folder(folder / "model", ending_model())
    model = {"name": str(folder / "model"), "dtype": "float32", "device": "cpu"}
    return build_bakeoff(build_config({"model": model, **SECTIONS}), {"cells": cells, **section})


class _Ended:
    """A process that is over."""

    def poll(self) -> int:
        return 0

    def wait(self) -> int:
        return 0


def in_one_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let tasks be done by calls; returns the list to which the name of each is added."""
    started: list[str] = []

    def start(task: supervisor.Task, out: Path, threads: int) -> None:
        started.append(task.name)
        task.process = _Ended()  # type: ignore[assignment]
        (out / "logs").mkdir(exist_ok=True)
        with (out / "logs" / f"{task.name}.log").open("a") as log, redirect_stderr(log):
            try:
                work.main([str(out), *task.arguments])
            except Exception as error:
                print(error, file=log)

    monkeypatch.setattr(supervisor, "_start", start)
    return started
