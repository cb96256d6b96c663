"""A long training of a tiny model, with its log and its checkpoints, and the memory that its process has meanwhile."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.tiny_causal_lm import tiny_model, tiny_tokenizer

from slamkern.data.pairs import Pair
from slamkern.selection.layers import LayerSelection
from slamkern.selection.trainable import apply_selection
from slamkern.training.config import TrainConfig
from slamkern.training.loop import train
from slamkern.training.run_log import RunLog

PAIRS = [Pair(f"{number} Äpfel", f"{number} apples", "de", id=str(number)) for number in range(40)]


def soak(out: Path, steps: int, every: int, each_step: Callable[[], Any] = lambda: None) -> list[tuple[int, int]]:
    """(step, resident bytes) at every ``every``-th of ``steps`` steps; ``each_step`` is called in each."""
    model = tiny_model()
    selection = LayerSelection((0,))
    apply_selection(model, selection)
    process = psutil.Process()
    samples: list[tuple[int, int]] = []

    def append(log: RunLog, row: dict[str, Any]) -> None:
        logged(log, row)
        each_step()
        if row["step"] % every == 0:
            samples.append((row["step"], process.memory_info().rss))

    logged = RunLog.append
    config = TrainConfig(
        max_steps=steps, num_train_epochs=steps, tokens_per_batch=64, prompt="{instruction}", max_length=64,
        save_steps=max(1, steps // 20), output_dir=out,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "append", append)
        train(model, tiny_tokenizer(), PAIRS, config, selection=selection, progress=False)
    return samples


def growth(samples: list[tuple[int, int]], warm: int) -> float:
    """How much larger the largest sample after the step ``warm`` is than the first one, as a share of it."""
    resident = [size for step, size in samples if step >= warm]
    return max(resident) / resident[0] - 1
