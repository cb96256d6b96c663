"""LoRA on a selection, a delta as an adapter and back, with PEFT itself."""

import copy
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.tiny_models import tiny_model
from support.tiny_training import CONFIG

import slamkern
from slamkern.integrations.lora import delta_to_lora, lora_config, lora_to_delta

peft = pytest.importorskip("peft")


def trained_delta(family, folder):
    """A delta of rank 2 in layers 0 and 2; returns the trained model."""
    model = tiny_model(family)
    drawn = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for trainable in slamkern.apply_selection(model, [0, 2]):
            rows, columns = trainable.parameter.shape
            change = torch.randn(rows, 2, generator=drawn) @ torch.randn(2, columns, generator=drawn)
            trainable.parameter.add_(0.1 * change)
    slamkern.save_delta(model, folder)
    return model


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_delta_becomes_an_adapter_and_a_delta_again(family, tmp_path, input_ids):
    expected = trained_delta(family, tmp_path / "delta")
    base = tiny_model(family)
    before = copy.deepcopy(base.state_dict())
    assert delta_to_lora(base, tmp_path / "delta", tmp_path / "adapter", 2) < 1e-9
    assert 0.1 < delta_to_lora(base, tmp_path / "delta", tmp_path / "less", 1) < 0.9
    assert delta_to_lora(base, tmp_path / "delta", tmp_path / "more", 40) < 1e-9  # more than the width of 32
    for name in ("adapter", "more"):
        plain = peft.PeftModel.from_pretrained(tiny_model(family), tmp_path / name)
        with torch.no_grad():
            torch.testing.assert_close(
                plain(input_ids=input_ids).logits, expected(input_ids=input_ids).logits, rtol=1e-3, atol=1e-4
            )
    lora_to_delta(base, tmp_path / "adapter", tmp_path / "folded")
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    assert len(slamkern.load_delta(base, tmp_path / "folded")) == 4
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(base.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)
    with pytest.raises(slamkern.SlamkernError, match="exists"):
        lora_to_delta(base, tmp_path / "adapter", tmp_path / "folded")


def test_an_adapter_on_the_selection_trains_in_the_packed_loop(fit):
    model = slamkern.patch_model(tiny_model())
    selection = slamkern.LayerSelection(layers=(0, 2))
    wrapped = peft.get_peft_model(model, lora_config(model, selection, r=2, init_lora_weights=False))
    adapted = {name for name, p in wrapped.named_parameters() if p.requires_grad}
    expected = [
        f"base_model.model.model.layers.{i}.mlp.{x}_proj.lora_{ab}"
        for i in (0, 2)
        for x in ("up", "down")
        for ab in "AB"
    ]
    assert adapted == {f"{name}.default.weight" for name in expected}
    before = {name: tensor.clone() for name, tensor in wrapped.state_dict().items()}
    _, result = fit(CONFIG, model=wrapped)
    changed = {name for name, tensor in wrapped.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == adapted
    assert len(result.losses) and result.losses[-1] < result.losses[0]
    with pytest.raises(slamkern.SlamkernError, match=r"no FFN that slamkern knows in layers \[9\]"):
        lora_config(tiny_model(), [9])
    with pytest.raises(slamkern.SlamkernError, match="has no projection 'gate'"):
        lora_config(tiny_model("gpt2"), [0], ["gate"])


def test_other_towers_and_later_adapters():
    """Blocks of images have layers of the same numbers and names; of a wrapped model PEFT wants the paths inside."""
    sizes = {"hidden_size": 32, "intermediate_size": 48}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96, "num_hidden_layers": 3}
    config = transformers.Qwen2_5_VLConfig(
        text_config=sizes | heads | {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
        vision_config=sizes | {"depth": 3, "num_heads": 4, "out_hidden_size": 32, "fullatt_block_indexes": [1]},
    )
    model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    wrapped = peft.get_peft_model(model, lora_config(model, [1], r=2))
    wrapped.add_adapter("later", lora_config(wrapped, [2], r=2))
    adapted = {name.partition(".lora_")[0] for name, _ in wrapped.named_parameters() if ".lora_A" in name}
    start = "base_model.model.model.language_model.layers"
    assert adapted == {f"{start}.{layer}.mlp.{name}_proj" for layer in (1, 2) for name in ("up", "down")}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """An adapter that PEFT wrote, on up and down of layers 0 and 2."""
    folder, model = tmp_path_factory.mktemp("saved"), tiny_model()
    peft.get_peft_model(model, lora_config(model, [0, 2], r=2, init_lora_weights=False)).save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "adapter"))


def renamed(change):
    """Each of an adapter's weights under the names that ``change`` makes of its own."""

    def rename(adapter):
        tensors = load_file(adapter / "adapter_model.safetensors")
        tensors = {new: tensor.clone() for name, tensor in tensors.items() for new in change(name)}
        save_file(tensors, adapter / "adapter_model.safetensors")

    return rename


def pickled(adapter):
    tensors = load_file(adapter / "adapter_model.safetensors")
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(tensors, adapter / "adapter_model.bin")


def cut(adapter):
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:500])


def configured(text=None, **values):
    def configure(adapter):
        path = adapter / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values) if text is None else text)

    return configure


def pipe(adapter):
    (adapter / "adapter_model.safetensors").unlink()
    os.mkfifo(adapter / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (renamed(lambda name: [name] * ("layers.2" not in name)), r"lacks weights .*layers\.2\.mlp.* and 1 more$"),
        (
            renamed(lambda name: {name, name.replace("layers.2.", "layers.7.")}),
            r"no place for: .*layers\.7\.mlp.* and 1 more$",
        ),
        (pickled, r"adapter_model\.bin.* pickled; .*safetensors"),
        (cut, "cannot be merged into this model"),
        (pipe, r"adapter_model\.safetensors is no regular file"),
        (configured("[]"), r"adapter_config\.json is \[\]; expected an object"),
        (configured("[" * 200_000), "nested too deeply"),
        (configured(r="x"), "cannot be merged into this model"),
        (shutil.rmtree, r"holds no adapter_config\.json"),
    ],
)
def test_an_adapter_that_does_not_fit(damage, words, adapter, tmp_path):
    damage(adapter)
    with pytest.raises(slamkern.SlamkernError, match=words) as caught:
        lora_to_delta(tiny_model(), adapter, tmp_path / "folded")
    assert "\n" not in str(caught.value) and not (tmp_path / "folded").exists()
