"""Runs that stop and go on: killed, out of disk, damaged, another run's folder; layers and single neurons."""

import shutil
from dataclasses import replace

import pytest
import torch
from support.tiny_models import tiny_model
from support.tiny_training import CONFIG, PAIRS, SELECTION, lines, same_weights, selected

from slamkern import patch_model
from slamkern.digests import tensor_digests
from slamkern.errors import SlamkernError
from slamkern.files import load_tensors
from slamkern.selection.layers import LayerSelection
from slamkern.selection.trainable import apply_selection
from slamkern.training import accumulate, checkpoint, loop
from slamkern.training.checkpoint import list_checkpoints, load_delta


@pytest.mark.parametrize("killed_after", [2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_killed_run_resumes_bitwise(fit, tmp_path, monkeypatch, killed_after, dtype):
    # Dropout makes the random state matter.
    def model():
        return selected(attention_dropout=0.2).to(dtype)

    unbroken, expected = fit(replace(CONFIG, save_steps=1), model=model(), out=tmp_path / "a", selection=SELECTION)

    class Killed(Exception):
        pass

    def kill(done, *rest, **options):
        if done == killed_after + 1:  # one step past the checkpoint, whose line must go again
            raise Killed
        return original(done, *rest, **options)

    original = loop.learning_rate
    with monkeypatch.context() as patch:
        patch.setattr(loop, "learning_rate", kill)
        config = replace(CONFIG, save_steps=killed_after)
        with pytest.raises(Killed):
            fit(config, model=model(), out=tmp_path / "b", selection=SELECTION)
    assert len(lines(tmp_path / "b")) == killed_after + 1

    torch.manual_seed(12345)  # whatever the new process drew before
    fresh = tiny_model(attention_dropout=0.2).to(dtype)  # nobody froze it: the run's flags come back
    resumed, result = fit(config, model=fresh, out=tmp_path / "b", selection=SELECTION, resume=True)
    assert same_weights(resumed, unbroken)
    assert result.losses == expected.losses and len(lines(tmp_path / "b")) == 6
    last = [list_checkpoints(tmp_path / name)[-1].name for name in "ab"]
    if last[0] == last[1]:
        states = [load_tensors(tmp_path / name / last[0] / "training-state.safetensors", "state")[0] for name in "ab"]
        assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.parametrize("file", ["training-state.safetensors", "delta.safetensors", "selection.json"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(fit, tmp_path, file, caplog):
    unbroken, expected = fit()
    fit(replace(CONFIG, save_steps=2), out=tmp_path, selection=SELECTION)
    (tmp_path / "delta.safetensors").unlink()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-6"]
    damaged = tmp_path / "checkpoint-6" / file
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 4
    damaged.write_bytes(content)
    resumed, result = fit(replace(CONFIG, save_steps=2), out=tmp_path, selection=SELECTION, resume=True)
    assert same_weights(resumed, unbroken) and result.losses == expected.losses
    if file != "selection.json":
        (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert "checkpoint-6" in line and "going back to the checkpoint before" in line
    for folder in list_checkpoints(tmp_path):
        (folder / "training-state.safetensors").write_bytes(b"")
    (tmp_path / "delta.safetensors").unlink()
    with pytest.raises(SlamkernError, match=r"no checkpoint in .* can be read"):
        fit(replace(CONFIG, save_steps=2), out=tmp_path, selection=SELECTION, resume=True)


def test_a_finished_run_is_loaded_not_repeated(fit, tmp_path):
    first, expected = fit(out=tmp_path, held_out=PAIRS[:3])
    again, result = fit(out=tmp_path, held_out=PAIRS[:3], resume=True)
    assert same_weights(first, again) and result == expected


def test_a_delta_knows_what_trained_weights_were_also_where_the_run_went_on(fit, tmp_path):
    base = tensor_digests(selected().state_dict())
    model, _ = fit(replace(CONFIG, save_steps=2), out=tmp_path)
    assert load_tensors(tmp_path / "delta.safetensors", "delta")[1]["frozen_weights"] == base
    (tmp_path / "delta.safetensors").unlink()
    fit(replace(CONFIG, save_steps=2), model=model, out=tmp_path, resume=True)  # the model has trained weights now
    assert load_tensors(tmp_path / "delta.safetensors", "delta")[1]["frozen_weights"] == base


def test_the_folder_of_another_run_is_refused(fit, tmp_path):
    fit(out=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(SlamkernError, match="already holds a run"):
        fit(out=tmp_path)
    with pytest.raises(SlamkernError, match=r"config\.learning_rate was 0\.01, now 0\.002"):
        fit(replace(CONFIG, learning_rate=2e-3), out=tmp_path, resume=True)
    with pytest.raises(SlamkernError, match="training_data was"):
        fit(pairs=PAIRS[1:], out=tmp_path, resume=True)
    with pytest.raises(SlamkernError, match="frozen_weights was"):
        fit(model=selected(seed=1), out=tmp_path, resume=True)
    moved = selected()
    with torch.no_grad():
        moved.model.layers[3].self_attn.q_proj.weight[20, 3] += 1e-3  # far behind the first values
    with pytest.raises(SlamkernError, match="frozen_weights was"):
        fit(model=moved, out=tmp_path, resume=True)
    other = tiny_model()
    apply_selection(other, (0, 1))
    with pytest.raises(SlamkernError, match=r"layers\.1\.mlp.* is frozen in the run"):
        fit(model=other, out=tmp_path, resume=True)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_loss_that_is_not_finite_stops_before_anything_is_saved_over(fit, tmp_path, monkeypatch):
    from slamkern.training import batches

    calls = iter(range(100))

    def poisoned(*arguments, **options):
        loss = batches.packed_loss(*arguments, **options)
        return loss * float("nan") if next(calls) == 6 else loss  # the first micro-batch of step 4

    monkeypatch.setattr(accumulate, "sum_loss", lambda model, head, batch, *_: poisoned(
        model, batches.collate(batch), head=head
    ))  # fmt: skip
    model = selected()
    with pytest.raises(SlamkernError, match=r"step 4: loss nan.*checkpoint-3"):
        fit(replace(CONFIG, save_steps=3), model=model, out=tmp_path)
    assert len(lines(tmp_path)) == 3 and not (tmp_path / "delta.safetensors").exists()
    at_three = tiny_model()
    load_delta(at_three, tmp_path / "checkpoint-3")
    assert same_weights(at_three, model)


def test_a_full_disk_keeps_the_earlier_checkpoint_and_the_run_resumable(fit, tmp_path, monkeypatch):
    unbroken, _ = fit()
    config = replace(CONFIG, save_steps=2)
    original = checkpoint.save_tensors

    def full(path, *rest):
        if "checkpoint-4" in str(path) and "training-state" in str(path):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return original(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_tensors", full)
        with pytest.raises(OSError, match="No space"):
            fit(config, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir() if "checkpoint" in path.name] == ["checkpoint-2"]
    resumed, _ = fit(config, out=tmp_path, resume=True)
    assert same_weights(resumed, unbroken)


NEURONS = LayerSelection(layers=(0, 2), neurons={0: (1, 5, 40), 2: (7,)})


def selected_neurons(dtype=torch.float32):
    model = patch_model(tiny_model().to(dtype))
    apply_selection(model, NEURONS)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_single_neurons_are_trained_saved_and_resumed_exactly(fit, tmp_path, dtype):
    model, result = fit(model=selected_neurons(dtype), out=tmp_path / "a", selection=NEURONS)
    assert result.loss_last < result.loss_first and result.trained_parameters == 2 * 32 * 4
    before = tiny_model().to(dtype).state_dict()
    for name, tensor in model.state_dict().items():
        changed = (tensor != before[name]).nonzero()
        layer = name.split(".")[2] if "layers" in name else ""
        axis = {"up_proj": 0, "down_proj": 1}.get(name.split(".")[-2])
        rows = set(NEURONS.neurons[int(layer)]) if axis is not None and layer in ("0", "2") else set()
        assert set(changed[:, axis or 0].tolist()) == rows, name
    # The delta goes into a model that nobody patched, and a run cut in the middle ends the same.
    plain = tiny_model().to(dtype)
    assert len(load_delta(plain, tmp_path / "a")) == 4
    assert same_weights(plain, model)
    half = replace(CONFIG, save_steps=2)
    fit(half, model=selected_neurons(dtype), out=tmp_path / "b", selection=NEURONS)
    (tmp_path / "b" / "delta.safetensors").unlink()
    for folder in list_checkpoints(tmp_path / "b")[1:]:
        shutil.rmtree(folder)
    resumed, again = fit(half, model=selected_neurons(dtype), out=tmp_path / "b", selection=NEURONS, resume=True)
    assert same_weights(resumed, model) and again.losses == result.losses
    with pytest.raises(SlamkernError, match="apply the selection of that run"):
        fit(half, model=patch_model(tiny_model().to(dtype)), out=tmp_path / "b", resume=True)
    other = patch_model(tiny_model().to(dtype))
    apply_selection(other, LayerSelection(layers=(0, 2), neurons={0: (1, 5, 41), 2: (7,)}))
    with pytest.raises(SlamkernError, match="has other neurons of"):
        load_delta(other, tmp_path / "a")
