"""``slamkern probe`` and ``slamkern select``: what a model does with each language, and which layers to train."""

from pathlib import Path
from typing import Annotated

import typer

from slamkern import distributed
from slamkern.cli.options import (
    AllowPickle,
    Config,
    Data,
    DryRun,
    DryRunOn,
    Languages,
    Model,
    Out,
    Set,
    TrustRemoteCode,
    configure,
    load,
    model_options,
    plan_for,
    print_plan,
    refuse_existing,
    say,
)
from slamkern.errors import SlamkernError
from slamkern.run_folder import HeldFolder


def probe(
    out: Out,
    model: Model = None,
    data: Data = None,
    languages: Languages = None,
    trust_remote_code: TrustRemoteCode = None,
    allow_pickle: AllowPickle = None,
    dry_run: DryRun = False,
    dry_run_on: DryRunOn = None,
    config: Config = None,
    overrides: Set = None,
) -> None:
    """Activation statistics of every FFN neuron per language: writes stats.safetensors."""
    from slamkern.pipeline.checks import check_probe
    from slamkern.pipeline.launch import read_launch
    from slamkern.pipeline.stages import alignment_pairs, probe_model, probe_texts

    settings = configure(
        config,
        overrides,
        model=model_options(model, trust_remote_code, allow_pickle),
        data={"path": data, "languages": languages},
    )
    pairs = alignment_pairs(settings)[0] if settings.probe.task == "data" else []
    refuse_existing(out / "stats.safetensors")
    check_probe(settings, read_launch(dry_run_on))
    texts = probe_texts(settings, pairs)
    if dry_run or dry_run_on:
        plan = plan_for(settings, dry_run_on)
        plan.probe(texts)
        plan.weights(f"one layer's activations of up to {settings.probe.token_budget:,} tokens")
        print_plan(plan.lines)
        return
    with HeldFolder(out):
        distributed.on_main(lambda: refuse_existing(out / "stats.safetensors"))  # another process may have ended
        loaded, tokenizer = load(settings)
        stats = probe_model(settings, loaded, tokenizer, pairs, progress=True)
        distributed.on_main(lambda: stats.save(out / "stats.safetensors"))
    tokens = ", ".join(f"{code} {int(count):,}" for code, count in zip(stats.languages, stats.count, strict=True))
    say(f"{out / 'stats.safetensors'}: {stats.num_layers} layers, tokens: {tokens}")


def select(
    out: Out,
    stats: Annotated[
        Path | None,
        typer.Argument(help="stats.safetensors of a probe, or its folder. Rules of place do without, with --model."),
    ] = None,
    model: Model = None,
    k: Annotated[int | None, typer.Option("--k", "-k", help="How many layers.")] = None,
    score: Annotated[str | None, typer.Option(help="active_msd, rate_msd, mean_msd, english_overlap or lape.")] = None,
    region: Annotated[str | None, typer.Option(help="lower, upper, all or A-B.")] = None,
    config: Config = None,
    overrides: Set = None,
) -> None:
    """Score the layers and choose some, or choose them by place (select.rule): writes selection.json."""
    from slamkern.cli.tables import selection_table
    from slamkern.pipeline.placement import choose_by_place
    from slamkern.pipeline.stages import choose_layers

    settings = configure(config, overrides, model={"name": model}, select={"k": k, "score": score, "region": region})
    if stats is None:
        selection = choose_by_place(settings)
    elif model is not None:
        raise SlamkernError(
            f"--model is for a choice without statistics, which know their model; leave out it or {stats}"
        )
    else:
        selection = choose_layers(settings, stats / "stats.safetensors" if stats.is_dir() else stats)
    with HeldFolder(out):
        refuse_existing(out / "selection.json")
        selection.save(out / "selection.json")
    selection_table(selection)
    say(f"{out / 'selection.json'}: layers {', '.join(map(str, selection.layers))}")
