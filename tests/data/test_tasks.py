"""Benchmarks from their published files."""

import json
from pathlib import Path

import pytest

from slamkern.data.tasks import Question, load_task
from slamkern.errors import SlamkernError

MGSM = Path(__file__).resolve().parents[3] / "shared" / "data" / "mgsm"
FULL = {"query": "how many ?", "equation": "- number0 number1", "response": "8.0", "m_query": "Wie viele?"}
SHORT = {"query": "Combien ?", "response": "The answer is 9."}


def lines(path: Path, *records: dict) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.mark.skipif(not MGSM.is_dir(), reason="needs the MGSM files beside the checkout")
def test_real_mgsm():
    questions = load_task("mgsm", None, MGSM)
    assert len(questions) == 2750 and len({question.id for question in questions}) == 2750
    german = load_task("mgsm", ["de"], MGSM, limit=2)
    assert german[1] == Question("mgsm-de-2", "de", german[1].question, "3")
    assert german[1].question.startswith("Ein Kleid erfordert 2 Knäuel")


def test_mgsm_lines(tmp_path):
    (tmp_path / "mgsm_de.tsv").write_text('Wie\tviele "Äpfel"?\t1,200\n', encoding="utf-8")
    lines(tmp_path / "mgsm_French.json", SHORT)
    assert load_task("mgsm", None, tmp_path) == [
        Question("mgsm-de-1", "de", 'Wie\tviele "Äpfel"?', "1,200"),
        Question("mgsm-fr-1", "fr", "Combien ?", "The answer is 9."),
    ]


def test_both_shapes_of_msvamp_in_a_folder_a_pattern_and_a_file(tmp_path):
    german, french = lines(tmp_path / "test_German.json", FULL), lines(tmp_path / "test_French.json", SHORT, SHORT)
    expected = [
        Question("msvamp-de-1", "de", "Wie viele?", "8.0"),
        Question("msvamp-fr-1", "fr", "Combien ?", "The answer is 9."),
    ]
    assert load_task("msvamp", None, tmp_path, limit=1) == expected
    assert load_task("msvamp", ["fr", "de", "fr"], tmp_path, limit=1) == expected[::-1]
    assert load_task("msvamp", ["de", "fr"], tmp_path / "test_{language}.json", limit=1) == expected
    assert load_task("msvamp", None, german) == expected[:1]
    renamed = german.rename(tmp_path / "questions.jsonl")
    assert load_task("msvamp", ["de"], renamed) == expected[:1]
    with pytest.raises(SlamkernError, match="does not say its language"):
        load_task("msvamp", None, renamed)
    with pytest.raises(SlamkernError, match="is one file for the languages de fr"):
        load_task("msvamp", ["de", "fr"], french)


def test_the_first_questions_can_be_left_out(tmp_path):
    text = "".join(f"Question {number}?\t{number}\n" for number in range(1, 6))
    for code in ("en", "de"):
        (tmp_path / f"mgsm_{code}.tsv").write_text(text)
    chosen = load_task("mgsm", ["en", "de"], tmp_path, 4, first=2)
    assert [question.id for question in chosen] == ["mgsm-en-3", "mgsm-en-4", "mgsm-de-3", "mgsm-de-4"]
    spread = load_task("mgsm", ["en", "de"], tmp_path, first=1, every=3)
    assert [question.id for question in spread] == ["mgsm-en-2", "mgsm-en-5", "mgsm-de-2", "mgsm-de-5"]
    with pytest.raises(SlamkernError, match="mgsm has 5 questions in en: none is left behind the first 5"):
        load_task("mgsm", ["en"], tmp_path, first=5)


