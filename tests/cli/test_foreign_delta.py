"""A delta with a model that it was not trained on: every command refuses it in one line and writes nothing."""

from pathlib import Path

import pytest
from support.commands import arguments, fails
from support.tiny_causal_lm import save_folder, tiny_model

from slamkern.cli.main import main

# Configuration of the other model, and what is said.
OTHERS = {
    "narrower": ({"intermediate_size": 48}, "was trained on"),
    "shallower": ({"num_hidden_layers": 1}, "was trained on"),
    "other weights": ({"seed": 1}, "was trained on other weights than this model has"),
}
USES = ("evaluate", "export", "scale", "merge", "sweep", "lora")


@pytest.fixture(scope="module", params=OTHERS)
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A model folder, and what is said about a delta of ``work`` on it."""
    changes, words = OTHERS[request.param]
    folder = tmp_path_factory.mktemp("other")
    save_folder(folder, tiny_model(**changes))
    return str(folder), words


@pytest.mark.parametrize("name", USES)
def test_another_models_delta(
    name: str, other: tuple[str, str], work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "lora":
        pytest.importorskip("peft")
    model, words = other
    command = arguments(name, model, work, tmp_path / "out")
    if name == "evaluate":
        command += ["--delta", str(work / "train")]
    fails(command, capsys, words, "delta.safetensors", "load")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["scale", "merge", "sweep", "lora"])
def test_the_trained_model_is_not_the_base_of_its_own_delta(
    name: str, model: str, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Any scale would give the same model: that is said, and not that its weights are others than the base model's."""
    trained = tmp_path / "trained"
    assert main(arguments("export", model, work, trained)) == 0
    fails(arguments(name, str(trained), work, tmp_path / "out"), capsys, "has the weights of", "already")
    assert not (tmp_path / "out").exists()
