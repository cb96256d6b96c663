"""Arithmetic with deltas against the arithmetic itself, on weights of a tiny model."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from support.tiny_models import tiny_model

from slamkern.data.packing import Example
from slamkern.errors import SlamkernError
from slamkern.files import load_tensors, save_tensors
from slamkern.modules.patch import patch_model
from slamkern.selection.layers import LayerSelection
from slamkern.selection.trainable import apply_selection
from slamkern.training import delta
from slamkern.training.batches import mean_loss
from slamkern.training.checkpoint import load_delta, save_delta
from slamkern.training.delta import blend_deltas, read_change, revert_layers, sweep_scale
from slamkern.training.frozen import frozen_digests, trained_digests, trained_parts

NAMES = {layer: [f"model.layers.{layer}.mlp.{which}_proj.weight" for which in ("down", "up")] for layer in range(3)}


def trained(folder, layers=(0, 2), seed=1, neurons=None, dtype=torch.float32):
    """A delta of random changes; returns its folder."""
    model = patch_model(tiny_model().to(dtype))
    selection = LayerSelection(layers=layers, neurons=neurons)
    generator = torch.Generator().manual_seed(seed)
    tensors = apply_selection(model, selection)
    parts = trained_parts(model)
    base = frozen_digests(model, parts) | trained_digests(model, parts)
    with torch.no_grad():
        for tensor in tensors:
            tensor.parameter.add_(torch.randn(tensor.parameter.shape, generator=generator).to(dtype))
    save_delta(model, folder, selection, frozen=base)
    return folder


def weights(folder, dtype=torch.float32):
    """All weights of the base model with a delta in it (None: the base alone)."""
    model = tiny_model().to(dtype)
    if folder is not None:
        load_delta(model, folder)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scaling_is_between_base_and_trained_and_exact_at_both_ends(tmp_path, dtype):
    folder, model = trained(tmp_path / "a", dtype=dtype), tiny_model().to(dtype)
    base, full = weights(None, dtype), weights(folder, dtype)
    for scale in (0.0, 0.5, 1.0, 1.5):
        out = tmp_path / f"x{scale}"
        blend_deltas(model, [(folder, scale)], out)
        result = weights(out, dtype)
        for name in base:
            wanted = (base[name].double() + scale * (full[name].double() - base[name].double())).to(dtype)
            assert torch.equal(result[name], wanted), name
        assert scale not in (0.0, 1.0) or all(
            torch.equal(result[name], (base, full)[int(scale)][name]) for name in base
        )
        assert LayerSelection.load(out / "selection.json").layers == (0, 2)
    assert all(torch.equal(tensor, base[name]) for name, tensor in model.state_dict().items())


def test_merging_adds_the_changes_also_where_they_are_in_different_layers(tmp_path):
    first, second = trained(tmp_path / "a", (0, 2), 1), trained(tmp_path / "b", (1, 2), 2)
    blend_deltas(tiny_model(), [(first, 0.75), (second, 0.5)], tmp_path / "out")
    base, one, two, merged = (weights(folder) for folder in (None, first, second, tmp_path / "out"))
    for name in base:
        wanted = base[name] + 0.75 * (one[name] - base[name]) + 0.5 * (two[name] - base[name])
        torch.testing.assert_close(merged[name], wanted, rtol=1e-6, atol=1e-6)
    selection = LayerSelection.load(tmp_path / "out/selection.json")
    assert selection.layers == (0, 1, 2) and selection.rule == "merged"


def test_single_neurons_stay_single_neurons(tmp_path):
    few = {0: (3, 5), 2: (1, 2)}
    folder, same = trained(tmp_path / "a", neurons=few), trained(tmp_path / "b", neurons=few, seed=2)
    other = trained(tmp_path / "c", neurons={0: (3, 6), 2: (1, 2)})
    blend_deltas(tiny_model(), [(folder, 0.5), (same, 0.5)], tmp_path / "kept")
    assert load_file(tmp_path / "kept/delta.safetensors").keys() == load_file(folder / "delta.safetensors").keys()
    blend_deltas(tiny_model(), [(folder, 0.5), (other, 0.5)], tmp_path / "whole")
    names = load_file(tmp_path / "whole/delta.safetensors").keys()
    assert {*NAMES[0]} <= names and f"{NAMES[2][0]}@neurons" in names
    base, one, two, merged = (weights(path) for path in (None, folder, other, tmp_path / "whole"))
    for name in base:
        wanted = (base[name] + 0.5 * (one[name] - base[name]) + 0.5 * (two[name] - base[name])).float()
        torch.testing.assert_close(merged[name], wanted, rtol=1e-6, atol=1e-6)


def test_reverted_layers_are_those_of_the_base(tmp_path):
    folder = trained(tmp_path / "a", neurons={0: (3, 5), 2: (1,)})
    revert_layers(folder, [0], tmp_path / "out")
    base, full, result = (weights(path) for path in (None, folder, tmp_path / "out"))
    for name in base:
        assert torch.equal(result[name], full[name] if ".layers.2." in name else base[name]), name
    selection = LayerSelection.load(tmp_path / "out/selection.json")
    assert (selection.layers, selection.k, selection.neurons) == ((2,), 1, {2: (1,)})
    assert delta._layer("model.layers.11.mlp.up_proj.weight") == 11  # not layer 1


@pytest.mark.parametrize("neurons", [None, {0: (3, 5), 2: (1,)}])
def test_a_base_with_other_values_of_trained_weights_is_refused(tmp_path, neurons):
    folder, model = trained(tmp_path / "a", neurons=neurons), tiny_model()
    blend_deltas(tiny_model(), [(folder, 0.5)], tmp_path / "half")
    name = "model.layers.0.mlp.up_proj.weight"
    with torch.no_grad():
        model.get_parameter(name)[3, 7] += 1e-3
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    words = rf"trained on other weights .*first difference: {name}"
    for delta_of in (folder, tmp_path / "half"):
        with pytest.raises(SlamkernError, match=words):
            blend_deltas(model, [(delta_of, 0.5)], tmp_path / "out")
        revert_layers(delta_of, [0], tmp_path / "less")
        with pytest.raises(SlamkernError, match=words):
            load_delta(model, tmp_path / "less")
        assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
        load_delta(tiny_model(), tmp_path / "less")
        shutil.rmtree(tmp_path / "less")
    assert not (tmp_path / "out").exists()


def test_a_delta_that_knows_frozen_weights_alone_is_taken_as_it_is(tmp_path):
    folder, model = trained(tmp_path / "a"), tiny_model()
    tensors, metadata = load_tensors(folder / "delta.safetensors", "delta")
    for name in tensors:
        del metadata["frozen_weights"][name]
    save_tensors(folder / "delta.safetensors", tensors, metadata)
    with torch.no_grad():
        model.get_parameter(NAMES[0][0]).add_(1e-3)
    blend_deltas(model, [(folder, 0.5)], tmp_path / "out")


@pytest.mark.parametrize("scale", [1e44, 1e308])
def test_a_scale_beyond_the_numbers_of_the_weights_is_refused(tmp_path, scale):
    folder, model = trained(tmp_path / "a"), tiny_model()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for deltas in ([(folder, scale)], [(folder, scale), (trained(tmp_path / f"b{scale}", seed=2), 1.0)]):
        with pytest.raises(SlamkernError, match=r"holds values that are not finite; nothing was saved; use scales"):
            blend_deltas(model, deltas, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert all(torch.equal(tensor, base[name]) for name, tensor in model.state_dict().items())


def test_sweep_is_the_loss_of_the_model_at_each_scale(tmp_path):
    folder, model = trained(tmp_path / "a"), tiny_model()
    examples = [Example((1, 5, 7, 9, 2), (-100, -100, 7, 9, 2), 0), Example((1, 4, 6, 2), (-100, 4, 6, 2), 0)]
    losses = sweep_scale(model, folder, examples, [0.0, 0.5, 1.0])
    assert losses[0.0] == mean_loss(tiny_model(), examples) == mean_loss(model, examples)
    full = tiny_model()
    load_delta(full, folder)
    assert losses[1.0] == mean_loss(full, examples) != losses[0.0]
    assert len(set(losses.values())) == 3


def test_what_cannot_be_is_refused_and_leaves_nothing(tmp_path):
    folder, model = trained(tmp_path / "a"), tiny_model()
    with pytest.raises(SlamkernError, match="does not change layers 1, 7; it changes 0, 2"):
        revert_layers(folder, [1, 7], tmp_path / "out")
    with pytest.raises(SlamkernError, match=r"all layers .* nothing is left"):
        revert_layers(folder, [0, 2], tmp_path / "out")
    tensors, metadata = load_tensors(folder / "delta.safetensors", "delta")
    save_tensors(tmp_path / "head/delta.safetensors", tensors | {"lm_head.weight": torch.ones(2)}, metadata)
    with pytest.raises(SlamkernError, match=r"changes lm_head\.weight, which is of no layer"):
        revert_layers(tmp_path / "head", [0], tmp_path / "out")
    with pytest.raises(SlamkernError, match="finite"):
        read_change(model, [(folder, float("nan"))])
    with pytest.raises(SlamkernError, match="was trained on"):
        blend_deltas(tiny_model("mistral"), [(folder, 0.5)], tmp_path / "out")
    with pytest.raises(SlamkernError, match=r"delta\.safetensors exists"):
        blend_deltas(model, [(folder, 0.5)], folder)
    assert not (tmp_path / "out").exists()
