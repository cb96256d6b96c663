"""``slamkern compare``: the gate after training. Its exit status is for pipelines."""

from pathlib import Path
from typing import Annotated, Any

import typer

from slamkern.cli.options import (
    AllowPickle,
    Config,
    DryRun,
    Languages,
    Set,
    TrustRemoteCode,
    configure,
    model_options,
    print_plan,
    say,
)
from slamkern.errors import SlamkernError
from slamkern.run_folder import HeldFolder

Side = "Evaluation folder, samples_*.jsonl of lm-eval (or their folder); with --questions, a model."


def compare(
    before: Annotated[str, typer.Argument(help=Side)],
    after: Annotated[str | None, typer.Argument(help=f"{Side} Or leave it out and give --delta.")] = None,
    questions: Annotated[
        str | None,
        typer.Option(
            "--questions",
            "-q",
            help="Ask both models these: .json(l) with question, answer, language (id), a folder, or a task's name.",
        ),
    ] = None,
    delta: Annotated[
        Path | None, typer.Option("--delta", help="With --questions: after is the first model with this delta.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="With --questions: pairs held out for translation losses.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="With --questions: so many in each language.")] = None,
    margin: Annotated[
        list[str] | None,
        typer.Option(help="Points less that still are not worse: 2 (default), or en=1 for a language. Repeatable."),
    ] = None,
    loss_margin: Annotated[
        list[str] | None,
        typer.Option(
            help="Nats a token that held-out losses may rise: 0.05 (default), or for one kind english=, translation= or"
            " reply=0.2. Repeatable."
        ),
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
    trust_remote_code: TrustRemoteCode = None,
    allow_pickle: AllowPickle = None,
    dry_run: DryRun = False,
    config: Config = None,
    overrides: Set = None,
) -> None:
    """Is it better, not worse, or worse than before? Status 0: nowhere worse, 1: worse somewhere, 3: cannot tell.

    With --questions, both models answer them first; the same command goes on where it was interrupted.
    """
    from slamkern.evaluation.compare import LOSS_MARGIN
    from slamkern.evaluation.compare import compare as compare_evaluations
    from slamkern.report.comparison import PHRASES, write_comparison

    default, single = _margins("--margin", margin or [], 2.0)
    loss_default, loss_single = _margins("--loss-margin", loss_margin or [], LOSS_MARGIN)
    codes = None if languages is None else [code.strip() for code in languages.split(",")]
    first, second = Path(before), None if after is None else Path(after)
    if questions is not None:
        settings = configure(
            config, overrides, model=model_options(before, trust_remote_code, allow_pickle), data={"path": data},
            evaluate={"languages": languages, "limit": limit},
        )  # fmt: skip
        if dry_run:
            from slamkern.pipeline.two_models import plan_two

            tuned, asked = _asked(settings, after, delta, questions)
            print_plan(plan_two(settings, tuned, asked, delta=delta is not None))
            return
        first, second = _ask(settings, after, delta, questions, out)
    else:
        given = {
            "--delta": delta, "--data": data, "--limit": limit, "--config": config, "--set": overrides,
            "--dry-run": dry_run,
        }  # fmt: skip
        if used := [name for name, value in given.items() if value]:
            raise SlamkernError(f"{' '.join(used)} is for comparing models: give --questions too")
        for side in filter(None, (before, after)):
            if (Path(side) / "config.json").is_file() or side.endswith(".gguf"):
                raise SlamkernError(f"{side} is a model: give --questions, what it shall answer")
        if second is None:
            raise SlamkernError("give two evaluations, before and after; or --questions, and two models or --delta")
    result = compare_evaluations(
        first, second, margin=default, margins=single, languages=codes, rule=rule, filter_name=filter_name,
        drift=drift, loss_margin=loss_default, loss_margins=loss_single,
    )  # fmt: skip
    _print(result.to_dict())
    if out is not None:
        with HeldFolder(out):
            say(f"{out}: {', '.join(path.name for path in write_comparison(result.to_dict(), out))}")
    say(f"after is {PHRASES[result.verdict]}")
    if result.exit_status:
        raise typer.Exit(result.exit_status)


def _ask(settings: Any, after: str | None, delta: Path | None, questions: str, out: Path | None) -> tuple[Path, Path]:
    """Both models' answers, as two evaluation folders."""
    from slamkern.data.own_questions import TASK
    from slamkern.data.tasks import TASKS
    from slamkern.pipeline.two_models import evaluate_two

    if out is None:
        raise SlamkernError("--questions needs --out, the folder that keeps the answers")
    tuned, asked = _asked(settings, after, delta, questions)
    return evaluate_two(
        settings, tuned, asked, out, task=questions if questions in TASKS else TASK, delta=delta is not None
    )


def _asked(settings: Any, after: str | None, delta: Path | None, questions: str) -> tuple[str | Path, Any]:
    """(what the second model is, the questions)."""
    from slamkern.data.own_questions import load_questions
    from slamkern.data.tasks import TASKS, load_task

    if (after is None) == (delta is None):
        raise SlamkernError("with --questions give a second model or --delta, one of them")
    section = settings.evaluate
    if questions in TASKS:
        asked = load_task(questions, section.languages, section.data, section.limit)
    else:
        asked = load_questions(questions, section.languages, section.limit)
    tuned = delta if after is None else after
    assert tuned is not None
    return tuned, asked


def _margins(option: str, given: list[str], default: float) -> tuple[float, dict[str, float]]:
    """(margin of all, margins of those that are named)."""
    single: dict[str, float] = {}
    for text in given:
        name, equals, value = text.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            raise SlamkernError(f"{option} {text!r} is not a number, or one for a name like en=1") from None
        if equals:
            single[name] = number
        else:
            default = number
    return default, single


def _print(result: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from slamkern.cli.screen import Screen
    from slamkern.report.comparison import (
        DRIFT_HEAD,
        HEAD,
        LOSS_HEAD,
        MARKS,
        cells,
        cut_short,
        drift_cells,
        loss_cells,
        rows,
    )

    styles = {"better": "green", "worse": "bold red", "unclear": "yellow", "": ""}
    console = Screen(130)

    def verdict(name: str) -> Text:
        return Text(name, style=styles[MARKS[name]])

    table = Table(*HEAD, box=None, header_style="bold")
    for name, change in rows(result):
        table.add_row(*cells(name, change), verdict(change["verdict"]))
    console.print(table)
    if result["losses"]:
        losses = Table(*LOSS_HEAD, box=None, header_style="bold", title="held-out losses", title_justify="left")
        for name, change in result["losses"].items():
            losses.add_row(*loss_cells(name, change), verdict(change["verdict"]))
        console.print(losses)
    if result["drift"]:
        responses = Table(*DRIFT_HEAD, box=None, header_style="bold", title="responses, %", title_justify="left")
        for code, sides in result["drift"].items():
            responses.add_row(*drift_cells(code, *sides))
        console.print(responses)
    if cut := cut_short(result):
        say(cut)
    if result["losses_left_out"]:
        say(f"not compared, for their texts differ or one side alone has them: {', '.join(result['losses_left_out'])}")
    if result["unverified"]:
        say(f"not recorded on both sides, so not known to be equal: {', '.join(result['unverified'])}")
