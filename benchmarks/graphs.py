"""CUDA graphs: a training micro-batch and a probe batch captured and replayed, against the same without a graph.

Compared are the losses, gradients and statistics of the same batches, and times in turns. Small models and batches,
where the host sets the pace, gain; of 7B little is expected: its launches take less time than its products.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.results import Row
from benchmarks.stage import Stage, show
from benchmarks.timing import Case, interleaved
from slamkern import apply_selection, patch_model, record_stats
from slamkern.bench.workload import SHAPES, even_lengths, shape_builder
from slamkern.data.buckets import in_bucket
from slamkern.data.packing import Example, PackedBatch, collate
from slamkern.modules.cuda_graphs import Graphs
from slamkern.modules.packed_attention import packed_attention
from slamkern.probe.collect import probe_inputs
from slamkern.probe.recorder import Recorder
from slamkern.selection.trainable import trained_parameters
from slamkern.training.accumulate import Accumulator
from slamkern.training.batches import supervised_tokens
from slamkern.training.config import TrainConfig
from slamkern.training.loss import read_head
from slamkern.training.optimizer import MasterAdamW

COLUMNS = ("what", "shape", "tokens", "eager_ms", "graph_ms", "faster_by", "off", "absent")
CASES = (("SmolLM2-135M", 1024), ("SmolLM2-135M", 4096), ("Llama-2-7B", 4096))
LENGTH = 128


def rows_of(model: Any, shape: str, tokens: int, length: int, *, rounds: int) -> Iterator[Row]:
    """A row for training and one for probing; ``off``: the largest relative difference of a result."""
    steps = even_lengths(length, tokens, SHAPES[shape][0], steps=3).steps
    for what, compare in (("training", training), ("probe", probing)):
        with ExitStack() as stack:
            run, off = compare(stack, patch_model(model), steps)
            cases = {name: Case(partial(_ignoring_state, call, steps[0])) for name, call in run.items()}
            times = interleaved(cases, model.device, rounds=rounds)
        eager, graph = (times[name].median_ms for name in ("eager", "graph"))
        yield {
            "what": what, "shape": shape, "tokens": tokens, "eager_ms": eager, "graph_ms": graph,
            "faster_by": eager / graph, "off": off, "rounds": times["graph"].rounds,
        }  # fmt: skip


Run = Callable[[list[Example]], Any]


def _ignoring_state(run: Run, examples: list[Example], _: None) -> Any:
    return run(examples)


def training(stack: ExitStack, model: Any, steps: Sequence[list[Example]]) -> tuple[dict[str, Run], float]:
    """Micro-batches of both kinds, and how far loss and gradients of the third batch, a replay, are apart."""
    model.train()
    apply_selection(model, range(2))
    stack.enter_context(packed_attention(model))
    head, found = read_head(model), {}
    runs: dict[str, Run] = {}
    for name in ("eager", "graph"):
        optimizer = MasterAdamW(trained_parameters(model).items())
        config = replace(TrainConfig(), cuda_graphs=name == "graph")
        accumulator = Accumulator(model, head, optimizer, config)
        stack.callback(accumulator.close)
        runs[name] = partial(_micro_batch, accumulator)
        for examples in steps:
            optimizer.clear_gradients()
            loss = runs[name](examples)
        found[name] = [loss.clone(), *(gradient.clone() for gradient in optimizer.gradients())]
    return runs, _largest_difference(found["eager"], found["graph"])


def _micro_batch(accumulator: Accumulator, examples: list[Example]) -> Tensor:
    return accumulator.backward([examples], supervised_tokens(examples))


def probing(stack: ExitStack, model: Any, steps: Sequence[list[Example]]) -> tuple[dict[str, Run], float]:
    """Probe batches of both kinds, and how far their statistics of all steps are apart."""
    model.eval()
    stack.enter_context(torch.no_grad())
    stack.enter_context(packed_attention(model))
    found = {}
    runs: dict[str, Run] = {}
    for name in ("eager", "graph"):
        with record_stats(model, ["a", "b"]) as recorder:
            count = partial(_count, model, recorder)
            graphs = Graphs(count, model.device) if name == "graph" else None
            runs[name] = partial(_probe_batch, model, count, graphs)
            for examples in steps:
                runs[name](examples)
            stats = recorder.stats
        found[name] = [stats.mean, stats.m2, stats.active.double()]
    return runs, _largest_difference(found["eager"], found["graph"])


def _count(model: Any, recorder: Recorder, batch: PackedBatch) -> None:
    with recorder.tokens(batch.language_ids):
        model.base_model(**probe_inputs(batch, model.device))


def _probe_batch(
    model: Any, count: Callable[[PackedBatch], None], graphs: Graphs | None, examples: list[Example]
) -> None:
    told = [replace(e, language_ids=(n % 2,) * len(e.labels)) for n, e in enumerate(examples)]
    if graphs is None:
        count(collate(told).to(model.device))
    else:
        graphs(in_bucket(collate(told)))


def _largest_difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """In the norms of whole tensors."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))


def main(argv: Sequence[str] | None = None) -> int:
    stage = Stage("graphs", __doc__.splitlines()[0], argv)
    torch.manual_seed(0)
    if stage.device.type != "cuda":
        stage.rows.append({"what": "training and probe", "absent": "needs a CUDA device"})
    for shape, tokens in () if stage.device.type != "cuda" else (("tiny", 64),) if stage.dry else CASES:
        gc.collect()
        model = shape_builder(shape, stage.device, torch.bfloat16)()
        for row in rows_of(model, shape, tokens, min(tokens // 2, LENGTH), rounds=3 if stage.dry else 15):
            stage.rows.append(row)
            stage.save()
        del model
        if stage.seconds_left <= 0:
            break
    stage.save()
    show(f"CUDA graphs on {stage.device}", stage.rows, COLUMNS)
    return 1 if any(row.get("off", 0) > 2e-2 for row in stage.rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
