"""slamkern verify: a whole run passes; whatever is changed in any of its files is named, or changed nothing."""

import shutil
from pathlib import Path

import pytest
from support.tiny_run import tiny_run

from slamkern.cli.main import main
from slamkern.errors import SlamkernError
from slamkern.pipeline import run
from slamkern.pipeline.verify import verify


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    run.run(tiny_run(folder), folder / "run", progress=False)
    return folder / "run"


def test_a_finished_run_passes(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, problems = verify(finished)
    names = {str(path.relative_to(finished)) for path in good}
    assert not problems
    assert {"stats.safetensors", "selection.json", "run.json", "metrics.json", "train/delta.safetensors",
            "train/metrics.jsonl", "train/checkpoint-3/training-state.safetensors",
            "evaluation/after/predictions.jsonl"} <= names  # fmt: skip
    assert main(["verify", str(finished)]) == 0
    assert f"{len(good)} files are what was written, 0 are not" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name",
    ["stats.safetensors", "selection.json", "run.json", "metrics.json", "evaluation/before.json",
     "evaluation/after/predictions.jsonl", "evaluation/after/evaluation.json", "train/run.json",
     "train/delta.safetensors", "train/checkpoint-3/training-state.safetensors"],
)  # fmt: skip
def test_a_changed_byte_is_found(finished: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "run"))
    content = bytearray((copy / name).read_bytes())
    digits = [index for index, byte in enumerate(content) if byte in b"123456"] if name.endswith("json") else []
    place = digits[len(digits) // 2] if digits else len(content) // 2
    content[place] ^= 1
    (copy / name).write_bytes(content)
    _, problems = verify(copy)
    assert any(name.rpartition("/")[2] in problem or "predictions" in problem for problem in problems), problems
    assert main(["verify", str(copy)]) == 1


def test_missing_steps_and_foreign_folders_are_named(finished: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "run"))
    log = copy / "train" / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:2]))
    assert verify(copy)[1] == [f"{log}: holds 2 steps of a finished run of 3"]
    (tmp_path / "other").mkdir()
    with pytest.raises(SlamkernError, match="no file that slamkern writes"):
        verify(tmp_path / "other")
