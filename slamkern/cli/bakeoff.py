"""``slamkern bakeoff``: what to train, compared on one model."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from slamkern import distributed
from slamkern.cli.options import Config, DryRun, DryRunOn, Out, Set, print_plan, say
from slamkern.errors import SlamkernError


def bakeoff(
    out: Out,
    config: Config = None,
    overrides: Set = None,
    lanes: Annotated[int, typer.Option(min=1, help="Cells at a time, in each process of a job.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Of each cell; without it, the cores are shared.")] = None,
    pause_file: Annotated[Path | None, typer.Option(help="While this file exists, the processes are stopped.")] = None,
    dry_run: DryRun = False,
    dry_run_on: DryRunOn = None,
) -> None:
    """Full fine-tuning, LoRA, layers, neurons on the same examples: one table, one page. The same command resumes."""
    from slamkern.bakeoff.config import load_bakeoff
    from slamkern.bakeoff.rows import read_rows
    from slamkern.bakeoff.supervisor import run

    if config is None:
        raise SlamkernError(
            "no bake-off given: use --config FILE, with the sections of a run and bakeoff: {cells: ...}"
        )
    settings = load_bakeoff(config, overrides or ())
    if dry_run or dry_run_on:
        from slamkern.bakeoff.plan import plan_bakeoff
        from slamkern.pipeline.launch import read_launch

        print_plan(plan_bakeoff(settings, out, read_launch(dry_run_on)))
        return
    told = partial(say, err=not distributed.is_main())  # only the main process has a standard output
    failed = run(settings, out, lanes=lanes, threads=threads, pause=pause_file, say=told)
    print_table(read_rows(settings, out))
    say(f"{out}: table.csv, table.json, report.html")
    # Of a job, the main process alone: where another fails first, launchers end the rest, and this one still writes.
    if failed and distributed.is_main():
        say(f"failed: {', '.join(failed)}; their last words are in {out / 'logs'}", err=True)
        raise typer.Exit(1)


def print_table(rows: list[dict[str, Any]]) -> None:
    """What is compared first; all of it is in table.csv."""
    from rich.table import Table

    from slamkern.bakeoff.table import flat, shown
    from slamkern.cli.screen import Screen

    values = [flat(row) for row in rows]
    names = ["round", "cell", "seed", "parameters %", "reply loss", "translation loss", "English loss", "accuracy",
             "gain low", "gain high", "English", "in English %", "processor seconds", "peak GB"]  # fmt: skip
    used = [name for name in names if any(row[name] is not None for row in values)]
    table = Table(*used, box=None, header_style="bold")
    for row in values:
        table.add_row(*(shown(row[name]) for name in used))
    Screen(150).print(table)
