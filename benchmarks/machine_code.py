"""What kernels and layers cost, counted without a GPU: instructions, barriers, registers, launches, allocations.

Kernels are compiled for sm_90 at the sizes of production and their machine code is read (tests/kernels); launches and
allocations are counted with stubs for kernels, waits by the ops that run. ``before`` is what the same counts were at
commit f1bf80d, where the kernels were read first; ``limit`` is what was aimed at.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.host_time import LIMIT_US
from benchmarks.launch_counts import WAITS, counted
from benchmarks.results import Row
from benchmarks.stage import Stage, show
from slamkern import apply_selection, patch_model, record_stats
from slamkern.bench.workload import even_lengths, shape_builder
from slamkern.data.packing import collate
from slamkern.kernels import launch, plan_rows
from slamkern.modules.fp8_linear import input_gradient
from slamkern.modules.packed_attention import packed_attention
from slamkern.ops.dispatch import backends
from slamkern.reading import parse_json
from slamkern.training.loss import packed_loss, read_head

COLUMNS = ("what", "unit", "before", "after", "limit")
ROOT = Path(__file__).resolve().parents[1]
_SCRIPT = ROOT / "tests" / "kernels" / "compile_kernels.py"
_TOKENS, _NEURONS, _MULTIPROCESSORS = 8192, 11008, 132  # a batch of Llama-2-7B on an H100 or H200


def row(what: str, unit: str, before: float | None, after: float, limit: float | None = None) -> Row:
    return {"what": what, "unit": unit, "before": before, "after": after, "limit": limit}


def compile_kernels(option: str) -> "subprocess.CompletedProcess[str]":
    """tests/kernels/compile_kernels.py in a process of its own, which finds the Triton that this one has."""
    folders = (ROOT / "tests", ROOT, os.environ.get("PYTHONPATH", ""))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(str(folder) for folder in folders if folder)}
    return subprocess.run([sys.executable, _SCRIPT, option], capture_output=True, text=True, env=environment)


def machine_code() -> Iterator[Row]:
    """Of the kernels as they are compiled for sm_90, of a thread for each element of its tile."""
    done = compile_kernels("90")
    done.check_returncode()
    measured: dict[str, dict[str, Any]] = parse_json(done.stdout, _SCRIPT.name)
    statistics, product = measured["swiglu_stats bf16 silu gate"], measured["swiglu bf16 silu"]
    backward = measured["swiglu_backward bf16 silu"]
    yield row("swiglu_stats, bfloat16", "instructions an element", 36.2, statistics["instructions"], 24)
    yield row("swiglu_stats, bfloat16", "barriers a tile", 12, statistics["barriers"])
    yield row("swiglu_stats, bfloat16", "registers a thread", None, statistics["registers"], 168)
    yield row("swiglu, bfloat16", "instructions an element", 21.8, product["instructions"], 15)
    yield row("swiglu, bfloat16", "registers a thread", None, product["registers"])
    yield row("swiglu_backward, bfloat16", "instructions an element", None, backward["instructions"])
    spills = sum(need["spills"] for need in measured.values())
    yield row("all kernels", "instructions that spill registers", None, spills, 0)
    narrow = sum(not need["no_narrow_loads"] for need in measured.values())
    yield row("all kernels", "kernels with loads of 2 bytes", 1, narrow, 0)


def layers() -> Iterator[Row]:
    """Of one fused FFN, its kernels stubs: statistics of 10 and 32 languages beside none."""
    model = patch_model(_tiny(), backend="triton").requires_grad_(False)
    ffn, x = model.model.layers[0].mlp, torch.randn(1, 96, model.config.hidden_size)
    for mode, grad in (("inference", False), ("training", True)):
        x.requires_grad_(grad)
        with torch.set_grad_enabled(grad):
            alone = counted(lambda: ffn(x))
            for languages in (10, 32):
                ids = (torch.arange(96) % languages)[None]
                recording = record_stats(model, [str(n) for n in range(languages)], groups=8)
                with recording as recorder, recorder.tokens(ids, ids % 8):
                    with_statistics = counted(lambda: ffn(x))
                what = f"a layer with statistics of {languages} languages x 8 groups, {mode}"
                yield row(what, "launches of kernels", 2, len(with_statistics.launches), 1)
                more = with_statistics.allocations - alone.allocations
                yield row(what, "allocations more than without", 9, more, 0)
                yield row(what, "bytes more than without", None, with_statistics.bytes - alone.bytes, 0)


def partials() -> Iterator[Row]:
    """Working memory of the statistics of a batch of 7B, which all layers share and each call had to itself before."""
    for languages in (1, 10 * 8):
        ids = torch.arange(_TOKENS, dtype=torch.int32) % languages
        with mock.patch.object(launch, "processors", return_value=_MULTIPROCESSORS):
            plan = plan_rows(ids, languages, _NEURONS)
        before = 380.0 if languages > 1 else None
        megabytes = sum(tensor.nbytes for tensor in plan) / 1e6
        yield row(f"working memory of statistics, {languages} slots, {_TOKENS} x {_NEURONS}", "MB", before, megabytes)


class _Waits(TorchDispatchMode):
    """Counts the ops that read a tensor on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += str(func).startswith(WAITS)
        return func(*args, **(kwargs or {}))


def micro_batch() -> Iterator[Row]:
    """Forward and backward of a micro-batch, and the gradient of an FFN's input."""
    model = patch_model(_tiny(), backend="reference")
    apply_selection(model, [0, 1])
    batch = collate(even_lengths(64, 256, model.config.vocab_size, steps=1, supervised=0.5).steps[0])
    head = read_head(model)
    with packed_attention(model), _Waits() as waits:
        packed_loss(model, batch, head=head).backward()
    yield row("a micro-batch, forward and backward", "waits for the device", 2, waits.count, 0)
    grad, weight = torch.randn(16, 32), torch.randn(32, 32)
    with torch.no_grad():
        made = counted(lambda: input_gradient((grad, weight), (grad, weight)))
    yield row("the gradient of an FFN's input, of gate and up", "allocations", 2, made.allocations, 1)


def _tiny() -> Any:
    return shape_builder("tiny", torch.device("cpu"), torch.float32)()


def host_time(stage: Stage) -> Iterator[Row]:
    """From the stage of that name; before: measured in the same way at commit 2e9ee61."""
    before = {"inference": 22.7, "training": 26.9}
    for measured in stage.rows_of("host_time"):
        if measured.get("languages"):
            what = f"a fused FFN with statistics over the stock one, {measured['mode']}"
            yield row(what, "us of the host", before[measured["mode"]], measured["extra_us"], LIMIT_US)


def main(argv: Sequence[str] | None = None) -> int:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton is a backend of a CPU then; no kernel of it runs here
    stage = Stage("machine_code", __doc__.splitlines()[0], argv)
    if reason := backends("cpu")["triton"]:
        stage.rows.append({"absent": reason})
    else:
        stage.rows += [*machine_code(), *layers(), *partials(), *micro_batch(), *host_time(stage)]
    stage.save()
    show("counted for sm_90", stage.rows, COLUMNS)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
