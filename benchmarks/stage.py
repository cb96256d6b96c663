"""What every stage has in common: its command line, its time budget, its rows in the result file, its printed table.

    python -m benchmarks.<stage> [--device cpu|cuda] [--minutes M] [--threads N] [--dry-run] [--results FOLDER]

A stage is a module with ``main(argv) -> int`` that makes a :class:`Stage` and calls :meth:`Stage.save` whenever it has
more rows, so that a run that is cut off keeps what it had.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import results
from benchmarks.results import Row


class Stage:
    """One run of one stage: its options, and the rows it has so far. ``command`` is what runs it, if not its name.

    ``dry`` runs everything on tiny shapes, into a folder of its own; ``seconds_left`` is what is left of ``--minutes``.
    """

    def __init__(self, name: str, description: str, argv: Sequence[str] | None, *, command: str | None = None) -> None:
        parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
        add_options(parser, minutes=8.0)
        options = parser.parse_args(argv)
        self.name = name
        self.dry: bool = options.dry_run
        self.folder: Path = options.results or default_folder(self.dry)
        self.device = torch.device(options.device)
        if options.threads:
            torch.set_num_threads(options.threads)
        self._started = time.monotonic()
        self._seconds = 60 * options.minutes
        self._command = f"python -m benchmarks.{command or name} {shlex.join(_without_folder(argv))}".strip()
        self.rows: list[Row] = []

    @property
    def seconds_left(self) -> float:
        return self._seconds - (time.monotonic() - self._started)

    def save(self) -> Path:
        """Write the rows so far."""
        seconds = time.monotonic() - self._started
        return results.write_stage(
            self.device, self.name, self.rows, command=self._command, seconds=seconds, folder=self.folder
        )

    def rows_of(self, stage: str) -> list[Row]:
        """Rows of another stage on this device, measured before."""
        return results.rows_of(self.device, stage, self.folder)


def _without_folder(argv: Sequence[str] | None) -> list[str]:
    """The options as given, without where the results lie: a path of this machine tells nobody else anything."""
    given = list(sys.argv[1:] if argv is None else argv)
    if "--results" in given:
        at = given.index("--results")
        del given[at : at + 2]
    return given


def add_options(parser: argparse.ArgumentParser, minutes: float) -> None:
    """The options of every stage."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default, help=f"here: {default}")
    parser.add_argument("--minutes", type=float, default=minutes, help="time limit; what does not fit is left out")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as torch has them")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes: shows that it runs, measures nothing")
    parser.add_argument("--results", type=Path, help="folder of the result files (default: beside this file)")


def default_folder(dry: bool) -> Path:
    """Where result files go; those of dry runs never replace measured ones."""
    return results.FOLDER / "dry-run" if dry else results.FOLDER


def show(title: str, rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Print the named columns of the rows as a table; floats with three digits."""
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    numeric = {name for name in columns if any(isinstance(row.get(name), int | float) for row in rows)}
    for name in columns:
        table.add_column(name, justify="right" if name in numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell(row.get(name)) for name in columns))
    console = Console()
    Console(width=max(console.width, 140)).print(table)


def cell(value: object) -> str:
    """A value as table text: three significant digits, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)
