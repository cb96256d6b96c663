"""Configuration: one set of defaults, overrides in order, and errors that name the key and its nearest neighbour."""

from dataclasses import fields
from pathlib import Path

import pytest

from slamkern.errors import SlamkernError
from slamkern.pipeline.config import SECTIONS, RunConfig, build_config, difference, load_config
from slamkern.training.config import TrainConfig


def test_train_section_is_the_recipe() -> None:
    assert set(SECTIONS["train"].model_fields) == {field.name for field in fields(TrainConfig)} - {"output_dir"}
    assert RunConfig().train_config() == TrainConfig()


def test_file_then_overrides(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        'data: {path: "corpus:", languages: [de, fr]}\nselect: {k: 4}\ntrain:\n  learning_rate: 1.0e-4\nprobe:\n'
    )
    config = load_config(path, ["select.k=2", "train.learning_rate=2e-3", "data.path=corpus:50", "select.k=3"])
    assert config.select.k == 3
    assert config.train_config().learning_rate == 2e-3
    assert config.data.path == "corpus:50"
    assert config.data.languages == ("de", "fr")
    assert load_config(None, ["data.path=corpus:"]).data.path == "corpus:"  # YAML alone would take it for a mapping
    assert load_config(None, ["evaluate.task=null"]).evaluate.task is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("selct: {k: 3}", r"run.yaml: unknown key 'selct'; did you mean select\?"),
        ("train: {learning_rat: 1}", r"run.yaml: unknown key 'train.learning_rat'; did you mean train.learning_rate\?"),
        ("probe: {zzz: 1}", r"run.yaml: unknown key 'probe.zzz'; known: task, path"),
        ("select: {k: three}", r"run.yaml: select.k: .*integer.*'three'"),
        ("select: {k: 0}", r"run.yaml: select.k: .*greater than or equal to 1, not 0"),
        ("train: {num_train_epochs: 0}", r"run.yaml: train: num_train_epochs is 0"),
        ("train: [1]", r"run.yaml: section 'train' must hold"),
        ("- a", r"run.yaml: expected sections"),
        ("a: [", r"run.yaml: not YAML"),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(SlamkernError, match=message) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("select.kk=3", r"--set: unknown key 'select.kk'; did you mean select.k\?"),
        ("k=3", r"--set 'k=3': write section.key=value"),
        ("select.k", r"--set 'select.k': write section.key=value"),
    ],
)
def test_mistakes_in_an_override(override: str, message: str) -> None:
    with pytest.raises(SlamkernError, match=message):
        load_config(None, [override])


def test_missing_file() -> None:
    with pytest.raises(SlamkernError, match=r"no configuration file nowhere\.yaml"):
        load_config("nowhere.yaml")


def test_fingerprint_and_difference() -> None:
    first, same, other = (build_config({"select": {"k": k}}) for k in (3, 3, 4))
    assert first.fingerprint() == same.fingerprint() != other.fingerprint()
    dumps = [config.model_dump(mode="json") for config in (first, same, other)]
    assert difference(dumps[0], dumps[1]) is None
    assert difference(dumps[0], dumps[2]) == "select.k was 3, now 4"
