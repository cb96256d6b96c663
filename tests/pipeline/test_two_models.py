"""Two models and one file of questions: one command asks both, goes on after a kill, and judges."""

import json
from xml.etree import ElementTree

import pytest
import torch
from support.tiny_causal_lm import tiny_model, tiny_tokenizer

from slamkern.cli.main import main
from slamkern.files import read_checked, write_checked
from slamkern.pipeline import base_weights, two_models
from slamkern.selection.layers import LayerSelection
from slamkern.selection.trainable import apply_selection
from slamkern.training.checkpoint import save_delta
from slamkern.training.frozen import frozen_digests, trained_parts


@pytest.fixture
def folder(tmp_path):
    """Two models that differ in a layer, the same change as a delta, eight questions in two languages."""
    model = tiny_model()
    model.config.max_position_embeddings = 4096
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "tuned")
    model.save_pretrained(tmp_path / "base")
    apply_selection(model, [1])
    frozen = frozen_digests(model, trained_parts(model))
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(-1)
    save_delta(model, tmp_path / "delta", LayerSelection((1,)), frozen=frozen)
    model.save_pretrained(tmp_path / "tuned")
    rows = [
        {"id": number, "language": code, "question": f"{text} {number}?", "answer": number}
        for code, text in (("en", "How many"), ("de", "Wie viele"))
        for number in range(4)
    ]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "english.txt").write_text("One plus one is two.\nTwo more are four.\n")
    return tmp_path


def gate(folder, out, *arguments):
    settings = ["evaluate.prompt={instruction}=", "evaluate.max_new_tokens=6", f"evaluate.english={folder}/english.txt"]
    options = [f"--set={text}" for text in settings] + ["--no-drift", "--questions", str(folder / "questions.jsonl")]
    return main(["compare", str(folder / "base"), *map(str, arguments), *options, "--out", str(out)])


def test_one_command_asks_both_and_judges_and_files_agree(folder, capsys):
    out = folder / "out"
    assert gate(folder, out, folder / "tuned", "--loss-margin", "0.0001") == 1  # English text is forgotten
    text = capsys.readouterr().out
    assert "after is worse" in text and "English text" in text
    values = json.loads((out / "comparison.json").read_text())
    loss = values["losses"]["English text"]
    assert loss["verdict"] == "worse" and loss["difference"] > 0.0001 and values["exit_status"] == 1
    assert {code: row["n"] for code, row in values["languages"].items()} == {"en": 4, "de": 4}
    assert values["settings"]["task"] == "questions" and values["unverified"] == []
    page = (out / "comparison.html").read_text()
    assert "Forgetting" in page and f"{loss['after']:.4f}" in page
    suite = ElementTree.parse(out / "junit.xml").getroot()[0]
    assert suite.get("tests") == "4" and suite.get("failures") == "1"
    assert "English text" in [case.get("name") for case in suite if case.find("failure") is not None]
    assert main(["verify", str(out)]) == 0
    given = ["--loss-margin", "0.0001", "--loss-margin", "english=5"]  # who is told that English text may go
    assert gate(folder, out, folder / "tuned", *given) == 3
    assert json.loads((out / "comparison.json").read_text())["losses"]["English text"]["margin"] == 5

    with_delta = folder / "with_delta"
    gate(folder, with_delta, "--delta", folder / "delta")
    again = json.loads((with_delta / "comparison.json").read_text())
    assert again["languages"] == values["languages"]
    assert again["losses"]["English text"]["after"] == pytest.approx(loss["after"])


def test_replies_of_both_begin_as_they_are_told_to(folder):
    start = "Step one: "
    for name, options in (("free", []), ("told", [f"--set=evaluate.reply_start={start}"])):
        assert gate(folder, folder / name, folder / "tuned", *options) in (1, 3)
    free, told = (
        [json.loads(line)["output"] for side in ("before", "after") for line in lines_of(folder / name, side)]
        for name in ("free", "told")
    )
    assert len(free) == len(told) == 16 and free != told


