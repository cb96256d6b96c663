"""slamkern.train on models in PEFT's wrappers: adapters are what is trained and saved, virtual tokens are refused."""

import pytest
import torch
from support.tiny_models import tiny_model
from support.tiny_training import SELECTION

import slamkern

peft = pytest.importorskip("peft")
UP_DOWN = {"task_type": "CAUSAL_LM", "target_modules": ["up_proj", "down_proj"]}
KINDS = {
    "lora": lambda: peft.LoraConfig(**UP_DOWN, r=2),
    "dora": lambda: peft.LoraConfig(**UP_DOWN, r=2, use_dora=True),
    "ia3": lambda: peft.IA3Config(**UP_DOWN, feedforward_modules=["down_proj"]),
    "head": lambda: peft.LoraConfig(**UP_DOWN, r=2, modules_to_save=["lm_head"]),
}


def wrapped(kind):
    torch.manual_seed(0)
    return peft.get_peft_model(tiny_model(), KINDS[kind]())


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_train_patched_as_unpatched_and_load_into_a_fresh_wrapper(kind, fit, tmp_path):
    _, expected = fit(model=wrapped(kind))
    model = slamkern.patch_model(wrapped(kind))
    adapters = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    _, result = fit(model=model, out=tmp_path)
    assert result.losses == pytest.approx(expected.losses, rel=1e-4) and result.loss_last < result.loss_first
    after = model.state_dict()
    assert {name for name, tensor in after.items() if not torch.equal(tensor, before[name])} == adapters
    assert result.trained_parameters == sum(after[name].numel() for name in adapters)
    fresh = wrapped(kind)
    assert set(slamkern.load_delta(fresh, tmp_path)) == adapters
    assert all(torch.equal(tensor, after[name]) for name, tensor in fresh.state_dict().items())


def test_virtual_tokens_are_refused(fit):
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with pytest.raises(slamkern.SlamkernError, match="PromptTuningConfig puts virtual tokens before each sequence"):
        fit(model=peft.get_peft_model(tiny_model(), config))


def test_single_neurons_are_not_counted_beside_their_whole_weights(fit):
    model = slamkern.patch_model(tiny_model())
    total = sum(parameter.numel() for parameter in model.parameters())
    slamkern.apply_selection(model, slamkern.LayerSelection(layers=SELECTION.layers, neurons={0: (1, 2), 2: (5,)}))
    _, result = fit(model=model)
    assert result.total_parameters == total and result.trained_parameters == 3 * 2 * 32
