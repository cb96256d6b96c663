"""The goals of the kernels, each as a row: what was to be reached, what was measured, met or missed, and the command.

Those of the CPU are measured here, alternatives in turns; those of a GPU, and the probe's, are read from the rows that
the other stages wrote for this device. A goal without a measurement has the reason instead and counts as neither.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import headline, providers
from benchmarks.host_time import LIMIT_US
from benchmarks.results import Row
from benchmarks.stage import Stage, show
from benchmarks.timing import Case, interleaved
from slamkern import patch_model

COLUMNS = ("goal", "limit", "measured", "unit", "met", "command")
_IN_USE = ", which writes to memory in use already (out=)"
MODELS = {"cpu": "SmolLM2-135M", "cuda": "Llama-2-7B"}  # what the training goals are about
# Where, which variant, against which, how many times the real tokens/s at least.
SPEEDS = (
    ("cpu", "slamkern", "full", 3.5),
    ("cpu", "slamkern", "hf_freeze", 2.3),
    ("cpu", "slamkern", "hf_freeze_packed", 1.15),
    ("cuda", "slamkern", "authors", 4.0),
    ("cuda", "slamkern", "full_checkpointed", 5.0),
    ("cuda", "slamkern", "liger_freeze", 1.1),
    ("cuda", "slamkern_fp8", "authors", 6.0),
    ("cuda", "slamkern_fp8", "liger_freeze", 1.7),
)
_CALLS = 200  # of a one-token FFN in one timed run: single calls are too short for the host's clock


def row(
    goal: str, limit: float, measured: float | None, unit: str, stage: str, *, at_most: bool, note: str = ""
) -> Row:
    """``met`` follows from the limit; None where nothing was measured, and then ``note`` says why."""
    met = None if measured is None else measured <= limit if at_most else measured >= limit
    return {
        "goal": goal,
        "limit": f"{'<=' if at_most else '>='} {limit:g}",
        "measured": measured,
        "unit": unit,
        "met": met,
        "note": note if measured is None else None,
        "command": f"python -m benchmarks.{stage}",
    }


def native_op(stage: Stage) -> Iterator[Row]:
    """The compiled op with statistics against torch eager without; 32 languages against one. float32.

    Both write to memory in use already: in fresh pages, which torch's results above 32 MiB always get, clearing a page
    costs more than the arithmetic on it. torch moves five matrices, the op three: 0.6 is the least it can reach.
    """
    tokens, widths = (64, (48,)) if stage.dry else (4096, (1536, 11008))
    for neurons in widths:
        gate, up = torch.randn(tokens, neurons), torch.randn(tokens, neurons)
        room = torch.empty_like(gate), torch.empty_like(gate)
        cases = {"torch": Case(partial(_silu_mul_into, gate, up, *room))}
        for languages in (1, 10, 32):
            ids = (torch.arange(tokens) * languages // tokens).int()
            try:
                run = providers.swiglu_stats("slamkern native", ids, languages, neurons, gate.dtype)
            except providers.Absent as reason:
                yield row(f"native op, {tokens} x {neurons}", 0.35, None, "x", "goals", at_most=True, note=str(reason))
                return
            cases[f"{languages}"] = Case(partial(_statistics, run, gate, up))
        rounds = 3 if stage.dry else 15
        times = {
            name: timing.median_ms
            for name, timing in interleaved(cases, stage.device, rounds=rounds, seconds=60).items()
        }
        what = f"{tokens} x {neurons} float32, {torch.get_num_threads()} threads"
        goal = f"native op with statistics of 10 languages / torch silu(gate) * up, {what}{_IN_USE}"
        yield row(goal, 0.35, times["10"] / times["torch"], "x time", "goals", at_most=True)
        goal = f"native op, 32 languages / 1 language, {what}"
        yield row(goal, 1.05, times["32"] / times["1"], "x time", "goals", at_most=True)


def _silu_mul_into(gate: Tensor, up: Tensor, activated: Tensor, hidden: Tensor, _: None) -> Tensor:
    torch.ops.aten.silu.out(gate, out=activated)
    return torch.mul(activated, up, out=hidden)


def _statistics(run: Callable[[Tensor, Tensor], Any], gate: Tensor, up: Tensor, _: None) -> Any:
    return run(gate, up)


def host_overhead(stage: Stage) -> Iterator[Row]:
    """What a patched FFN call costs more than the stock one, with one token and matrices that cost nothing."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=8, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2)
    stock, patched = (LlamaForCausalLM(config).requires_grad_(False) for _ in range(2))
    blocks = {"stock": stock.model.layers[0].mlp, "patched": patch_model(patched).model.layers[0].mlp}
    x = torch.randn(1, 1, 32)

    def calls(block: nn.Module, x: Tensor) -> Callable[[Any], None]:
        def run(_: Any) -> None:
            for _ in range(2 if stage.dry else _CALLS):
                block(x)

        return run

    for name, grad in (("inference", False), ("training forward", True)):
        with torch.set_grad_enabled(grad):
            token = x.clone().requires_grad_(grad)
            cases = {name: Case(calls(block, token)) for name, block in blocks.items()}
            times = interleaved(cases, stage.device, rounds=3 if stage.dry else 25)
        overhead = 1e3 * (times["patched"].median_ms - times["stock"].median_ms) / (2 if stage.dry else _CALLS)
        goal = f"host time of a patched FFN call over stock, 1 token, {name}"
        yield row(goal, 30, overhead, "us", "goals", at_most=True)


