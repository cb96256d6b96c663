"""Files of strangers beside a model's weights: those that would be read unnoticed, or waited for, are refused."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from support.tiny_causal_lm import tiny_tokenizer

from slamkern.errors import SlamkernError
from slamkern.pipeline.loading import load_config_of, load_model

SHARD = "model-00001-of-00001.safetensors"


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def shard(folder: Path, name: str = SHARD, index: str = "model.safetensors.index.json") -> None:
    """The weights in a file of this name, with an index that says so."""
    names = dict.fromkeys(load_file(folder / "model.safetensors"), name)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").rename(folder / name)
    (folder / index).parent.mkdir(exist_ok=True)
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names}))


def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The folder as the hub's model ``stranger/model`` in a cache of its own."""
    from huggingface_hub import constants

    cached = tmp_path / "hub/models--stranger--model"
    shutil.copytree(folder, cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return "stranger/model"


@pytest.mark.parametrize("hosted", [False, True])
def test_an_adapter_beside_the_weights(
    hosted: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT puts its own account of the weights in place of transformers', which tells those that are missing."""
    (folder / "adapter_config.json").write_text("{}")
    spec = hub(folder, tmp_path, monkeypatch) if hosted else str(folder)
    for load in (load_model, load_config_of):
        with pytest.raises(SlamkernError, match=r"holds an adapter \(adapter_config.json\).*slamkern delta fold"):
            load(spec)


@pytest.mark.parametrize("hosted", [False, True])
def test_shards_beside_their_index(hosted: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load_model(str(folder))[0].state_dict()
    shard(folder)
    model, _ = load_model(hub(folder, tmp_path, monkeypatch) if hosted else str(folder))
    assert all((tensor == expected[name]).all() for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("hosted", [False, True])
@pytest.mark.parametrize("name", ["parts/x.safetensors", "../outside/x.safetensors"])
def test_shards_elsewhere(
    name: str, hosted: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard(folder, name)
    with pytest.raises(SlamkernError, match=rf"index.json names the file '{name}'; expected a name beside it"):
        load_model(hub(folder, tmp_path, monkeypatch) if hosted else str(folder))


@pytest.mark.parametrize("values", [[], {"weight_map": []}, {"weight_map": {"a": 1}}])
def test_an_index_that_is_none(values: Any, folder: Path) -> None:
    shard(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps(values))
    with pytest.raises(SlamkernError, match=r"index.json has no weight_map from names of weights to names of files"):
        load_model(str(folder))


def test_a_shard_that_is_a_pipe(folder: Path) -> None:
    shard(folder)
    (folder / SHARD).unlink()
    os.mkfifo(folder / SHARD)
    with pytest.raises(SlamkernError, match=rf"{SHARD} is no regular file"):
        load_model(str(folder))


def test_weights_that_the_configuration_names(folder: Path) -> None:
    shard(folder, index="other.safetensors.index.json")
    change_json(folder / "config.json", transformers_weights="other.safetensors.index.json")
    load_model(str(folder))
    shutil.copytree(folder, folder / "inner")
    for name in ("inner/other.safetensors.index.json", "adapter_model.bin"):
        change_json(folder / "config.json", transformers_weights=name)
        with pytest.raises(SlamkernError, match=rf"config.json names the file '{name}'; expected a name beside it"):
            load_model(str(folder))
    os.mkfifo(folder / "pipe.safetensors")
    change_json(folder / "config.json", transformers_weights="pipe.safetensors")
    with pytest.raises(SlamkernError, match=r"pipe\.safetensors is no regular file"):
        load_model(str(folder))


def test_a_link_or_a_pipe_among_the_chat_templates(folder: Path, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"default": "{{messages}}", "tool_use": "x{{messages}}"}
    tokenizer.save_pretrained(folder)
    assert load_model(str(folder))[1].chat_template == tokenizer.chat_template
    (tmp_path / "secret").write_text("secret")
    template = folder / "additional_chat_templates/tool_use.jinja"
    template.unlink()
    template.symlink_to(tmp_path / "secret")
    with pytest.raises(SlamkernError, match=r"tool_use.jinja is a link to .*secret, outside of the model's folder"):
        load_model(str(folder))
    template.unlink()
    os.mkfifo(template)
    with pytest.raises(SlamkernError, match=r"tool_use\.jinja is no regular file"):
        load_model(str(folder))


@pytest.mark.parametrize("ends", ["</s>", [1, "a"], [1, 10**30], True, 1.5, {"a": 1}])
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_ids_of_the_end_that_are_none(ends: Any, file: str, folder: Path) -> None:
    if file == "config.json":
        (folder / "generation_config.json").unlink()
    change_json(folder / file, eos_token_id=ends)
    with pytest.raises(SlamkernError, match="eos_token_id"):
        load_model(str(folder))


@pytest.mark.parametrize("ends", [None, 1, [1, 2], [1, 10**9]])
def test_ids_of_the_end(ends: Any, folder: Path) -> None:
    change_json(folder / "generation_config.json", eos_token_id=ends)
    assert load_model(str(folder))[0].generation_config.eos_token_id == ends
