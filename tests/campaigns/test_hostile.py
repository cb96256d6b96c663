"""Models that mean harm are refused in one line or do none, within limits of time and memory.

All cases: ``pytest -m campaign tests/campaigns/test_hostile.py``, counted in ``results/hostile.json``. Those that need
no second are ordinary tests.
"""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from campaigns.hostile import FOLDERS, GGUF, MEGABYTES, SECONDS, judged
from campaigns.model_readers import gguf_example

from slamkern.files import write_json

CLEAN = {"refused", "harmless"}
QUICK = (
    "code of a model", "code of a tokenizer", "link of the tokenizer to a device", "NaN in the norm", "10^9 layers",
    "a vocabulary of 10^8", "a width of 2^40", "a header of 2^63 bytes", "attributes",
)  # fmt: skip
QUICK_GGUF = ("2^62 tensors", "2^62 keys", "a context of 2^32", "2^32 layers", "10^9 tokens", "cut at 50 %")


def judge_folder(name: str, model_folder: Path, place: Path) -> dict[str, Any]:
    folder = Path(shutil.copytree(model_folder, place / "model"))
    FOLDERS[name](folder)
    return judged(folder)


def judge_gguf(name: str, place: Path) -> dict[str, Any]:
    path = place / "model.gguf"
    path.write_bytes(GGUF[name](gguf_example()))
    return judged(path)


@pytest.mark.parametrize("name", QUICK)
def test_a_folder_is_refused_or_harmless(name: str, model_folder: Path, tmp_path: Path) -> None:
    result = judge_folder(name, model_folder, tmp_path)
    assert result["outcome"] in CLEAN and result["seconds"] < SECONDS, result


@pytest.mark.parametrize("name", QUICK_GGUF)
def test_a_gguf_file_is_refused(name: str, tmp_path: Path) -> None:
    assert judge_gguf(name, tmp_path)["outcome"] == "refused"


def test_the_judge_sees_code_that_ran_and_errors_of_several_lines(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_code(path: str, **_: Any) -> Any:
        (Path(path) / "touched").touch()
        raise ValueError

    monkeypatch.setattr("campaigns.hostile.load_model", run_code)
    assert judge_folder("code of a model", model_folder, tmp_path)["outcome"] == "code was run"
    (tmp_path / "model" / "touched").unlink()
    monkeypatch.setattr("campaigns.hostile.load_model", lambda *_, **__: 1 / 0)
    assert judged(tmp_path / "model")["outcome"] == "traceback"


@pytest.mark.campaign
def test_all_of_them(model_folder: Path, tmp_path: Path) -> None:
    cases: dict[str, Any] = {}
    for name in FOLDERS:
        cases[name] = judge_folder(name, model_folder, tmp_path / name.replace("/", " "))
    for name in GGUF:
        (place := tmp_path / f"gguf {name}").mkdir()
        cases[f"GGUF: {name}"] = judge_gguf(name, place)
    for case in cases.values():
        case["message"] = case["message"].replace(str(tmp_path), "")
    outcomes = Counter(case["outcome"] for case in cases.values())
    result = {
        "cases": len(cases), "outcomes": dict(outcomes), "seconds_allowed": SECONDS, "megabytes_allowed": MEGABYTES,
        "by_case": cases,
    }  # fmt: skip
    write_json(Path(__file__).parent / "results" / "hostile.json", result)
    assert set(outcomes) <= CLEAN, result
