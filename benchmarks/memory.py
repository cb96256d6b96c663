"""A training step within a memory budget, as ``train --memory-budget`` keeps it: expected bytes beside measured ones.

On CUDA: the shape of Llama-2-7B, 4,096 tokens a step, 24 GB in bfloat16 and 16 GB with frozen weights in FP8. On a CPU:
a model of 100M parameters in float32, half and four fifths of what it takes without a budget. Measured is what torch
has allocated at most over three steps; the first is not timed.
"""

import gc
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch

from benchmarks.results import Row
from benchmarks.stage import Stage, show
from slamkern import apply_selection, patch_model
from slamkern.bench.workload import SHAPES, Builder, even_lengths, shape_builder
from slamkern.data.packing import Example
from slamkern.modules.packed_attention import packed_attention
from slamkern.selection.trainable import trained_parameters
from slamkern.training.accumulate import Accumulator
from slamkern.training.batches import supervised_tokens
from slamkern.training.config import TrainConfig
from slamkern.training.fp8 import frozen_in_fp8
from slamkern.training.loss import read_head
from slamkern.training.memory_budget import footprint, within_budget
from slamkern.training.optimizer import MasterAdamW
from slamkern.training.step_cost import peak_growth, storage_bytes

COLUMNS = (
    "frozen", "budget_gb", "expected_gb", "measured_gb", "off_percent", "recomputed", "optimizer", "tokens_per_second",
    "absent",
)  # fmt: skip
LENGTH, LAYERS = 256, 6


def unbudgeted(build: Builder, tokens: int, length: int, layers: int) -> int:
    """Bytes that a step takes with nothing recomputed."""
    model = patch_model(build())
    apply_selection(model, range(layers))
    return footprint(model, length=length).total(tokens)


def measure(build: Builder, steps: Sequence[list[Example]], layers: int, budget: int, *, fp8: bool) -> Row:
    """One row: what was planned, expected and measured."""
    lengths = [len(example.input_ids) for example in steps[0]]
    tokens, longest = sum(lengths), max(lengths)
    model = patch_model(build()).train()
    apply_selection(model, range(layers))
    row: Row = {"frozen": "fp8" if fp8 else str(model.dtype).removeprefix("torch."), "tokens": tokens}
    with ExitStack() as stack:
        stack.enter_context(packed_attention(model))
        if fp8:
            stack.enter_context(frozen_in_fp8(model, keep_transposed=False))
        head = read_head(model)
        options: dict[str, Any] = {"length": longest, "accumulation": 1, "head": head}
        plan = stack.enter_context(within_budget(model, tokens, budget, **options, offload=False))
        optimizer = MasterAdamW(trained_parameters(model).items(), offload=plan.offload)
        accumulator = Accumulator(model, head, optimizer, TrainConfig())
        stack.callback(accumulator.close)
        expected = footprint(model, **options).total(
            tokens, plan.recompute, offload=plan.offload, supervised=supervised_tokens(steps[0])
        )
        seconds, peaks = [], []
        for examples in steps:
            resident = _resident(model, optimizer)
            started = time.perf_counter()
            with peak_growth(model.device) as grown:
                float(accumulator.backward([examples], supervised_tokens(examples)))  # waits for the device
                optimizer.clip(1.0)
            optimizer.step(1e-5)
            if model.device.type == "cuda":
                torch.cuda.synchronize(model.device)
            seconds.append(time.perf_counter() - started)
            peaks.append(resident + grown[0])
    measured = max(peaks)
    return row | {
        "budget_gb": budget / 1e9,
        "expected_gb": expected / 1e9,
        "measured_gb": measured / 1e9,
        "off_percent": 100 * (expected / measured - 1),
        "recomputed": len(plan.recompute),
        "optimizer": "host" if plan.offload else "device",
        "tokens_per_second": tokens / statistics.median(seconds[1:]),
    }


def _resident(model: Any, optimizer: MasterAdamW) -> int:
    """Bytes on the model's device before a step; of a model on CUDA all that is allocated there."""
    if model.device.type == "cuda":
        return torch.cuda.memory_allocated(model.device)
    return storage_bytes([*model.parameters(), *model.buffers(), *optimizer.state_dict().values()])


def main(argv: Sequence[str] | None = None) -> int:
    stage = Stage("memory", __doc__.splitlines()[0], argv)
    cuda = stage.device.type == "cuda"
    shape, tokens, length, layers = "Llama-100M", 512, 128, LAYERS
    if stage.dry:
        shape, tokens, length, layers = "tiny", 64, 32, 2
    elif cuda:
        shape, tokens, length = "Llama-2-7B", 4096, LENGTH
    build = shape_builder(shape, stage.device, torch.bfloat16 if cuda else torch.float32)
    steps = even_lengths(length, tokens, SHAPES[shape][0], steps=3).steps
    if cuda and not stage.dry:
        cases = [(24_000_000_000, False), (16_000_000_000, True)]
    else:
        whole = unbudgeted(build, tokens, length, layers)
        cases = [(whole, False), (int(0.93 * whole), False)]
    for budget, fp8 in cases:
        gc.collect()
        about: Row = {"shape": shape, "budget_gb": budget / 1e9, "frozen": "fp8" if fp8 else "model"}
        try:
            stage.rows.append(about | measure(build, steps, layers, budget, fp8=fp8))
        except torch.OutOfMemoryError:
            stage.rows.append(about | {"absent": "out of memory"})
        stage.save()
    show(f"a step of {shape} within a budget, {tokens} tokens, on {stage.device}", stage.rows, COLUMNS)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
