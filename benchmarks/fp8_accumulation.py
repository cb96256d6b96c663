"""What fast accumulation of FP8 products costs: the error of single products, and the loss of a run, without a GPU.

``torch._scaled_mm(use_fast_accum=True)`` adds up in Hopper's tensor cores, which keep 13 bits after the point: of every
32 products and the sum so far, each is cut off at 2^-13 of the largest one's power of two, and so is the new sum
(DeepSeek-V3, arXiv 2412.19437, 3.3.2; the cut is towards zero). Without it every 128 products are added in float32.

- ``products``: that arithmetic term by term, of random rows with the reductions of a 135M and a 7B model, against the
  exact product of the same FP8 numbers; beside them what quantizing itself costs. ``one sign``: where all terms have
  the same sign what is cut off adds up, the worst there is.
- ``training``: the run of ``benchmarks.fp8`` with float32 sums, with fast ones in the forward, and with fast ones in
  forward and backward, all three on the same batches in turns. Terms are added 32 at a time in float32 and their sum is
  cut off: by ``products`` that errs more than the hardware where signs are mixed, and less where they are not.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor

from benchmarks.fp8 import held_out_loss, model_of
from benchmarks.results import Row
from benchmarks.stage import Stage, show
from slamkern.bench.runner import Runner
from slamkern.bench.variants import VARIANTS, Settings
from slamkern.bench.workload import Builder, real_pairs
from slamkern.data.packing import Example
from slamkern.modules import fp8_linear
from slamkern.modules.fp8_linear import FP8Weight, Rows

BITS = 13  # after the point, in the sums of Hopper's tensor cores
STEP, PROMOTED = 32, 128  # products that are added at once, and after which they are added in float32 without fast sums
REDUCTIONS = (576, 1536, 4096, 11008)  # width and neurons of SmolLM2-135M and of Llama-2-7B
RUNS = {"float32 sums": (), "fast forward": (True,), "fast forward and backward": (True, False)}
COLUMNS = (
    "part",
    "sums",
    "signs",
    "reduction",
    "relative_error",
    "steps",
    "loss_last",
    "held_out_last",
    "largest",
    "mean",
)


def cut(values: Tensor, quantum: Tensor) -> Tensor:
    """``values`` cut towards zero to whole multiples of ``quantum``."""
    return torch.trunc(values / quantum) * quantum


def cut_mantissa(values: Tensor, bits: int) -> Tensor:
    """float32 ``values`` with so many bits after the point, in place."""
    values.view(torch.int32).bitwise_and_(-1 << (23 - bits))
    return values


def hardware(left: Tensor, right: Tensor, promoted: int | None = None) -> Tensor:
    """``left`` (m, k) @ ``right`` (k, n), float32 copies of FP8 numbers, as the tensor cores add; see the module."""
    total = sums = torch.zeros(len(left), right.shape[1])
    for first in range(0, left.shape[1], STEP):
        terms = left[:, None, first : first + STEP] * right.T[None, :, first : first + STEP]
        terms = torch.cat([terms, sums[:, :, None]], 2)
        largest = terms.abs().amax(2, keepdim=True)
        quantum = torch.exp2(torch.frexp(largest).exponent.float() - 1 - BITS)
        sums = cut_mantissa(cut(terms, quantum).sum(2), BITS)
        if promoted and (first + STEP) % promoted == 0:
            total, sums = total + sums, torch.zeros_like(sums)
    return total + sums if promoted else sums


def surrogate(left: Tensor, right: Tensor) -> Tensor:
    """The same quickly: 32 terms at a time in float32, the sum cut off."""
    sums = torch.zeros(len(left), right.shape[1])
    for first in range(0, left.shape[1], STEP):
        cut_mantissa(sums.addmm_(left[:, first : first + STEP], right[first : first + STEP]), BITS)
    return sums


def product_rows(dry: bool) -> Iterator[Row]:
    """Errors of single products, relative in the Frobenius norm."""
    ways: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "float32": torch.matmul,
        "fast, term by term": hardware,
        "fast, as in training below": surrogate,
        f"float32 every {PROMOTED}": lambda left, right: hardware(left, right, PROMOTED),
    }
    rows = 4 if dry else 48
    for reduction, signs in itertools.product((64,) if dry else REDUCTIONS, ("mixed", "one")):
        x, w = torch.randn(rows, reduction), torch.randn(rows, reduction) * reduction**-0.5
        if signs == "one":
            x, w = x.abs(), w.abs()
        weight = FP8Weight(w)
        values, scale = weight.quantized(x)
        left, right = values.float(), weight.values.float().T
        exact = left.double() @ right.double()
        quantized = exact * scale[:, None].double() * weight.scale.double()
        described: Row = {"part": "products", "reduction": reduction, "rows": rows, "signs": signs}
        error = _error(quantized, x.double() @ w.double().T)
        yield described | {"sums": "exact, of quantized numbers", "relative_error": error}
        for name, multiply in ways.items():
            yield described | {"sums": name, "relative_error": _error(multiply(left, right), exact)}


def _error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm())


@contextmanager
def fast_sums(forward_of: Sequence[bool]) -> Iterator[None]:
    """Within the block products whose argument ``fast`` is among these are added up as by ``surrogate``."""
    usual = fp8_linear._product

    def product(
        rows: Rows, right: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype, *, fast: bool
    ) -> Tensor:
        if fast not in forward_of:
            return usual(rows, right, scale, bias, dtype, fast=fast)
        values, row_scale = rows
        y = surrogate(values.float(), right.float()).mul_(row_scale[:, None]).mul_(scale)
        return (y if bias is None else y.add_(bias)).to(dtype)

    with mock.patch.object(fp8_linear, "_product", product):
        yield


def training_rows(
    stage: Stage, build: Builder, steps: list[list[Example]], held_out: list[Example], about: Row
) -> list[Row]:
    """A row a run; differences are relative to the losses with float32 sums."""
    settings = Settings(range(about["trained_layers"]), learning_rate=about["learning_rate"])
    runners = {name: Runner(VARIANTS["slamkern_fp8"], build(), settings) for name in RUNS}
    losses: dict[str, list[float]] = {name: [] for name in RUNS}
    rows: list[Row] = []
    for number, examples in enumerate(steps):
        for name, runner in runners.items():
            with fast_sums(RUNS[name]):
                losses[name].append(runner.backward(examples))
            runner.update()
        print(
            f"step {number + 1}: " + ", ".join(f"{name} {values[-1]:.4f}" for name, values in losses.items()),
            flush=True,
        )
        if stage.seconds_left <= 0:
            break
    for name, runner in runners.items():
        with fast_sums(RUNS[name]):
            unseen = held_out_loss(runner, held_out)
        differences = [
            abs(mine - theirs) / theirs for mine, theirs in zip(losses[name], losses["float32 sums"], strict=True)
        ]
        row: Row = {"part": "training", "sums": name, **about, "steps": len(differences), "losses": losses[name]}
        row |= {"loss_first": losses[name][0], "loss_last": losses[name][-1], "held_out_last": unseen}
        rows.append(row | {"largest": max(differences), "mean": sum(differences) / len(differences)})
        runner.close()
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    stage = Stage("fp8_accumulation", __doc__.splitlines()[0], argv)
    torch.manual_seed(0)
    stage.rows += product_rows(stage.dry)
    stage.save()
    cpu = torch.device("cpu")  # sums are emulated, whatever GPU there is
    count, pairs, unseen = (2, 2, 2) if stage.dry else (20, 4, 8)
    name, build, tokenizer, vocabulary = model_of(cpu, stage.dry)
    data = "corpus:20" if stage.dry else None
    work = real_pairs(data, tokenizer, vocabulary, steps=count + unseen // pairs, pairs=pairs)
    held_out = [example for step in work.steps[count:] for example in step]
    about: Row = {
        "model": name,
        "data": work.source,
        "learning_rate": 5e-4,
        "trained_layers": 2 if stage.dry else 6,
        "pairs_a_step": pairs,
        "held_out_pairs": len(held_out),
    }
    stage.rows += training_rows(stage, build, work.steps[:count], held_out, about)
    stage.save()
    show("accumulation of FP8 products, emulated", stage.rows, COLUMNS)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
