"""Names of others (languages, prompts, paths, models) on the terminal: as they are, and without effect."""

import logging
from pathlib import Path

import pytest
from support.tiny_causal_lm import save_folder

from slamkern.cli import options
from slamkern.cli.main import main
from slamkern.cli.options import _PrintableFormatter
from slamkern.cli.screen import Screen
from slamkern.cli.tables import before_after, selection_table
from slamkern.errors import printable
from slamkern.selection.layers import LayerSelection

ODD = "[red]:smile:\x1b[31m[/red]"
SHOWN = r"[red]:smile:\x1b[31m[/red]"


def test_names_in_tables_are_printed_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    selection_table(LayerSelection((0,), scores=((1.0,), (0.5,)), score_name=ODD, languages=("de",)))
    assert f"mean {SHOWN}" in capsys.readouterr().out
    scores = {"n": {ODD: 2}, "accuracy": {ODD: 50.0}, "task": ODD, "prompt": f"p{ODD}", "rule": "r"}
    side = {"translation": {ODD: {"loss": 1.0}}, "english_loss": 1.0, "evaluation": scores, "reply_loss": {ODD: 2.0}}
    numbers = {"trained_parameters": 1, "total_parameters": 2, "steps": 1, "tokens_per_second": 1.0}
    before_after({"before": side, "after": side, "selected_layers": [0], **numbers})
    out = capsys.readouterr().out
    assert out.count(SHOWN) == 4 and "\x1b[31m" not in out


def test_a_wide_table_is_not_cut_in_a_narrow_file(capsys: pytest.CaptureFixture[str]) -> None:
    Screen(300).print("x" * 290)
    assert capsys.readouterr().out == "x" * 290 + "\n"


def test_success_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "a[red]\x1b[31mb", tmp_path / "out[red]\x1b[31m"
    save_folder(folder)
    data = ["--data", "corpus:", "-l", "de", "-s", "data.limit=4", "-s", "data.held_out=1", "-s", "probe.questions=2"]
    assert main(["probe", "--model", str(folder), *data, "--out", str(out)]) == 0
    assert main(["select", str(out), "-k", "1", "--region", "all", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert r"a[red]\x1b[31mb: " in captured.err  # the model
    assert captured.out.count(r"out[red]\x1b[31m/") == 2
    assert "\x1b[31m" not in captured.out + captured.err


def test_text_of_any_script_stays_as_it_is() -> None:
    for text in ("a\u00a0b\u202f!", "日本\u3000語", "می\u200cخواهم", "क\u094d\u200dष", "👩\u200d🔬", "line\n\ttab"):
        assert printable(text) == text
    assert printable("\x07\x9b31m\u2028\u202e\ud800") == r"\x07\x9b31m\u2028\u202e\ud800"
    record = logging.LogRecord("x", logging.INFO, "", 0, "model %s", ("\x1b]0;title\x07",), None)
    assert _PrintableFormatter().format(record) == r"model \x1b]0;title\x07"


def test_nothing_else_of_the_command_line_prints() -> None:
    folder = Path(options.__file__).parent
    for path in folder.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "typer.echo(" not in text or path.name == "options.py", f"{path.name}: use say"
        assert "rich.console" not in text or path.name == "screen.py", f"{path.name}: use Screen"
