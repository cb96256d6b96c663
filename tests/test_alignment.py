"""The alignment study on a tiny model: what a cell trains on, that scaling is exact, what the table counts."""

import json

import pytest
import torch
from support.tiny_causal_lm import tiny_model, tiny_tokenizer

from benchmarks import alignment, alignment_table, alignment_work, results
from benchmarks.alignment_work import TRAINED_LANGUAGES, Study

LANGUAGES = {"English": "en", "German": "de"}


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Two answered and one unfinished question, four MSVAMP questions in two languages."""
    monkeypatch.setattr(alignment_work, "HELD_OUT_LANGUAGES", ("de",))
    monkeypatch.setattr(alignment_work, "HELD_OUT", range(4, 8))
    monkeypatch.setattr(alignment_work, "TRANSLATED", range(2, 4))
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    for code in TRAINED_LANGUAGES:
        folder = tmp_path / "pairs" / f"{code}-en"
        folder.mkdir(parents=True)
        (folder / f"train.{code}").write_text("".join(f"{code} question {n}\n" for n in range(8)))
        (folder / "train.en").write_text("".join(f"english {n}\n" for n in range(8)))
    (tmp_path / "msvamp").mkdir()
    for name, code in LANGUAGES.items():
        rows = [{"m_query": f"{code} {n}", "response": "1"} for n in range(4)]
        (tmp_path / "msvamp" / f"test_{name}.json").write_text("\n".join(map(json.dumps, rows)))
    settings = dict(
        prompt="alpaca", answers=2, answer_tokens=8, new_tokens=3, batch_size=4, dtype="float32", name="tiny"
    )
    settings |= {key: str(tmp_path / key) for key in ("model", "pairs", "msvamp")}
    (tmp_path / "study.json").write_text(json.dumps(settings))
    (tmp_path / "answers").mkdir()
    answers = [{"index": n, "ended": n < 2, "text": f"reply {n}"} for n in range(3)]
    (tmp_path / "answers" / "part-0.jsonl").write_text("\n".join(map(json.dumps, answers)))
    cells = [
        {"name": "base"},
        {"name": "some", "layers": [1], "mixture": {"translate": 3, "distill": 2, "replay": 1}},
        {"name": "half", "layers": [1], "of": "some", "scale": 0.5},
    ]
    own = {"languages": ["en", "de"], "questions": [1, 4], "tokens_per_batch": 2048, "learning_rate": 1e-2}
    (tmp_path / "cells.json").write_text(json.dumps([cell | own for cell in cells]))
    alignment.read_cells(tmp_path, tmp_path / "cells.json")
    return Study(tmp_path)


def test_each_kind_of_example_has_its_source_and_its_reply(study):
    kinds = ("translate", "distill", "translate_solve", "replay")
    pairs = dict(zip(kinds, alignment_work.examples(study, dict.fromkeys(kinds, 1), seed=0), strict=True))
    number = {kind: pair.source[-1] for kind, pair in pairs.items()}
    assert pairs["translate"].kind == "question" and pairs["translate"].target == f"english {number['translate']}"
    assert pairs["distill"].source.startswith("de") and pairs["distill"].target == f"reply {number['distill']}"
    n = number["translate_solve"]
    assert pairs["translate_solve"].target == f"english {n}\n\nreply {n}"
    assert pairs["replay"].source == f"english {number['replay']}" and pairs["replay"].kind == "response"
    many = alignment_work.examples(study, {"distill": 40}, seed=0)
    assert {pair.target for pair in many} == {"reply 0", "reply 1"}  # what was not finished is no reply
    assert {pair.source_language for pair in many} == set(TRAINED_LANGUAGES)


def test_a_cell_trains_is_scaled_and_judged_beside_the_base(study):
    alignment_work.learn(study, "some")
    summary = json.loads((study.folder / "cells/some/trained/summary.json").read_text())
    assert summary["examples"] == 6 and summary["trained_parameters"] == 2 * 32 * 64
    weights = {
        name: alignment_work.changed(study, study.cell(name), name)[0].state_dict() for name in ("base", "some", "half")
    }
    changed = {key for key in weights["base"] if not torch.equal(weights["base"][key], weights["some"][key])}
    assert changed == {f"model.layers.1.mlp.{name}_proj.weight" for name in ("up", "down")}
    for key in changed:
        middle = (weights["base"][key] + weights["some"][key]) / 2
        torch.testing.assert_close(weights["half"][key], middle)
    for name in ("base", "half"):
        for part in (0, 1):
            alignment_work.ask(study, name, part, 2)
    path = alignment_table.write(study.folder, alignment.read_cells(study.folder, study.folder / "cells.json"))
    rows = {row["cell"]["name"]: row for row in json.loads(path.read_text())["stages"]["alignment"]["rows"]}
    assert set(rows) == {"base", "half"}
    assert rows["half"]["languages"]["de"]["questions"] == 3  # questions 2 to 4
    assert rows["base"]["languages"]["en"]["gained"] == 0 and rows["half"]["losses"]["english_loss"] > 0


def test_nothing_begins_before_what_it_needs_is_done(study):
    cells = alignment.read_cells(study.folder, study.folder / "cells.json")
    needs = {task.name: task.after for task in alignment.tasks_of(study.folder, cells)}
    assert needs["some-train"] == ["answer-0", "answer-1"]
    assert needs["half-ende-1-4-1"] == ["some-train"] and needs["base-ende-1-4-0"] == []


def test_a_copy_is_told_from_an_answer():
    question = "Julia spielte am Montag mit 18 Kindern Fangen. Mit wie vielen hat sie gespielt?"
    assert alignment_table.copies(question + " Fangen.", question)
    assert not alignment_table.copies("Julia hat am Montag mit 18 Kindern gespielt, also ist die Antwort 18.", question)
