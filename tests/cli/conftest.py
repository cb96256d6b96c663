"""A model folder, and what probe, select and train as commands make of it."""

from pathlib import Path

import pytest
from support.commands import SMALL

from slamkern.cli.main import main


@pytest.fixture(scope="session")
def model(model_folder: Path) -> str:
    return str(model_folder)


@pytest.fixture(scope="session")
def work(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """probe, select and train as commands, each in a folder of its own."""
    work = tmp_path_factory.mktemp("work")
    data = ["--data", "corpus:", *SMALL]
    assert main(["probe", "--model", model, *data, "--out", str(work / "probe")]) == 0
    assert main(["select", str(work / "probe"), "-k", "1", "--region", "all", "--out", str(work / "selection")]) == 0
    arguments = ["--model", model, *data, "--selection", str(work / "selection"), "--out", str(work / "train")]
    recipe = ["-s", "train.max_steps=2", "-s", "train.learning_rate=0.01", "-s", "train.prompt=authors"]
    assert main(["train", *arguments, *recipe]) == 0
    return work