def launch_overhead(stage: Stage) -> Iterator[Row]:
    """What a fused forward with statistics costs the host before its launch, from its own stage."""
    rows = {row["mode"]: row for row in stage.rows_of("host_time") if row.get("languages")}
    for mode in ("inference", "training"):
        goal = f"host time of a fused FFN with statistics over stock, launch not counted, {mode}"
        found, note = rows.get(mode, {}).get("extra_us"), "not measured on this device"
        yield row(goal, LIMIT_US, found, "us", "host_time", at_most=True, note=note)


def probe(stage: Stage) -> Iterator[Row]:
    """The probe of SmolLM2-135M, from its own stage."""
    found = next((r for r in stage.rows_of("probe") if r["variant"] == "slamkern"), None)
    note = "not measured on this device"
    what = f"probe with statistics ({found['model']}, {found['texts']})" if found else "probe with statistics"
    for column, limit, other in (
        ("against_unpatched", 1.05, "unpatched without statistics"),
        ("against_hooks", 1.3, "forward hooks"),
    ):
        yield row(
            f"{what} / {other}", limit, found[column] if found else None, "x speed", "probe", at_most=False, note=note
        )


def training(stage: Stage) -> Iterator[Row]:
    """A training step against the usual ways to take one, and what it needs, from the stages that measure it."""
    here = stage.device.type
    # The whole profile where it was measured, else the variants of the headline.
    measured = [*(stage.rows_of("headline") or ()), *(stage.rows_of("train") or ())]
    # Later ones replace earlier ones: those with a number come last.
    measured.sort(key=lambda row: "absent" not in row)
    rows = {row["variant"]: row for row in measured if row.get("model") == MODELS[here]}
    paces = {variant: row.get("against_slamkern") for variant, row in rows.items()}  # time of a step / slamkern's
    for device, ours, other, least in SPEEDS:
        if device in (here, "cuda"):
            goal = f"training step of {MODELS[device]}, real tokens/s of {ours} / {other}"
            found = _ratio(paces.get(other), paces.get(ours)) if device == here else None
            note = _absence(here, device, rows.get(ours), rows.get(other))
            command = "headline" if device == "cuda" and other in headline.VARIANTS else "train"
            yield row(goal, least, found, "x speed", command, at_most=False, note=note)
    goal = f"training step of {MODELS['cuda']}, minimum FLOPs a second / rate of a large product"
    ours_here = rows.get("slamkern") if here == "cuda" else None
    found, note = (ours_here or {}).get("useful_utilization"), _absence(here, "cuda", ours_here)
    yield row(goal, 0.7, found, "share", "headline", at_most=False, note=note)
    planned = {r["budget_gb"]: r for r in stage.rows_of("memory") if (here, r["shape"]) == ("cuda", MODELS["cuda"])}
    for limit, frozen in ((24.0, "bfloat16"), (16.0, "FP8")):
        goal = f"training step of {MODELS['cuda']}, 4096 tokens, frozen weights in {frozen}"
        point, note = planned.get(limit, {}), _absence(here, "cuda", planned.get(limit))
        yield row(f"{goal}, peak memory", limit, point.get("measured_gb"), "GB", "memory", at_most=True, note=note)
        off = point.get("off_percent")
        off = None if off is None else abs(off)
        yield row(f"{goal}, expected / measured", 10, off, "% off", "memory", at_most=True, note=note)


