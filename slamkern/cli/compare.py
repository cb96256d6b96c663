"""``slamkern compare``: the gate after training. Its exit status is for pipelines."""

from pathlib import Path
from typing import Annotated, Any

import typer

from slamkern.cli.options import Languages
from slamkern.errors import SlamkernError

Side = Annotated[str, typer.Argument(help="Evaluation folder, or samples_*.jsonl of lm-eval (or their folder).")]


def compare(
    before: Side,
    after: Side,
    margin: Annotated[
        list[str] | None,
        typer.Option(help="Points less that still are not worse: 2 (default), or en=1 for a language. Repeatable."),
    ] = None,
    languages: Languages = None,
    rule: Annotated[
        str | None, typer.Option(help="standard or strict; recorded: the verdicts in samples of lm-eval.")
    ] = None,
    filter_name: Annotated[str | None, typer.Option("--filter", help="Which filter of samples of lm-eval.")] = None,
    drift: Annotated[bool, typer.Option(help="Also language, length and degeneration of the responses.")] = True,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for comparison.json, comparison.html, junit.xml.")
    ] = None,
) -> None:
    """Is it better, not worse, or worse than before? Status 0: nowhere worse, 1: worse somewhere, 3: cannot tell."""
    from slamkern.evaluation.compare import compare as compare_evaluations
    from slamkern.report.comparison import PHRASES, write_comparison

    default, single = _margins(margin or [])
    codes = None if languages is None else [code.strip() for code in languages.split(",")]
    result = compare_evaluations(
        before, after, margin=default, margins=single, languages=codes, rule=rule, filter_name=filter_name, drift=drift
    )
    _print(result.to_dict())
    if out is not None:
        typer.echo(f"{out}: {', '.join(path.name for path in write_comparison(result.to_dict(), out))}")
    typer.echo(f"after is {PHRASES[result.verdict]}")
    if result.exit_status:
        raise typer.Exit(result.exit_status)


def _margins(given: list[str]) -> tuple[float, dict[str, float]]:
    default, single = 2.0, {}
    for text in given:
        name, equals, value = text.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            raise SlamkernError(f"--margin {text!r} is not like 2 or en=1") from None
        if equals:
            single[name] = number
        else:
            default = number
    return default, single


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from slamkern.report.comparison import DRIFT_HEAD, HEAD, MARKS, cells, drift_cells, rows

    styles = {"better": "green", "worse": "bold red", "unclear": "yellow", "": ""}
    console = Console(width=max(Console().width, 130))
    table = Table(*HEAD, box=None, header_style="bold")
    for name, change in rows(result):
        table.add_row(*cells(name, change), Text(change["verdict"], style=styles[MARKS[change["verdict"]]]))
    console.print(table, highlight=False)
    if result["drift"]:
        responses = Table(*DRIFT_HEAD, box=None, header_style="bold", title="responses, %", title_justify="left")
        for code, sides in result["drift"].items():
            responses.add_row(*drift_cells(code, *sides))
        console.print(responses, highlight=False)
    if result["unverified"]:
        typer.echo(f"not recorded on both sides, so not known to be equal: {', '.join(result['unverified'])}")
