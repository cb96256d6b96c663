"""Single neurons, and halves of a weight, in whose place others put tensors: functional_call, loading, FSDP2."""

import os

import pytest
import torch
from support.processes import launch
from support.tiny_models import tiny_model
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import slamkern
from slamkern.selection.layers import LayerSelection
from slamkern.selection.trainable import trainable_tensors

SINGLE = LayerSelection((1, 3), num_layers=4, neurons={1: (3, 17, 40), 3: (0, 47)})


def neurons_of(family="llama"):
    """A patched model, of whose layers 1 and 3 single neurons (of Phi-3 the up half) are trained, and their names."""
    model = slamkern.patch_model(tiny_model(family))
    slamkern.apply_selection(model, SINGLE if family == "llama" else [1, 3])
    return model, [name for name, parameter in model.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_tensors_that_a_functional_call_puts_in_their_place_are_computed_with(family, input_ids):
    reference, names = neurons_of(family)
    model, _ = neurons_of(family)
    inputs = {"input_ids": input_ids, "labels": input_ids}
    # The backward of the first runs after the forward of the second.
    moved = [{name: (model.get_parameter(name).detach() + by).requires_grad_() for name in names} for by in (0.1, 0.2)]
    losses = [torch.func.functional_call(model, tensors, kwargs=inputs).loss for tensors in moved]
    for loss, tensors in zip(losses, moved, strict=True):
        with torch.no_grad():
            for name, tensor in tensors.items():
                reference.get_parameter(name).copy_(tensor)
        reference.zero_grad()
        expected = reference(**inputs).loss
        expected.backward()
        torch.testing.assert_close(loss, expected)
        for name, gradient in zip(names, torch.autograd.grad(loss, list(tensors.values())), strict=True):
            torch.testing.assert_close(gradient, reference.get_parameter(name).grad, msg=name)


@pytest.mark.parametrize("family", ["llama", "phi3"])
@pytest.mark.parametrize("how", ["assign", "conversion"])
def test_parameters_that_replaced_them_are_trained_and_saved(family, how, input_ids, monkeypatch):
    model, names = neurons_of(family)
    if how == "assign":
        model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()}, assign=True)
    else:
        monkeypatch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
        model.double()
    named = dict(model.named_parameters())
    assert [id(t.parameter) for t in trainable_tensors(model)] == [id(named[name]) for name in names]
    before = model.state_dict()["model.layers.1.mlp.down_proj.weight"].clone()
    first = model(input_ids=input_ids, labels=input_ids).loss
    first.backward()
    torch.optim.SGD([named[name] for name in names], lr=1.0).step()
    assert float(model(input_ids=input_ids, labels=input_ids).loss) < float(first) - 0.05
    changed = (model.state_dict()["model.layers.1.mlp.down_proj.weight"] != before).any(0).nonzero().squeeze(1)
    assert changed.tolist() == ([3, 17, 40] if family == "llama" else list(range(48)))


@pytest.mark.parametrize("family", ["llama", "phi3"])
@pytest.mark.parametrize("processes", [1, 2])
def test_sharded_by_fsdp_they_train_and_are_saved_and_loaded(family, processes, input_ids):
    def run(mesh=None):
        model, names = neurons_of(family)
        if mesh is not None:
            for module in (*model.model.layers, model):
                fully_shard(module, mesh=mesh)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
        losses = []
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(input_ids=input_ids, labels=input_ids).loss
            loss.backward()
            losses.append(float(loss))
            optimizer.step()
        whole = StateDictOptions(full_state_dict=True)
        trained = {name: tensor.clone() for name, tensor in get_model_state_dict(model, options=whole).items()}
        set_model_state_dict(model, tiny_model(family).state_dict(), options=whole)
        losses.append(float(model(input_ids=input_ids, labels=input_ids).loss))
        return losses, trained, set(names)

    def sharded(_):
        torch.distributed.init_process_group("gloo", rank=int(os.environ["RANK"]), world_size=processes)
        return run(init_device_mesh("cpu", (processes,)))

    losses, trained, _ = run()
    for found in launch(processes, sharded):
        assert found[0] == pytest.approx(losses, rel=1e-5) and losses[3] == pytest.approx(losses[0], rel=1e-6)
        assert found[1].keys() == trained.keys()
        for name, tensor in trained.items():
            torch.testing.assert_close(found[1][name], tensor, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.usefixtures("one_process")
def test_of_a_sharded_model_they_are_neither_chosen_nor_let_go(llama):
    slamkern.patch_model(llama)
    for layer in llama.model.layers:
        fully_shard(layer)
    before = [parameter.requires_grad for parameter in llama.parameters()]
    with pytest.raises(slamkern.SlamkernError, match=r"layers\.1\.mlp is sharded; choose its trained neurons before"):
        slamkern.apply_selection(llama, SINGLE)
    assert [parameter.requires_grad for parameter in llama.parameters()] == before
    model, names = neurons_of()
    for layer in model.model.layers:
        fully_shard(layer)
    for undo in (slamkern.unpatch_model, lambda model: slamkern.apply_selection(model, [0])):
        with pytest.raises(slamkern.SlamkernError, match=r"sharded; .*, or load the model anew"):
            undo(model)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == names


def test_a_half_whose_weight_has_an_adapter_is_refused(input_ids):
    peft = pytest.importorskip("peft")
    model, _ = neurons_of("phi3")
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["gate_up_proj"], r=2))
    with pytest.raises(slamkern.SlamkernError, match="needs its own Linear projections"):
        model(input_ids=input_ids)
