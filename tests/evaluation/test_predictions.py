"""The files of an evaluation: resumable after any cut, refused where they belong to something else."""

import json

import pytest

from slamkern.errors import SlamkernError
from slamkern.evaluation.predictions import PredictionLog
from slamkern.schemas.predictions import Prediction, read_predictions

SETTINGS = {"task": "mgsm", "prompt": "metamath"}
ROWS = [
    Prediction("q0", "de", "Wie viele Äpfel?", "3", "Es sind\u2028drei: 3", 3.0, True),
    Prediction("q1", "th", "กี่ลูก", "4", 'a "quoted"\nline', 0.0, False),
    Prediction("q2", "en", "How many?", "5", "9" * 400, None, False),
]


def write(folder, rows=ROWS, settings=SETTINGS):
    with PredictionLog(folder, settings) as log:
        for row in rows:
            log.add(row)
    return folder / "predictions.jsonl"


def test_lines_come_back_as_written_and_hold_the_contract_fields(tmp_path):
    path = write(tmp_path)
    assert read_predictions(path) == ROWS
    first = json.loads(path.read_text(encoding="utf-8").split("\n")[0])
    fields = ["id", "language", "question", "gold", "output", "prediction", "correct", "truncated", "sha256"]
    assert list(first) == fields


def test_each_line_is_on_disk_as_soon_as_it_is_added(tmp_path):
    with PredictionLog(tmp_path, SETTINGS) as log:
        log.add(ROWS[0])
        assert read_predictions(tmp_path / "predictions.jsonl") == ROWS[:1]


def test_a_file_cut_at_any_byte_resumes_with_its_whole_lines(tmp_path):
    content = write(tmp_path).read_bytes()
    for size in range(len(content) + 1):
        (tmp_path / "predictions.jsonl").write_bytes(content[:size])
        whole = content[:size].count(b"\n")
        with PredictionLog(tmp_path, SETTINGS) as log:
            assert list(log.finished.values()) == ROWS[:whole]
            for row in ROWS[whole:]:
                log.add(row)
        assert (tmp_path / "predictions.jsonl").read_bytes() == content


def test_a_folder_of_other_or_unknown_settings_is_refused_untouched(tmp_path):
    path = write(tmp_path)
    before = path.read_bytes()
    with (
        pytest.raises(SlamkernError, match="prompt was 'metamath', now 'alpaca'"),
        PredictionLog(tmp_path, {**SETTINGS, "prompt": "alpaca"}),
    ):
        pass
    (tmp_path / "evaluation.json").unlink()
    with pytest.raises(SlamkernError, match="choose another folder"), PredictionLog(tmp_path, SETTINGS):
        pass
    assert path.read_bytes() == before


def test_an_answer_changed_before_the_run_is_finished_is_refused(tmp_path):
    path = write(tmp_path)
    path.write_text(path.read_text(encoding="utf-8").replace("drei: 3", "drei: 8"), encoding="utf-8")
    with pytest.raises(SlamkernError, match=r"predictions\.jsonl:1 is damaged"), PredictionLog(tmp_path, SETTINGS):
        pass


def test_a_run_that_answers_nothing_leaves_nothing(tmp_path):
    with PredictionLog(tmp_path / "out", SETTINGS):
        pass
    assert not (tmp_path / "out").exists()


GOOD = json.dumps(
    {"id": "a", "language": "de", "question": "?", "gold": "1", "output": "1", "prediction": 1, "correct": True}
)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (GOOD[:20], "not JSON"),
        (GOOD.replace('"prediction": 1', '"prediction": NaN'), "NaN is no number of JSON"),
        (GOOD.replace('"prediction": 1', '"prediction": true'), "prediction: Input should be a valid number, not True"),
        (GOOD.replace('"prediction": 1, ', ""), "prediction: Field required"),
        (GOOD.replace('"gold"', '"id": "b", "gold"'), "the key 'id' stands there twice"),
        (GOOD.replace('"?"', '"\\ud800"'), "surrogate"),
        ("[1, 2]", "not a JSON object but list"),
        (GOOD.replace('"gold": "1"', '"gold": 1'), "gold: Input should be a valid string, not 1"),
        (GOOD.replace('"output": "1", ', ""), "output: Field required"),
        (GOOD.replace("true", "1"), "correct: Input should be a valid boolean, not 1"),
        (GOOD, "question 'a' is answered twice"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path, line, complaint):
    path = tmp_path / "predictions.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n")
    with pytest.raises(SlamkernError) as error:
        read_predictions(path)
    assert f"{path}:3: " in str(error.value) and complaint in str(error.value)
