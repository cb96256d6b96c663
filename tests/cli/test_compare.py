"""``slamkern compare``: tables, files, and the exit status that a pipeline acts on."""

import json
import subprocess
import sys

import pytest

from slamkern.cli.main import main
from slamkern.files import write_checked
from slamkern.schemas.predictions import Prediction

pytest.importorskip("py3langid")


def write(folder, right, n=200):
    folder.mkdir()
    lines = []
    for number in range(n):
        text = f"Die Antwort auf diese Frage ist wohl {1 if number < right else 2}"
        entry = Prediction(f"mgsm-de-{number}", "de", f"Was ist {number}?", "1", text, 0.0, False)
        lines.append(json.dumps(entry.__dict__) + "\n")
    (folder / "predictions.jsonl").write_text("".join(lines))
    write_checked(folder / "evaluation.json", {"kind": "evaluation", "settings": {"task": "mgsm", "prompt": "p"}})
    return str(folder)


def test_status_and_output(tmp_path, capsys):
    base, worse, better, little = (
        write(tmp_path / name, right) for name, right in (("a", 100), ("b", 60), ("c", 160), ("d", 98))
    )
    out = tmp_path / "out"
    assert main(["compare", base, worse, "--out", str(out)]) == 1
    text = capsys.readouterr().out
    assert "after is worse" in text and "max_new_tokens, stop, dtype" in text and "100 → 100" in text
    assert sorted(path.name for path in out.iterdir()) == ["comparison.html", "comparison.json", "junit.xml"]
    assert main(["compare", base, better, "--no-drift"]) == 0
    assert "responses" not in capsys.readouterr().out
    assert main(["compare", base, little]) == 3
    assert "cannot tell" in capsys.readouterr().out
    assert main(["compare", base, little, "--margin", "de=5", "--margin", "average=5"]) == 0


def test_a_pipeline_sees_the_status_of_the_process(tmp_path):
    base, worse, better, little = (
        write(tmp_path / name, right) for name, right in (("a", 100), ("b", 60), ("c", 160), ("d", 98))
    )
    for after, status in ((better, 0), (worse, 1), (str(tmp_path / "none"), 2), (little, 3)):
        command = [sys.executable, "-m", "slamkern.cli.main", "compare", base, after, "--no-drift"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        assert done.stderr.startswith("error: ") is (status == 2)


def test_one_line_for_what_is_wrong(tmp_path, capsys):
    base = write(tmp_path / "a", 10)
    for arguments, words in (
        ([base, str(tmp_path / "none")], "does not exist; expected an evaluation folder or samples"),
        ([base, str(tmp_path)], f"lm-eval, and in {tmp_path} there are a"),
        (
            [base, base, "--loss-margin", "Swahili=1"],
            "'Swahili', which there are not; known: english translation reply",
        ),
        ([base, base, "--loss-margin", "reply=-1"], "margin of reply losses is -1.0"),
        ([base, base, "--margin", "two"], "--margin 'two' is not a number"),
        ([base, base, "-l", "fr"], "has no fr"),
    ):
        assert main(["compare", *arguments]) == 2
        assert words in capsys.readouterr().err
