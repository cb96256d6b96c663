"""FSDP2: a sharded model trains as a whole one does, to rounding, and its files are the same."""

import shutil
from dataclasses import replace

import pytest
import torch
import torch.distributed.checkpoint as dcp
from support.processes import launch
from support.tiny_models import tiny_model
from support.tiny_training import CONFIG, PAIRS, SELECTION, selected
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

from slamkern import patch_model, save_delta
from slamkern.distributed import launched
from slamkern.errors import SlamkernError
from slamkern.files import load_tensors
from slamkern.modules.sharded import is_part, part_of, whole
from slamkern.selection.layers import LayerSelection
from slamkern.selection.trainable import apply_selection
from slamkern.training.sharding import is_sharded, shard

SHARDED = replace(CONFIG, fsdp=True, adam_epsilon=1e-3, num_train_epochs=1)


def delta(folder):
    return load_tensors(folder / "delta.safetensors", "delta")[0]


def close(ours, theirs, tolerance):
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=tolerance, rtol=tolerance)


# Two whole micro-batches a step; three, of which one process has one more; bfloat16 with float32 masters.
@pytest.mark.parametrize(
    ("accumulation", "dtype", "patched"),
    [(2, torch.float32, False), (3, torch.float32, True), (1, torch.bfloat16, True)],
)
def test_a_sharded_model_trains_as_a_whole_one(fit, tmp_path, accumulation, dtype, patched):
    config = replace(SHARDED, gradient_accumulation_steps=accumulation)

    def model():
        found = selected().to(dtype)
        return patch_model(found) if patched else found

    def run(name, config):
        ours, result = fit(config, model=model(), out=tmp_path / name, held_out=PAIRS[:3], selection=SELECTION)
        layer = ours.model.layers[0]
        weights = [layer.mlp.up_proj.weight, layer.self_attn.q_proj.weight]
        parts = [weight.to_local().shape[0] / weight.shape[0] for weight in weights if is_part(weight)]
        return result.losses, result.held_out_loss, parts, {weight.dtype for weight in weights}

    losses, held_out, _, _ = run("one", replace(config, fsdp=False))
    sharded = launch(2, lambda _: run("fsdp", config))
    rounding = 1e-5 if dtype == torch.float32 else 2e-2
    for found in sharded:
        assert found[0] == pytest.approx(losses, rel=rounding) and found[1] == pytest.approx(held_out, rel=rounding)
        # Half of every weight of a layer, trained or frozen, in the dtype of the model.
        assert found[2] == [0.5, 0.5] and found[3] == {dtype}
    close(delta(tmp_path / "fsdp"), delta(tmp_path / "one"), rounding)
    metadata = [load_tensors(tmp_path / name / "delta.safetensors", "delta")[1] for name in ("one", "fsdp")]
    assert metadata[0] == metadata[1]


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_single_neurons_and_halves_of_a_weight_are_trained_sharded_too(fit, tmp_path, family):
    selection = LayerSelection(layers=(0, 2), neurons={0: (1, 2), 2: (5,)} if family == "llama" else None)

    def run(name, config):
        model = patch_model(tiny_model(family))
        apply_selection(model, selection)
        return fit(config, model=model, out=tmp_path / name, selection=selection)[1].losses

    losses = run("one", replace(SHARDED, fsdp=False))
    for found in launch(2, lambda _: run("fsdp", SHARDED)):
        assert found == pytest.approx(losses, rel=1e-5)
    close(delta(tmp_path / "fsdp"), delta(tmp_path / "one"), 1e-5)


def test_a_sharded_run_goes_on_whole_and_back(fit, tmp_path):
    config = replace(SHARDED, save_steps=1)
    fit(replace(config, fsdp=False), out=tmp_path / "whole")

    def run(**changes):
        return lambda _=0: fit(replace(config, **changes), out=tmp_path / "cut", resume=True)[1]

    def back_to_step_2():
        (tmp_path / "cut" / "delta.safetensors").unlink()
        shutil.rmtree(tmp_path / "cut" / "checkpoint-3")

    launch(2, run())
    back_to_step_2()
    launch(3, run())
    back_to_step_2()
    run(fsdp=False)()
    close(delta(tmp_path / "cut"), delta(tmp_path / "whole"), 1e-5)


def test_parts_are_put_together_and_taken_apart(tmp_path):
    reference = tiny_model()
    apply_selection(reference, (0, 2))
    save_delta(reference, tmp_path / "whole")

    def run(_):
        model = tiny_model()
        apply_selection(model, (0, 2))
        shard(model)
        save_delta(model, tmp_path / "sharded")
        weight = model.model.layers[1].mlp.up_proj.weight
        full = whole(weight)
        return torch.equal(part_of(full, weight).to_local(), weight.to_local()), is_sharded(model), full

    for same, sharded, full in launch(3, run):  # three parts of what three does not divide
        assert same and sharded and torch.equal(full, reference.model.layers[1].mlp.up_proj.weight)
    a, b = (load_tensors(tmp_path / name / "delta.safetensors", "delta") for name in ("whole", "sharded"))
    assert a[1] == b[1] and all(torch.equal(tensor, b[0][name]) for name, tensor in a[0].items())


def test_torchs_own_checkpoints_of_a_sharded_model_are_read_by_any_number_of_processes(tmp_path):
    reference = tiny_model()

    def save(_):
        model = patch_model(tiny_model())
        apply_selection(model, (0, 2))
        shard(model)
        dcp.save(get_model_state_dict(model), checkpoint_id=tmp_path / "dcp")

    def load(_=0):
        model = patch_model(tiny_model())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
        apply_selection(model, (0, 2))
        if launched() > 1:
            shard(model)
        state = get_model_state_dict(model)
        dcp.load(state, checkpoint_id=tmp_path / "dcp")
        set_model_state_dict(model, state)
        return {name: whole(parameter.detach()).clone() for name, parameter in model.named_parameters()}

    launch(2, save)
    for found in (*launch(3, load), load()):
        assert not isinstance(found, SlamkernError), found
        assert found.keys() == dict(reference.named_parameters()).keys()
        assert all(torch.equal(found[name], parameter) for name, parameter in reference.named_parameters())


def test_what_cannot_be_sharded_is_refused(fit):
    with pytest.raises(SlamkernError, match="start them with accelerate launch or torchrun"):
        fit(SHARDED)
    with pytest.raises(SlamkernError, match="fsdp and on_oom halve do not go together"):
        replace(SHARDED, on_oom="halve")

    def head(_):
        model = selected()
        model.lm_head.weight.requires_grad_(True)
        fit(SHARDED, model=model)

    errors = launch(2, head)
    assert all("train lm_head.weight without it" in str(error) for error in errors)
