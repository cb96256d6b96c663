"""Deltas of wrapped models: they have the names of the plain model, and load into either."""

import pytest
import torch
from support.tiny_models import tiny_model
from torch import nn

from slamkern.modules.patch import patch_model
from slamkern.schemas.training import read_delta
from slamkern.selection.layers import LayerSelection
from slamkern.selection.trainable import apply_selection
from slamkern.training.checkpoint import load_delta, save_delta
from slamkern.training.names import plain_names


def with_adapters(model):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "up_proj"], r=2))


def with_a_head_to_save(model):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["down_proj"], r=2, modules_to_save=["lm_head"])
    return peft.get_peft_model(model, config)


WRAPPERS = {
    "compile": torch.compile,
    "ddp": nn.parallel.DistributedDataParallel,
    "ddp of compiled": lambda model: nn.parallel.DistributedDataParallel(torch.compile(model)),
    "peft": with_adapters,
    "peft and a head": with_a_head_to_save,
    "compiled peft": lambda model: torch.compile(with_adapters(model)),
}


@pytest.mark.parametrize("neurons", [None, {1: (2, 3)}], ids=["whole", "neurons"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_delta_of_a_wrapped_model_is_one_of_the_plain_model(wrapper, neurons, one_process, tmp_path):
    plain, selection = patch_model(tiny_model()), LayerSelection((1,), neurons=neurons)
    for trainable in apply_selection(plain, selection):
        trainable.parameter.data.add_(0.5)
    save_delta(plain, tmp_path / "plain", selection)

    model = patch_model(tiny_model())
    apply_selection(model, selection)  # DistributedDataParallel wants something to train
    model = WRAPPERS[wrapper](model)
    for trainable in apply_selection(model, selection):
        trainable.parameter.data.add_(0.5)
    save_delta(model, tmp_path / "wrapped", selection)
    (_, tensors, metadata), (_, stored, about) = (read_delta(tmp_path / name) for name in ("wrapped", "plain"))
    assert sorted(tensors) == sorted(stored) and metadata == about
    fresh = tiny_model()
    load_delta(fresh, tmp_path / "wrapped")
    expected = plain.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in fresh.state_dict().items())

    again = WRAPPERS[wrapper](patch_model(tiny_model()))
    names = plain_names(again)
    loaded = [name.removesuffix("@neurons") for name in load_delta(again, tmp_path / "plain")]
    assert {names[name] for name in loaded} == {
        f"model.layers.1.mlp.{projection}_proj.weight" for projection in ("up", "down")
    }
    state = {names[name]: tensor for name, tensor in again.state_dict().items() if name in names}
    assert all(torch.equal(tensor, state[name]) for name, tensor in expected.items())
