"""Fused classes on single instances: they pickle, and come off whatever others made of the instance meanwhile."""

import io
import pickle
import subprocess
import sys

import pytest
import torch
from support.tiny_models import tiny_model
from torch import nn
from torch.nn.utils import parametrize

import slamkern
from slamkern.modules.ffn import Fused
from slamkern.modules.rmsnorm import FusedNorm


def logits(model, input_ids):
    with torch.no_grad():
        return model(input_ids=input_ids).logits


@pytest.mark.usefixtures("one_process")
def test_a_sharded_ffn_is_unpatched_and_stays_sharded(llama, input_ids):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    expected = logits(slamkern.patch_model(llama), input_ids)
    for layer in llama.model.layers:
        fully_shard(layer.mlp, mesh=init_device_mesh("cpu", (1,)))
    torch.testing.assert_close(logits(llama, input_ids), expected)
    slamkern.unpatch_model(llama)
    torch.testing.assert_close(logits(llama, input_ids), expected)
    assert not any(isinstance(module, Fused | FusedNorm) for module in llama.modules())
    assert all(isinstance(layer.mlp, FSDPModule) for layer in llama.model.layers)
    # And the other way round: what is sharded already is found and fused.
    torch.testing.assert_close(logits(slamkern.patch_model(llama), input_ids), expected)
    assert all(row.fused for row in slamkern.explain(llama))


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_a_parametrized_norm_is_unpatched_and_stays_parametrized(llama, input_ids):
    slamkern.patch_model(llama)
    parametrize.register_parametrization(llama.model.norm, "weight", Doubled())
    expected = logits(llama, input_ids)
    slamkern.unpatch_model(llama)
    assert not isinstance(llama.model.norm, FusedNorm)
    torch.testing.assert_close(logits(llama, input_ids), expected)
    parametrize.remove_parametrizations(llama.model.norm, "weight", leave_parametrized=False)
    assert type(llama.model.norm) is type(llama.model.layers[0].input_layernorm)
    assert not torch.allclose(logits(llama, input_ids), expected)


def test_a_class_that_others_put_in_place_of_ours_is_left(llama, input_ids):
    expected = logits(slamkern.patch_model(llama), input_ids)
    kind = type(tiny_model().model.norm)
    llama.model.norm.__class__ = kind
    slamkern.unpatch_model(llama)
    assert type(llama.model.norm) is kind
    torch.testing.assert_close(logits(llama, input_ids), expected)


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_a_pickled_model_loads_patched_in_a_fresh_process(family, input_ids, tmp_path):
    model = slamkern.patch_model(tiny_model(family))
    expected = logits(model, input_ids)
    again = pickle.loads(pickle.dumps(model))
    assert all(row.fused for row in slamkern.explain(again))
    assert torch.equal(logits(again, input_ids), expected)
    torch.save(model, tmp_path / "model.pt")
    torch.save({"ids": input_ids, "logits": expected}, tmp_path / "expected.pt")
    code = f"""
import torch
model = torch.load({str(tmp_path / "model.pt")!r}, weights_only=False)
expected = torch.load({str(tmp_path / "expected.pt")!r})
with torch.no_grad():
    assert torch.equal(model(input_ids=expected["ids"]).logits, expected["logits"])
import slamkern
assert all(row.fused for row in slamkern.explain(model))
slamkern.unpatch_model(model)
assert not any(row.fused for row in slamkern.explain(model))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_selected_neurons_are_pickled_with_the_model(llama, input_ids):
    slamkern.patch_model(llama)
    selection = slamkern.LayerSelection((1,), neurons={1: (3, 5)})
    (up, _) = slamkern.apply_selection(llama, selection)
    with torch.no_grad():
        up.parameter.add_(1.0)
    file = io.BytesIO()
    torch.save(llama, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(logits(again, input_ids), logits(llama, input_ids))
    assert again.model.layers[1].mlp.slamkern_ffn.trained.neurons.tolist() == [3, 5]