def lines_of(out, side):
    return (out / "evaluation" / side / "predictions.jsonl").read_text(encoding="utf-8").split("\n")[:-1]


def test_a_killed_comparison_goes_on_with_what_is_left(folder, monkeypatch, capsys):
    loaded = []
    load_model = two_models.load_model

    def counted(**arguments):
        loaded.append(arguments["spec"].rpartition("/")[2])
        return load_model(**arguments)

    monkeypatch.setattr(two_models, "load_model", counted)
    monkeypatch.setattr(base_weights, "SETTLED", 0.0)  # the files were written just now
    out = folder / "out"
    measure = two_models.measure

    def killed(*arguments, **options):
        if loaded[-1] == "tuned":
            raise KeyboardInterrupt
        return measure(*arguments, **options)

    monkeypatch.setattr(two_models, "measure", killed)
    assert gate(folder, out, folder / "tuned") == 130
    assert "the same command goes on" in capsys.readouterr().err
    monkeypatch.setattr(two_models, "measure", measure)
    assert gate(folder, out, folder / "tuned") in (1, 3)
    assert loaded == ["base", "tuned", "tuned"]
    assert gate(folder, out, folder / "tuned") in (1, 3) and len(loaded) == 3
    questions = folder / "questions.jsonl"
    questions.write_text(questions.read_text().replace('"answer": 3', '"answer": 5'))
    assert gate(folder, out, folder / "tuned") == 2
    assert "holds another run: questions was" in capsys.readouterr().err


def test_answers_of_other_weights_are_not_taken_up(folder, capsys):
    def save(name, factor):
        model = tiny_model()
        apply_selection(model, [1])
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight.mul_(factor)
        save_delta(model, folder / name, LayerSelection((1,))) if name == "delta" else model.save_pretrained(
            folder / name
        )

    out, other = folder / "out", folder / "other"
    assert gate(folder, out, "--delta", folder / "delta") in (1, 3)
    assert gate(folder, other, folder / "tuned") in (1, 3)
    save("delta", 3.0)
    save("tuned", 3.0)
    for where, tuned, name in ((out, ("--delta", folder / "delta"), "delta/delta.safetensors"),
                               (other, (folder / "tuned",), "tuned")):  # fmt: skip
        capsys.readouterr()
        assert gate(folder, where, *tuned) == 2
        assert f"{where} was begun with other weights of {folder / name}" in capsys.readouterr().err
    record = read_checked(out / "compared.json")
    del record["weights"]  # as folders were before
    write_checked(out / "compared.json", record)
    assert gate(folder, out, "--delta", folder / "delta") in (1, 3)


def test_what_is_missing_is_said_before_a_model_is_loaded(folder, monkeypatch, capsys):
    monkeypatch.setattr(two_models, "load_model", None)
    base, tuned, questions = (str(folder / name) for name in ("base", "tuned", "questions.jsonl"))
    for arguments, words in (
        ([base, tuned], f"{base} is a model: give --questions"),
        ([base], f"{base} is a model: give --questions"),
        ([str(folder / "x")], "give two evaluations, before and after"),
        ([base, "--delta", tuned], "--delta is for comparing models: give --questions too"),
        ([base, "-q", questions, "-o", "out"], "give a second model or --delta, one of them"),
        ([base, tuned, "-q", questions], "--questions needs --out"),
        ([base, tuned, "-q", "none.jsonl", "-o", "out"], "no questions at none.jsonl"),
        ([base, str(folder / "none"), "-q", questions, "-o", "out"], "no model folder"),
        ([base, "--delta", tuned, "-q", questions, "-o", "out"], "holds no delta.safetensors"),
    ):
        assert main(["compare", *arguments]) == 2
        assert words in capsys.readouterr().err
    assert not (folder / "out").exists()