def _absence(here: str, device: str, *needed: Row | None) -> str:
    """Why there is no number: another device is needed, or what the first absent one of the rows needed says."""
    if here != device:
        return "needs a CUDA device"
    return next((found["absent"] for found in needed if found and "absent" in found), "not measured on this device")


def gpu_kernels(stage: Stage) -> Iterator[Row]:
    """Goals of the CUDA kernels, from the rows of the kernels stage."""
    rows = stage.rows_of("kernels")
    shapes = list(dict.fromkeys(r["shape"] for r in rows))
    here = stage.device.type == "cuda"
    note = _absence(stage.device.type, "cuda")
    triton = "slamkern triton"
    for shape in shapes if here else ["every shape"]:

        def value(
            op: str, provider: str, column: str = "median_ms", *, shape: str = shape, **fields: Any
        ) -> float | None:
            wanted = {"op": op, "provider": provider, "shape": shape, **fields}
            return next((r.get(column) for r in rows if wanted.items() <= r.items()), None)

        ten: Row = {"languages": 10, "layout": "grouped"}
        measured = SimpleNamespace(
            share=value("statistics", triton, "share", **ten),
            cost=_ratio(value("statistics", triton, **ten), value("forward", triton)),
            gated=_ratio(
                value("gated linear", "liger", languages=0),
                value("gated linear", triton, languages=10),
            ),
            # Liger has two; the goal is against the faster one.
            frozen=_ratio(
                min(
                    filter(None, (value("frozen FFN backward", name) for name in ("liger", "liger mlp"))), default=None
                ),
                value("frozen FFN backward", triton),
            ),
        )
        for goal, limit, found, unit, at_most in (
            ("swiglu_stats, 10 languages / measured copy bandwidth", 0.9, measured.share, "share", False),
            ("swiglu_stats, 10 languages / swiglu", 1.02, measured.cost, "x time", True),
            ("GEMMs + swiglu_stats / GEMMs + Liger without statistics", 1.0, measured.gated, "x speed", False),
            ("backward of a frozen FFN / Liger's", 1.0, measured.frozen, "x speed", False),
        ):
            yield row(f"{goal}, {shape}", limit, found, unit, "kernels", at_most=at_most, note=note)


def _ratio(numerator: float | None, denominator: float | None) -> float | None:
    return None if numerator is None or denominator is None else numerator / denominator


def main(argv: Sequence[str] | None = None) -> int:
    stage = Stage("goals", __doc__.splitlines()[0], argv)
    torch.manual_seed(0)
    if stage.device.type == "cpu":
        stage.rows += [*native_op(stage), *host_overhead(stage)]
    stage.rows += [*launch_overhead(stage), *probe(stage), *training(stage), *gpu_kernels(stage)]
    if stage.dry:
        stage.rows = [{**row, "met": None, "note": row["note"] or "dry run: means nothing"} for row in stage.rows]
    stage.save()
    show(f"goals on {stage.device}", [{**r, "met": _verdict(r)} for r in stage.rows], COLUMNS)
    return 0


def _verdict(found: Row) -> str:
    return {True: "met", False: "missed", None: found["note"]}[found["met"]]


if __name__ == "__main__":
    raise SystemExit(main())
