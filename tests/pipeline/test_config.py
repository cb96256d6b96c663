"""Configuration: one set of defaults, overrides in order, and errors that name the key and its nearest neighbor."""

from pathlib import Path

import pytest

from slamkern.errors import SlamkernError
from slamkern.pipeline.config import RunConfig, load_config
from slamkern.pipeline.recipes import RECIPES, recipe


def test_file_then_overrides(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        'data: {path: "corpus:", languages: [de, fr]}\nselect: {k: 4}\ntrain:\n  learning_rate: 1.0e-4\nprobe:\n'
    )
    config = load_config(path, ["select.k=2", "train.learning_rate=2e-3", "data.path=corpus:50", "select.k=3"])
    assert config.select.k == 3
    assert config.train.learning_rate == 2e-3
    assert config.data.path == "corpus:50"
    assert config.data.languages == ("de", "fr")
    assert load_config(None, ["data.path=corpus:"]).data.path == "corpus:"  # YAML alone would take it for a mapping
    assert load_config(None, ["evaluate.task=null"]).evaluate.task is None


def test_every_list_takes_a_bare_string() -> None:
    """A list that a new option brings is here too: by its type, not by its name."""
    bare = {"data": "de", "align": "reply", "probe": "de", "select": "up", "evaluate": "de"}
    for section, field in RunConfig.model_fields.items():
        for name, value in getattr(field.annotation, "model_fields", {}).items():
            if "tuple" in str(value.annotation):
                text = "1,2" if "int" in str(value.annotation) else bare[section]
                assert isinstance(
                    getattr(getattr(load_config(None, [f"{section}.{name}={text}"]), section), name), tuple
                )


def test_what_people_write_is_what_they_mean(tmp_path: Path) -> None:
    """Norwegian is no boolean, a bare word is a list of one, and an option's text is text even if it is a number."""
    options = {"model": {"name": "123"}, "data": {"languages": "de,no", "limit": None}, "select": {"k": 3}}
    config = load_config(None, ["data.languages=fr", "model.name=7", "evaluate.languages=no"], options)
    assert config.model.name == "123" and config.data.languages == ("de", "no") and config.select.k == 3
    assert config.evaluate.languages == ("no",)
    assert load_config(None, ["model.name=7"]).model.name == "7"
    several = ["align.target=reply,translation", "select.projections=down", "evaluate.questions=60,140"]
    config = load_config(None, several)
    assert config.align.target == ("reply", "translation") and config.select.projections == ("down",)
    assert config.evaluate.questions == (60, 140)
    (tmp_path / "run.yaml").write_text("data: {languages: [de, no], limit: 10}\ntrain: {learning_rate: 2e-5}\n")
    config = load_config(tmp_path / "run.yaml")
    assert config.data.languages == ("de", "no") and config.train.learning_rate == 2e-5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("selct: {k: 3}", r"run.yaml: unknown key 'selct'; did you mean select\?"),
        ("train: {learning_rat: 1}", r"run.yaml: unknown key 'train.learning_rat'; did you mean train.learning_rate\?"),
        ("probe: {zzz: 1}", r"run.yaml: unknown key 'probe.zzz'; known: task, data"),
        ("select: {k: three}", r"run.yaml: select.k: .*integer.*'three'"),
        ("select: {k: 0}", r"run.yaml: select.k: .*greater than or equal to 1, not 0"),
        ("train: {num_train_epochs: 0}", r"run.yaml: train: num_train_epochs is 0"),
        ("train: {output_dir: x}", r"run.yaml: unknown key 'train.output_dir'"),
        (
            "train: {max_steps: 2000000000}",
            r"run.yaml: train: max_steps is 2,000,000,000; it must be at most 1,000,000",
        ),
        ("train: {max_steps: true}", r"run.yaml: train.max_steps: .*valid integer, not True"),
        ("train: {max_steps: 1:30}", r"run.yaml: train.max_steps: .*valid integer, not '1:30'"),
        ("train: {learning_rate: .inf}", r"run.yaml: train.learning_rate: .*finite number, not inf"),
        ("train: {seed: 1, seed: 2}", r"run.yaml: not YAML: the key 'seed' stands there twice"),
        ("data: {limit: 2024-01-01}", r"run.yaml: data.limit: .*valid integer, not '2024-01-01'"),
        ("data: {limit: %s}" % ("9" * 5000), r"run.yaml: not YAML: a number of thousands of digits"),
        ("data: {languages: %s}" % ("[" * 100_000), r"run.yaml: .*nested too deeply"),
        ("data: {languages: [de, de]}", r"run.yaml: data.languages: de stands there twice"),
        ("data: {languages: [xx]}", r"run.yaml: data.languages: unknown language 'xx'"),
        ("data: {seed: 9223372036854775808}", r"run.yaml: data.seed: .*less than 9223372036854775808"),
        ("evaluate: {task: mgms}", r"run.yaml: evaluate.task: unknown task 'mgms'; known: mgsm"),
        ("model: {name: 123}", r"run.yaml: model.name: .*valid string, not 123"),
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
        ("data.languages=1", r"--set: data.languages: "),
        ("select.k", r"--set 'select.k': write section.key=value"),
    ],
)
def test_mistakes_in_an_override(override: str, message: str) -> None:
    with pytest.raises(SlamkernError, match=message):
        load_config(None, [override])


def test_missing_file() -> None:
    with pytest.raises(SlamkernError, match=r"no file nowhere\.yaml"):
        load_config("nowhere.yaml")


def test_recipes_are_configurations_that_everything_else_changes() -> None:
    configs = {name: load_config(None, ["align.target=reply,translation"], base=recipe(name)) for name in RECIPES}
    assert configs["reply"].align.target == ("reply", "translation") and configs["reply"].select.rule == "lowest"
    with pytest.raises(SlamkernError, match="no recipe 'best'; known: reply"):
        recipe("best")