def test_a_revision_is_of_the_content_of_all_rows(tmp_path):
    tsv = tmp_path / "mgsm_de.tsv"
    tsv.write_text("Wie viele?\t8.0\nWarum?\t3\n", encoding="utf-8")
    (first,) = load_task("mgsm", None, tmp_path, limit=1)
    assert first.revision is not None and first.revision.rows == 2
    as_json = lines(
        tmp_path / "other_German.json", {"question": "Wie viele?", "answer": 8.0}, {"question": "Warum?", "answer": 3}
    )
    assert load_task("mgsm", None, as_json)[1].revision == first.revision
    tsv.write_text("Wie viele?\t8.0\nWarum?\t4\n", encoding="utf-8")
    (again,) = load_task("mgsm", None, tmp_path, limit=1)
    assert again == first and again.revision != first.revision


def test_corpus_questions_are_parallel_and_not_those_of_training():
    from slamkern.data import synthetic

    questions = load_task("corpus", ["en", "bn"], limit=20)
    assert [question.gold for question in questions[:20]] == [question.gold for question in questions[20:]]
    trained = {problem.questions["en"] for problem in synthetic.generate(500, 0, ["en"], "train")}
    assert not trained & {question.question for question in questions}


def test_hub_tasks(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        if config == "fr":
            raise ConnectionError("Couldn't reach the Hub\nlong story")
        return [{"question": "Wie viele?", "answer": None, "answer_number": 18, "equation_solution": None}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_task("mgsm", ["de"]) == [Question("mgsm-de-1", "de", "Wie viele?", "18")]
    assert load_task("mgsm-rev2", ["de"]) == [Question("mgsm-rev2-de-1", "de", "Wie viele?", "18")]
    assert asked == [("juletxara/mgsm", "de", "test"), ("lightonai/mgsm-rev2", "de", "test")]
    with pytest.raises(SlamkernError, match="load juletxara/mgsm from the hub: Couldn't reach the Hub; use local"):
        load_task("mgsm", ["fr"])
    with pytest.raises(SlamkernError, match="Mathoctopus/MSVAMP has no te; it has: bn de"):
        load_task("msvamp", ["te"])


def test_bad_input(tmp_path):
    lines(tmp_path / "test_German.json", FULL)
    lines(tmp_path / "test_Thai.json", {"query": "?", "response": "none"})
    lines(tmp_path / "test_Russian.json", {"question": "?"})
    lines(tmp_path / "test_Spanish.json", FULL | {"m_query": ""})
    (tmp_path / "test_Chinese.json").write_text("\n")
    (tmp_path / "mgsm_de.tsv").write_text("no tab here\n")
    for arguments, message in [
        (("gsm8k",), "unknown task 'gsm8k'; known: mgsm, mgsm-rev2, msvamp, corpus"),
        (("msvamp", ["de", "fr"], tmp_path), "no msvamp questions in fr at .* .looked for files like test_German.json"),
        (("msvamp", None, tmp_path / "x_{language}.json"), "no msvamp questions in any language"),
        (("msvamp", ["xx"], tmp_path), "unknown language 'xx'"),
        (("msvamp", ["th"], tmp_path), "test_Thai.json:1 has no number in its answer 'none'"),
        (("msvamp", ["ru"], tmp_path), "test_Russian.json:1 has none of the fields response"),
        (("msvamp", ["es"], tmp_path), "test_Spanish.json:1 has no question"),
        (("msvamp", ["zh"], tmp_path), "test_Chinese.json is empty"),
        (("msvamp", ["de"], tmp_path / "absent.json"), "no file .*absent.json; .* holds mgsm_de.tsv"),
        (("mgsm", ["de"], tmp_path), "mgsm_de.tsv:1 has no tab"),
        (("msvamp", [], tmp_path), "no languages given"),
        (("msvamp", None, tmp_path, 0), "limit=0"),
        (("corpus", ["de"], tmp_path), "generated and reads no files"),
        (("corpus", ["te"]), "the embedded corpus has no language 'te'"),
    ]:
        with pytest.raises(SlamkernError, match=message):
            load_task(*arguments)


def test_the_answer_rule_can_be_had_from_the_tasks():
    from slamkern.data import answers, tasks

    assert tasks.extract_answer is answers.extract_answer
