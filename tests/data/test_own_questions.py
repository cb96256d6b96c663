"""A user's own questions: what a file may hold, and what is refused with its place."""

import json

import pytest

from slamkern.data.own_questions import load_questions
from slamkern.data.tasks import Question
from slamkern.errors import SlamkernError


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_one_file_of_all_languages_and_a_folder_of_one_each_are_the_same_questions(tmp_path):
    german = [{"id": "eggs", "question": "Wie viele?", "answer": 3}, {"id": "tax", "question": "Was?", "answer": "7 %"}]
    swahili = [{"id": "eggs", "question": "Ngapi?", "answer": 3}]
    whole = [row | {"language": code} for code, rows in (("de", german), ("sw", swahili)) for row in rows]
    questions = load_questions(write(tmp_path / "all.jsonl", *whole))
    assert questions == [
        Question("questions-de-eggs", "de", "Wie viele?", "3"),
        Question("questions-de-tax", "de", "Was?", "7 %"),
        Question("questions-sw-eggs", "sw", "Ngapi?", "3"),
    ]
    (tmp_path / "apart").mkdir()
    write(tmp_path / "apart" / "mine_de.jsonl", *german)
    write(tmp_path / "apart" / "mine_sw.jsonl", *swahili)
    apart = load_questions(tmp_path / "apart")
    assert apart == questions and [q.revision for q in apart] == [q.revision for q in questions]
    assert questions[0].revision.rows == 2
    assert load_questions(tmp_path / "apart", ["de"], limit=1) == questions[:1]


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([], "is empty"),
        ([{"question": "a", "answer": 1}], r"mine.jsonl:1 has none of the fields language"),
        ([{"question": "a", "answer": 1, "language": "xx"}], "unknown language 'xx'"),
        ([{"question": "a", "answer": "yes", "language": "de"}], "mine.jsonl:1 has no number in its answer 'yes'"),
        ([{"question": " ", "answer": 1, "language": "de"}], "mine.jsonl:1 has no question"),
        (
            [{"id": 1, "question": "a", "answer": 1, "language": "de"}] * 2,
            "mine.jsonl:2 is the second question '1' in de",
        ),
        ([{"question": "a", "answer": 1, "language": "de"}], "has no questions in fr; it has: de"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path, records, words):
    with pytest.raises(SlamkernError, match=words):
        load_questions(write(tmp_path / "mine.jsonl", *records), ["fr"])
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(SlamkernError, match=r"list\.json holds no questions"):
        load_questions(tmp_path / "list.json")
    with pytest.raises(SlamkernError, match="no questions at"):
        load_questions(tmp_path / "none")
