"""The commands of ``slamkern``: each reads a configuration, calls one function of the package, and says what it wrote.

A configuration is the defaults, changed by ``--config`` (YAML), by ``--set section.key=value`` and by the short options
of a command, in this order. Heavy imports happen inside the commands, so ``--help`` is quick. No work is done here, and
errors are left to ``cli``.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from slamkern.cli.bakeoff import bakeoff
from slamkern.cli.bench import bench
from slamkern.cli.compare import compare
from slamkern.cli.delta import delta
from slamkern.cli.harness import harness
from slamkern.cli.options import (
    AllowPickle,
    Config,
    Data,
    Delta,
    DryRun,
    DryRunOn,
    FrozenPrecision,
    Languages,
    MemoryBudget,
    Model,
    OnOom,
    Out,
    Set,
    TrustRemoteCode,
    configure,
    configure_logging,
    load,
    model_options,
    plan_for,
    print_plan,
    say,
)
from slamkern.cli.pipeline import demo, run
from slamkern.cli.probing import probe, select
from slamkern.cli.results import env, export, report, score, verify
from slamkern.cli.unfrozen import unfrozen
from slamkern.errors import SlamkernError
from slamkern.run_folder import HeldFolder
from slamkern.version import __version__

app = typer.Typer(
    name="slamkern",
    help="Selective Language Alignment: find the layers that tell languages apart, fine-tune only their FFNs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"slamkern {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every stage and step.")] = False,
) -> None:
    configure_logging(verbose)


@app.command()
def train(
    out: Out,
    selection: Annotated[Path, typer.Option("--selection", help="selection.json, or the folder it is in.")],
    model: Model = None,
    data: Data = None,
    languages: Languages = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    memory_budget: MemoryBudget = None,
    on_oom: OnOom = None,
    frozen_precision: FrozenPrecision = None,
    trust_remote_code: TrustRemoteCode = None,
    allow_pickle: AllowPickle = None,
    dry_run: DryRun = False,
    dry_run_on: DryRunOn = None,
    config: Config = None,
    overrides: Set = None,
) -> None:
    """Fine-tune the FFNs of the selected layers on translation into English: writes a delta checkpoint and its log."""
    from slamkern.modules.patch import patch_model
    from slamkern.pipeline import stages
    from slamkern.pipeline.checks import check_memory, check_model, check_training
    from slamkern.pipeline.launch import read_launch
    from slamkern.selection.layers import LayerSelection, check_layers
    from slamkern.selection.trainable import apply_selection
    from slamkern.training import loop

    settings = configure(
        config, overrides, model=model_options(model, trust_remote_code, allow_pickle),
        data={"path": data, "languages": languages},
        train={"memory_budget": memory_budget, "frozen_precision": frozen_precision, "on_oom": on_oom},
    )  # fmt: skip
    chosen = LayerSelection.load(selection / "selection.json" if selection.is_dir() else selection)
    pairs, held_out = stages.alignment_pairs(settings)
    check_layers(chosen.layers, check_model(settings.model))
    check_training(settings, pairs, held_out, read_launch(dry_run_on))
    check_memory(settings, chosen)
    if dry_run or dry_run_on:
        plan = plan_for(settings, dry_run_on)
        plan.train(plan.examples(pairs, held_out), chosen)
        print_plan(plan.lines)
        return
    with HeldFolder(out):  # training holds it by itself
        loaded, tokenizer = load(settings, on_host=settings.train.fsdp)  # a GPU gets its part of it
        questions = stages.reply_questions(settings, pairs, held_out)
        replies = stages.model_replies(settings, loaded, tokenizer, questions, out / "replies.json", progress=True)
    apply_selection(patch_model(loaded), chosen, settings.select.projections)
    result = loop.train(
        loaded,
        tokenizer,
        stages.training_examples(settings, pairs, replies),
        replace(settings.train, output_dir=out),
        selection=chosen,
        resume=resume,
        held_out=stages.held_out_examples(settings, held_out, replies),
    )
    share = 100 * result.trained_parameters / result.total_parameters
    say(
        f"trained {result.trained_parameters:,} parameters ({share:.2f} %) for {result.steps} steps at "
        f"{result.tokens_per_second:,.0f} tokens/s: loss {result.loss_first:.4f} -> {result.loss_last:.4f}"
    )
    if result.held_out_loss is not None:
        say("held-out loss {:.4f} -> {:.4f}".format(*result.held_out_loss))
    say(f"{out}: delta.safetensors, selection.json, metrics.jsonl")


@app.command()
def evaluate(
    out: Out,
    model: Model = None,
    delta: Delta = None,
    task: Annotated[str | None, typer.Option(help="mgsm, mgsm-rev2, msvamp or corpus.")] = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="Folder of the task's files; without it, from the hub.")
    ] = None,
    languages: Languages = None,
    limit: Annotated[int | None, typer.Option(help="Questions per language.")] = None,
    trust_remote_code: TrustRemoteCode = None,
    allow_pickle: AllowPickle = None,
    dry_run: DryRun = False,
    dry_run_on: DryRunOn = None,
    config: Config = None,
    overrides: Set = None,
) -> None:
    """Answer accuracy per language: writes predictions.jsonl and evaluation.json. The same command resumes."""
    from slamkern.evaluation import accuracy, scoring
    from slamkern.pipeline.checks import check_evaluation
    from slamkern.schemas.training import read_delta

    settings = configure(
        config, overrides, model=model_options(model, trust_remote_code, allow_pickle),
        evaluate={"task": task, "data": data, "languages": languages, "limit": limit},
    )  # fmt: skip
    section = settings.evaluate
    if section.task is None:
        raise SlamkernError("no task given: use --task mgsm, mgsm-rev2, msvamp or corpus")
    questions = section.load()
    check_evaluation(settings, questions)
    if delta is not None:
        read_delta(delta)
    if dry_run or dry_run_on:
        plan = plan_for(settings, dry_run_on)
        plan.evaluate(questions)
        plan.weights(f"keys and values of up to {section.batch_size} answers")
        print_plan(plan.lines)
        return
    loaded, tokenizer = load(settings, delta)
    result = accuracy.evaluate_questions(
        loaded, tokenizer, questions, task=section.task, prompt=section.prompt_for(tokenizer),
        max_new_tokens=section.max_new_tokens, batch_size=section.batch_size, out=out,
    )  # fmt: skip
    say(scoring.format_table(result))
    say(f"{out}: predictions.jsonl, evaluation.json")


for command in (probe, select, run, demo, score, report, export, verify, env, compare, harness, unfrozen, bakeoff):
    app.command()(command)
app.add_typer(bench, name="bench")
app.add_typer(delta, name="delta")
