"""Commands that read what others wrote (scores, reports, an export) or this machine; none trains or measures."""

from pathlib import Path
from typing import Annotated

import typer

from slamkern.cli.options import (
    AllowPickle,
    Config,
    Delta,
    DryRun,
    Model,
    Out,
    Set,
    TrustRemoteCode,
    configure,
    load,
    model_options,
    plan_for,
    print_plan,
    say,
)
from slamkern.errors import SlamkernError
from slamkern.run_folder import HeldFolder


def score(
    predictions: Annotated[Path, typer.Argument(help="predictions.jsonl of an evaluation, or the folder it is in.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write scores.json to this folder.")] = None,
) -> None:
    """Scores of a predictions file alone, without a model."""
    from slamkern.evaluation import scoring
    from slamkern.files import write_json

    result = scoring.score(predictions / "predictions.jsonl" if predictions.is_dir() else predictions)
    say(scoring.format_table(result))
    if out is not None:
        with HeldFolder(out):
            write_json(out / "scores.json", result.to_dict())
        say(f"{out / 'scores.json'}")


def verify(
    folder: Annotated[Path, typer.Argument(help="Folder of a run, of one stage of it, or of a bake-off.")],
) -> None:
    """Check every file of a run: hashes, schemas, the steps there should be, finite weights. Status 1 for a problem."""
    from slamkern.bakeoff import verify as bakeoff
    from slamkern.pipeline import verify as pipeline

    to_do: list[str] = []
    if bakeoff.is_bakeoff(folder):
        good, problems, to_do = bakeoff.verify(folder)
    else:
        good, problems = pipeline.verify(folder)
    for problem in problems:
        say(problem)
    say(f"{folder}: {len(good)} files are what was written, {len(problems)} are not")
    if to_do:
        say(f"still to do, {len(to_do)}: {' '.join(to_do)}")
    if problems:
        raise typer.Exit(1)


def report(folder: Annotated[Path, typer.Argument(help="Folder of a run (or of a probe and a selection).")]) -> None:
    """One self-contained HTML page with figures (also as PNG) from a run's files."""
    from slamkern.pipeline.stages import compare_run
    from slamkern.report.html import write_report

    if not folder.is_dir():
        raise SlamkernError(f"no folder {folder}")
    with HeldFolder(folder):
        say(str(write_report(folder, compare_run(folder))))


def export(
    out: Out,
    model: Model = None,
    delta: Delta = None,
    trust_remote_code: TrustRemoteCode = None,
    allow_pickle: AllowPickle = None,
    dry_run: DryRun = False,
    config: Config = None,
    overrides: Set = None,
) -> None:
    """A full Hugging Face folder of a model with trained weights put in, loadable without slamkern."""
    from slamkern.schemas.training import read_delta
    from slamkern.training.export import check_folder, export_model
    from slamkern.training.footprint import gigabytes

    settings = configure(config, overrides, model=model_options(model, trust_remote_code, allow_pickle))
    if delta is not None:
        read_delta(delta)
    if dry_run:
        check_folder(out)
        plan = plan_for(settings, None)
        size = gigabytes(plan.parameters * plan.dtype.itemsize)
        print_plan([*plan.lines, ("export", f"{size} of memory and as much disk")])
        return
    with HeldFolder(out, beside=True):
        check_folder(out)
        say(str(export_model(*load(settings, delta), out)))


def env() -> None:
    """Versions, devices, threads, and which backends can run here (and why not)."""
    from slamkern.cli.environment import print_environment

    print_environment()
