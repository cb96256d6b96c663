import copy

import pytest
import torch
from support.tiny_models import tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from slamkern.errors import SlamkernError
from slamkern.modules.patch import patch_model
from slamkern.training.export import export_model


@pytest.mark.parametrize("family", ["llama", "gemma2"])  # gemma2 ties its head to its embeddings
@pytest.mark.parametrize("fused", [False, True])
def test_export_loads_with_transformers_alone(family, fused, tmp_path, input_ids, tiny_tokenizer):
    model = tiny_model(family)
    if fused:
        patch_model(model)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_model(model, tiny_tokenizer, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    with torch.no_grad():
        ours = tiny_model(family)(input_ids).logits
        assert torch.equal(loaded(input_ids).logits, ours)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("a b")["input_ids"] == tiny_tokenizer("a b")["input_ids"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_tokenizer_with_several_chat_templates(tmp_path, llama, tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = {"default": "{{messages}}", "tool_use": "x{{messages}}"}
    export_model(llama, tokenizer, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == tokenizer.chat_template


def test_an_existing_folder_is_refused_and_an_empty_one_is_used(tmp_path, llama, tiny_tokenizer):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("mine")
    with pytest.raises(SlamkernError, match="not an empty folder"):
        export_model(llama, tiny_tokenizer, tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes"]
    (tmp_path / "empty").mkdir()
    assert (export_model(llama, tiny_tokenizer, tmp_path / "empty") / "config.json").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, llama, tiny_tokenizer, value):
    with torch.no_grad():
        llama.model.layers[3].mlp.down_proj.weight[1, 2] = value
    with pytest.raises(SlamkernError, match=r"layers\.3\.mlp\.down_proj\.weight holds .*not finite; nothing was exp"):
        export_model(llama, tiny_tokenizer, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_meta_weights_are_refused(tmp_path, tiny_tokenizer):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_model().config)
    with pytest.raises(SlamkernError, match="meta"):
        export_model(model, tiny_tokenizer, tmp_path / "out")
    assert not list(tmp_path.iterdir())
