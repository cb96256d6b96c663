"""``slamkern delta``: scale a delta, take layers back, blend several, find the best scale, to LoRA and back.

See `training.delta` and `integrations.lora`.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from slamkern.cli.options import (
    Config,
    Data,
    DryRun,
    Languages,
    Model,
    Out,
    Set,
    configure,
    load,
    plan_for,
    print_plan,
    say,
)
from slamkern.errors import SlamkernError
from slamkern.run_folder import HeldFolder

delta = typer.Typer(help="What can be done with trained weights afterwards.", no_args_is_help=True)

Trained = Annotated[Path, typer.Argument(help="The folder of a training run, or its delta.safetensors.")]


@delta.callback()
def _delta() -> None:
    """What can be done with trained weights afterwards."""


@delta.command()
def scale(
    trained: Trained,
    by: Annotated[float, typer.Option(help="1 is the trained model, 0 the base model.")],
    out: Out,
    model: Model = None,
    config: Config = None,
    overrides: Set = None,
) -> None:
    """A share of the change that training made: base + by * (trained - base)."""
    _blend([(trained, by)], out, model, config, overrides)


@delta.command()
def merge(
    trained: Annotated[list[Path], typer.Argument(help="Two or more deltas on the same base model.")],
    out: Out,
    weights: Annotated[str | None, typer.Option(help="With commas, one a delta; without it all the same.")] = None,
    model: Model = None,
    config: Config = None,
    overrides: Set = None,
) -> None:
    """Several changes at once: base + sum of weight * (trained - base)."""
    if len(trained) < 2:
        raise SlamkernError("one delta cannot be merged; name another, or use slamkern delta scale")
    shares = _numbers(weights, "--weights") if weights is not None else [1 / len(trained)] * len(trained)
    if len(shares) != len(trained):
        raise SlamkernError(f"{len(shares)} weights for {len(trained)} deltas; give one for each")
    _blend(list(zip(trained, shares, strict=True)), out, model, config, overrides)


@delta.command()
def revert(
    trained: Trained,
    layers: Annotated[str, typer.Option(help="With commas: the layers that are as in the base model again.")],
    out: Out,
) -> None:
    """Take single layers back; needs no model."""
    from slamkern.training.delta import revert_layers

    chosen = _numbers(layers, "--layers")
    if any(number != int(number) for number in chosen):
        raise SlamkernError(f"--layers {layers!r} are not whole numbers")
    with HeldFolder(out):
        say(str(revert_layers(trained, [int(number) for number in chosen], out)))


@delta.command()
def sweep(
    trained: Trained,
    scales: Annotated[str, typer.Option(help="With commas.")] = "0,0.25,0.5,0.75,1,1.25",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the delta at the best scale here.")] = None,
    model: Model = None,
    data: Data = None,
    languages: Languages = None,
    dry_run: DryRun = False,
    config: Config = None,
    overrides: Set = None,
) -> None:
    """Held-out translation loss at several scales: the held-out pairs of the same data as in training."""
    from slamkern.data.prompts import get_prompt
    from slamkern.pipeline.checks import check_held_out
    from slamkern.pipeline.stages import alignment_pairs
    from slamkern.schemas.training import read_delta
    from slamkern.training.batches import context_of, tokenize_within
    from slamkern.training.delta import blend_deltas, check_scale, free_folder, sweep_scale

    settings = configure(config, overrides, model={"name": model}, data={"path": data, "languages": languages})
    tried = _numbers(scales, "--scales")
    for scale in tried:
        check_scale(scale, str(trained))
    read_delta(trained)
    if out is not None:
        free_folder(out)
    _, held_out = alignment_pairs(settings)
    check_held_out(settings, held_out)
    if dry_run:
        plan = plan_for(settings, None)
        plan.losses("sweep", held_out, settings.train.prompt, times=len(tried))
        print_plan(plan.lines)
        return
    with nullcontext() if out is None else HeldFolder(out):
        base, tokenizer = load(settings)
        recipe = settings.train
        prompt = get_prompt(recipe.prompt, tokenizer)
        examples = tokenize_within(held_out, tokenizer, prompt, recipe.max_length, context_of(base))
        losses = sweep_scale(base, trained, examples, tried)
        best = min(losses, key=lambda number: losses[number])
        for number, loss in losses.items():
            say(f"scale {number:<6g} held-out loss {loss:.4f}{'  best' if number == best else ''}")
        if out is not None:
            say(str(blend_deltas(base, [(trained, best)], out)))


@delta.command()
def lora(
    trained: Trained,
    rank: Annotated[int, typer.Option(help="Of the adapter: more keeps more of the change.")],
    out: Out,
    model: Model = None,
    config: Config = None,
    overrides: Set = None,
) -> None:
    """The best LoRA adapter of one rank for the change, which PEFT loads; says how much of it is lost."""
    from slamkern.integrations.lora import check_adapter, delta_to_lora
    from slamkern.schemas.training import read_delta

    with HeldFolder(out, beside=True):
        check_adapter(out, rank)
        read_delta(trained)
        base = _base(model, config, overrides)
        lost = delta_to_lora(base, trained, out, rank)
    say(f"{out}: rank {rank} leaves out {100 * lost:.2f} % of the squared change")


@delta.command()
def fold(
    adapter: Annotated[Path, typer.Argument(help="The folder of a PEFT adapter.")],
    out: Out,
    model: Model = None,
    config: Config = None,
    overrides: Set = None,
) -> None:
    """A LoRA adapter as a delta: base weights with the adapter merged."""
    from slamkern.integrations.lora import check_folding, lora_to_delta

    with HeldFolder(out, beside=True):
        check_folding(adapter, out)
        base = _base(model, config, overrides)
        say(str(lora_to_delta(base, adapter, out)))


def _blend(
    deltas: list[tuple[Path, float]], out: Path, model: str | None, config: Path | None, overrides: list[str] | None
) -> None:
    """Write the sum of these deltas, each times its scale; all but the model is looked at first."""
    from slamkern.schemas.training import read_delta
    from slamkern.training.delta import blend_deltas, check_scale, free_folder

    with HeldFolder(out):
        free_folder(out)
        for folder, scale in deltas:
            check_scale(scale, str(folder))
            read_delta(folder)
        base = _base(model, config, overrides)
        say(str(blend_deltas(base, deltas, out)))


def _base(model: str | None, config: Path | None, overrides: list[str] | None) -> Any:
    """The base model that the options name."""
    base, _ = load(configure(config, overrides, model={"name": model}))
    return base


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise SlamkernError(f"{option} {text!r} are not numbers with commas") from None
