"""Pairs from every published form, and every way such a file can be wrong."""

import json
import logging
from pathlib import Path

import pytest

from slamkern.data import arrow_table
from slamkern.data.pairs import Pair, load_pairs, split_pairs
from slamkern.errors import SlamkernError

QUESTIONS = Path(__file__).resolve().parents[3] / "shared" / "data" / "gsm8k_questions"


def parallel(folder: Path, code: str, source: str, target: str) -> None:
    direction = folder / f"{code}-en"
    direction.mkdir(parents=True)
    (direction / f"train.{code}").write_text(source, encoding="utf-8")
    (direction / "train.en").write_text(target, encoding="utf-8")


def write_lines(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def texts(pairs: list[Pair]) -> list[tuple[str, str, str]]:
    return [(pair.source_language, pair.source, pair.target) for pair in pairs]


def test_line_parallel_folders(tmp_path, caplog):
    parallel(tmp_path, "fr", "Un\u2028deux\r\n\nQuatre\n", "One two\r\nThree\nFour\n")  # U+2028 breaks no line
    parallel(tmp_path, "de", "Eins\nZwei\nDrei\n", "One\nTwo\nThree\n")
    with caplog.at_level(logging.WARNING):
        pairs = load_pairs(tmp_path, limit=2)
    assert texts(pairs) == [
        ("de", "Eins", "One"), ("de", "Zwei", "Two"), ("fr", "Un\u2028deux", "One two"), ("fr", "Quatre", "Four"),
    ]  # fmt: skip
    assert "dropped 1 rows with an empty side" in caplog.text
    assert load_pairs(tmp_path, ["de", "en"], limit=1) == [Pair("Eins", "One", "de", id="de-en-question-1")]


def test_a_folder_of_questions_and_answers(tmp_path):
    parallel(tmp_path / "gsm_question", "de", "Frage\n", "Question\n")
    parallel(tmp_path / "gsm_answer", "de", '"Eins\\n#### 1"\n', '"One\\n#### 1"\n')
    pairs = load_pairs(tmp_path, content="both")
    assert [(pair.kind, pair.source) for pair in pairs] == [("answer", "Eins\n#### 1"), ("question", "Frage")]
    assert [pair.kind for pair in load_pairs(tmp_path)] == ["question"]


def test_json_lines_of_pairs(tmp_path, caplog):
    row = {"source": "Hallo", "target": "Hello", "source_language": "de"}
    english = {"source": "Hello", "target": "Hello", "source_language": "en"}
    back = {"source": "Hola", "target": "Hallo", "source_language": "es", "target_language": "de", "id": 7}
    path = write_lines(tmp_path / "pairs.jsonl", [row, english, back])
    with caplog.at_level(logging.WARNING):
        assert load_pairs(path) == [Pair("Hallo", "Hello", "de", id="1"), Pair("Hola", "Hallo", "es", "de", id="7")]
    assert "dropped 1 rows with English as the source" in caplog.text


def test_the_embedded_corpus():
    pairs = load_pairs("corpus:", ["th", "de"], content="both", limit=3)
    assert [(pair.source_language, pair.kind) for pair in pairs[::3]] == [
        ("de", "answer"), ("de", "question"), ("th", "answer"), ("th", "question"),
    ]  # fmt: skip
    assert len(pairs) == 12 and len(load_pairs("corpus:20", ["de"])) == 20
    assert [pair.target for pair in pairs[3:6]] == [pair.target for pair in pairs[9:12]]


@pytest.mark.skipif(not QUESTIONS.is_dir(), reason="needs the GSM8K questions beside the checkout")
def test_real_questions():
    pairs = load_pairs(QUESTIONS, limit=100)
    assert len(pairs) == 700
    assert pairs[0].target.startswith("Natalia sold clips to 48 of her friends in April")
    with pytest.raises(SlamkernError, match="no questions in th; it has: de es fr ja ru sw zh"):
        load_pairs(QUESTIONS, ["de", "th"])


def test_bad_parallel_files(tmp_path):
    parallel(tmp_path / "ragged", "de", "Eins\nZwei\n", "One\n")
    parallel(tmp_path / "empty", "de", "", "One\n")
    parallel(tmp_path / "blank", "de", "\n \n", "One\nTwo\n")
    parallel(tmp_path / "half", "de", "Eins\n", "One\n")
    (tmp_path / "half" / "de-en" / "train.en").unlink()
    parallel(tmp_path / "bytes", "de", "Eins\n", "One\n")
    (tmp_path / "bytes" / "de-en" / "train.de").write_bytes(b"Gr\xfc\xdfe\n")
    parallel(tmp_path / "unknown", "xx", "Eins\n", "One\n")
    parallel(tmp_path / "only_english", "en", "One\n", "One\n")
    (tmp_path / "nothing").mkdir()
    for name, message in [
        ("ragged", "train.de has 2 lines but train.en beside it has 1: not parallel"),
        ("empty", "train.de is empty"),
        ("blank", "train.de is empty"),
        ("half", "no file .*train.en; .* holds train.de"),
        ("bytes", r"not UTF-8 text \(byte 2\)"),
        ("unknown", "unknown language 'xx'"),
        ("only_english", "no question pairs of any language but English"),
        ("nothing", "no folders like de-en"),
        ("absent", "no data at"),
    ]:
        with pytest.raises(SlamkernError, match=message):
            load_pairs(tmp_path / name)
    with pytest.raises(SlamkernError, match="half has no answers"):
        load_pairs(tmp_path / "half", content="answer")


def test_bad_records_and_arguments(tmp_path):
    good = {"source": "Hallo", "target": "Hello", "source_language": "de"}
    broken = tmp_path / "broken.jsonl"
    broken.write_text(json.dumps(good) + "\n{oops\n")
    (tmp_path / "list.json").write_text('[{"source": 1},')
    (tmp_path / "numbers.json").write_text("[1, 2]")
    lacking = write_lines(tmp_path / "lacking.jsonl", [good, {"source": "Hallo", "source_language": "de"}])
    other_kind = write_lines(tmp_path / "kind.jsonl", [good | {"kind": "poem"}])
    odd_name = write_lines(tmp_path / "odd.jsonl", [good, {"so\nurce": "Hallo"}])
    for path, message in [
        (broken, "broken.jsonl:2: not JSON"),
        (tmp_path / "list.json", "list.json: not JSON: .*line 1"),
        (tmp_path / "numbers.json", "record 1 of .* is not a JSON object"),
        (lacking, "record 2 of .* has none of the fields target; it has source, source_language"),
        (other_kind, "kind 'poem'; use question or answer"),
        (odd_name, r"it has so\\nurce$"),
        ("corpus:many", "not a number of problems"),
        ("corpus:0", "not a number of problems"),
    ]:
        with pytest.raises(SlamkernError, match=message):
            load_pairs(path)
    path = write_lines(tmp_path / "good.jsonl", [good])
    for arguments, message in [
        ({"languages": ["de", "ge"]}, "unknown language 'ge'"),
        ({"languages": ["de", "fr"]}, "no question pairs in fr; it has: de"),
        ({"content": "answers"}, "use question, answer or both"),
        ({"content": "answer"}, "no answer pairs"),
        ({"limit": 0}, "limit=0"),
    ]:
        with pytest.raises(SlamkernError, match=message):
            load_pairs(path, **arguments)


def test_hub_rows_and_a_hub_that_cannot_be_reached(monkeypatch):
    datasets = pytest.importorskip("datasets")
    rows = [{"source": "Hallo", "target": "Hello", "source_language": "de"}]
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, split: rows if name == "a/b" else 1 / 0)
    assert texts(load_pairs("hf:a/b")) == [("de", "Hallo", "Hello")]
    with pytest.raises(SlamkernError, match="cannot load c/d from the hub: division by zero; use local files"):
        load_pairs("hf:c/d")


