"""slamkern verify on a bake-off: every file of every cell is read, what is left to do is said, damage is named."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.changed_bytes import change_each_byte
from support.tiny_bakeoff import in_one_process, tiny_bakeoff

from slamkern.bakeoff import supervisor
from slamkern.bakeoff.verify import verify
from slamkern.cli.main import main
from slamkern.files import read_checked, write_checked

LOW = "cells/low/seed-0"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bakeoff")
    with pytest.MonkeyPatch.context() as monkeypatch:
        in_one_process(monkeypatch)
        cells = [{"name": "low", "layers": "active_msd:1"}, {"name": "snr", "layers": "weight_snr:1"}]
        assert supervisor.run(tiny_bakeoff(folder, cells), folder / "out", say=lambda _: None) == []
    return folder / "out"


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "out"))


def test_a_finished_bake_off_passes_and_an_unfinished_one_says_what_is_left(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, problems, to_do = verify(copy)
    names = {str(path.relative_to(copy)) for path in good}
    assert not problems and not to_do
    assert names >= {"bakeoff.json", "replies.json", "stats.safetensors", "weight_snr.json", f"{LOW}/screen.json",
                     f"{LOW}/train/delta.safetensors", f"{LOW}/train/facts.json", f"{LOW}/train/metrics.jsonl",
                     f"{LOW}/screen/predictions.jsonl", f"{LOW}/screen/evaluation.json"}  # fmt: skip
    (copy / LOW / "screen.json").unlink()
    assert main(["verify", str(copy)]) == 0
    assert "still to do, 1: low-0-screen" in capsys.readouterr().out


def test_a_changed_byte_is_found_in_every_file(copy: Path) -> None:
    change_each_byte(verify(copy)[0], lambda: verify(copy)[1])
    assert main(["verify", str(copy)]) == 1


def _values(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        values = read_checked(folder / name)
        change(values)
        write_checked(folder / name, {key: value for key, value in values.items() if key != "sha256"})

    return plant


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (_values(f"{LOW}/screen.json", lambda v: v.update(cell="snr")), "is of cell 'snr' with seed 0"),
        (_values(f"{LOW}/screen.json", lambda v: v["training"].update(steps=9)), "training in"),
        (_values(f"{LOW}/screen.json", lambda v: v.update(english_loss=-1.0)), "english_loss"),
        (_values(f"{LOW}/screen.json", lambda v: v["evaluation"].update(average=0.5)), "has other scores than"),
        (_values("weight_snr.json", lambda v: v.update(scores=["high"])), "holds no scores of layers"),
        (_values("bakeoff.json", lambda v: v.update(base_weights="0" * 64)), "is of other weights than the base model"),
        (lambda folder: shutil.rmtree(folder / LOW / "screen"), "evaluation.json is gone"),
        (lambda folder: (folder / "bakeoff.json").unlink(), "bakeoff.json"),
    ],
)
def test_what_does_not_belong_together_is_named(copy: Path, plant: Callable[[Path], None], words: str) -> None:
    plant(copy)
    problems = verify(copy)[1]
    assert len(problems) == 1 and words in problems[0], problems
