"""``slamkern run`` and ``slamkern demo``: all stages in one folder."""

from pathlib import Path
from typing import Annotated

import typer

from slamkern.cli.options import (
    AllowPickle,
    Config,
    Data,
    DryRun,
    DryRunOn,
    Languages,
    Model,
    Out,
    Recipe,
    Set,
    TrustRemoteCode,
    configure,
    model_options,
    print_plan,
    say,
)


def run(
    out: Out,
    model: Model = None,
    data: Data = None,
    languages: Languages = None,
    recipe: Recipe = None,
    trust_remote_code: TrustRemoteCode = None,
    allow_pickle: AllowPickle = None,
    dry_run: DryRun = False,
    dry_run_on: DryRunOn = None,
    config: Config = None,
    overrides: Set = None,
) -> None:
    """Everything: probe, select, measure, train, measure again, report. The same command resumes."""
    from slamkern.cli.tables import before_after
    from slamkern.pipeline.run import run as run_pipeline

    settings = configure(
        config,
        overrides,
        recipe,
        model=model_options(model, trust_remote_code, allow_pickle),
        data={"path": data, "languages": languages},
    )
    if dry_run or dry_run_on:
        from slamkern.pipeline.launch import read_launch
        from slamkern.pipeline.plan import plan_run

        print_plan(plan_run(settings, read_launch(dry_run_on)))
        return
    before_after(run_pipeline(settings, out))
    say(f"report: {out / 'report.html'}")


def demo(
    out: Out = Path("slamkern-demo"),
    model: Annotated[str, typer.Option("--model", "-m", help="tiny (trained here first) or smollm2.")] = "tiny",
    overrides: Set = None,
) -> None:
    """The whole pipeline on an embedded corpus, without network or GPU, in under three minutes on two cores."""
    from slamkern.cli.tables import before_after
    from slamkern.pipeline.demo import run_demo

    before_after(run_demo(out, model, overrides=overrides or ()))
    say(f"report: {out / 'report.html'}")