def make_pairs(count: int) -> list[Pair]:
    return [Pair(f"{code} {index}", f"English {index}", code) for code in ("de", "fr") for index in range(count)]


def test_no_target_text_is_both_trained_and_held_out():
    pairs = [*make_pairs(30), Pair("noch einmal 3", " English 3", "de")]  # the same question twice
    train, held_out = split_pairs(pairs, 5, seed=0)
    assert not {pair.target.strip() for pair in train} & {pair.target.strip() for pair in held_out}
    assert sorted(pair.source_language for pair in held_out) == ["de"] * 5 + ["fr"] * 5
    assert set(train) | set(held_out) <= set(pairs) and len(train) >= len(pairs) - 11
    assert (train, held_out) == split_pairs(pairs, 5, seed=0) != split_pairs(pairs, 5, seed=1)
    assert split_pairs(pairs, 0, seed=0) == (pairs, [])


def test_a_split_that_leaves_nothing_to_train_on_is_refused():
    with pytest.raises(SlamkernError, match="de has 5 pairs: too few to hold out 5 and train"):
        split_pairs(make_pairs(5), 5, seed=0)
    with pytest.raises(SlamkernError, match="cannot hold out -1"):
        split_pairs(make_pairs(5), -1, seed=0)


def test_many_pairs_are_read_into_a_file_and_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "pairs.jsonl"
    records = [{"source": f"q {i}", "target": f"t {i % 900}", "source_language": ("fr", "de", "sw")[i % 3]}
               for i in range(3001)]  # fmt: skip
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    few = load_pairs(data)
    monkeypatch.setattr(arrow_table, "IN_MEMORY", 2000)
    monkeypatch.setattr(arrow_table, "RELEASE", 5)
    many = load_pairs(data)
    assert (tmp_path / "cache" / "slamkern").is_dir() and not list((tmp_path / "cache").glob("*/*"))  # without a name
    assert [pair.source_language for pair in many] == ["de"] * 1000 + ["fr"] * 1001 + ["sw"] * 1000
    assert many == few == list(many) and many[1:3] == few[1:3] and many[-1].source == "q 2999"
    assert split_pairs(many, 7, seed=0) == split_pairs(list(few), 7, seed=0)


def test_pairs_that_are_added_leave_the_choice_of_held_out_ones_alone():
    pairs = make_pairs(40)
    _, held_out = split_pairs(pairs, 5, seed=0)
    _, again = split_pairs([*make_pairs(60)], 5, seed=0)
    assert len(set(held_out) & set(again)) >= 5  # half as likely to stay as pairs were added; all anew would keep 1
