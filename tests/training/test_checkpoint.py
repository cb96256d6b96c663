import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.full_disk import file_limit
from support.tiny_models import tiny_model

from slamkern.errors import SlamkernError
from slamkern.schemas.training import DELTA
from slamkern.selection.layers import LayerSelection
from slamkern.selection.trainable import apply_selection
from slamkern.training.checkpoint import (
    list_checkpoints,
    load_delta,
    restore_checkpoint,
    restore_newest,
    save_checkpoint,
    save_delta,
)
from slamkern.training.export import export_model
from slamkern.training.optimizer import MasterAdamW


@pytest.fixture
def trained():
    """A model whose layers 0 and 2 were changed, and the names of what was."""
    model = tiny_model()
    tensors = apply_selection(model, LayerSelection(layers=(0, 2)))
    with torch.no_grad():
        for tensor in tensors:
            tensor.parameter.add_(0.5)
    return model


def test_delta_holds_only_the_trained_tensors_and_restores_them_exactly(trained, tmp_path):
    save_delta(trained, tmp_path, LayerSelection(layers=(0, 2)))
    names = [f"model.layers.{layer}.mlp.{which}_proj.weight" for layer in (0, 2) for which in ("up", "down")]
    assert sorted(load_file(tmp_path / DELTA)) == sorted(names)
    assert LayerSelection.load(tmp_path / "selection.json").layers == (0, 2)
    fresh = tiny_model()
    assert sorted(load_delta(fresh, tmp_path)) == sorted(names)
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor, fresh.state_dict()[name]), name


def refused(model, path, words):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(SlamkernError, match=words) as caught:
        load_delta(model, path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_delta_of_another_model_or_dtype_is_refused(trained, tmp_path):
    save_delta(trained, tmp_path)
    refused(tiny_model(intermediate_size=64), tmp_path, "llama-4-32-64")
    refused(tiny_model().bfloat16(), tmp_path, "load the model as float32")
    refused(tiny_model("mistral"), tmp_path, "mistral")


def test_damaged_and_foreign_files_are_refused(trained, tmp_path):
    path = save_delta(trained, tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(tiny_model(), tmp_path, "truncated")
    save_file({"x": torch.zeros(2)}, path)
    refused(tiny_model(), tmp_path, "not written by slamkern")
    path.unlink()
    refused(tiny_model(), tmp_path, "does not exist")


def test_tensors_that_do_not_fit_are_refused_before_any_is_copied(trained, tmp_path):
    trained.lm_head.weight.requires_grad_(True)
    save_delta(trained, tmp_path)
    tied_vocabulary = tiny_model(vocab_size=100)  # same signature, other vocabulary; the FFN tensors come first
    refused(tied_vocabulary, tmp_path, "lm_head.weight is")


def test_delta_of_other_weights_of_the_same_model_is_refused(trained, tmp_path):
    save_delta(trained, tmp_path)
    other = tiny_model()
    with torch.no_grad():
        weight = other.model.layers[3].self_attn.q_proj.weight
        weight.copy_(weight.flip(0))  # the same values in other rows
    refused(other, tmp_path, "was trained on other weights than this model has")
    load_delta(trained, tmp_path)  # a delta over another delta of the same base


def test_values_that_are_not_finite_are_neither_saved_nor_loaded(trained, tmp_path, monkeypatch):
    weight = trained.model.layers[2].mlp.up_proj.weight
    with torch.no_grad():
        weight[3, 3] = float("inf")
    optimizer = adamw(trained)
    for save in (save_delta, lambda *a: save_checkpoint(trained, optimizer, tmp_path, step=1, fingerprint="run")):
        with pytest.raises(SlamkernError, match=r"layers\.2\.mlp\.up_proj.* not finite; nothing was saved"):
            save(trained, tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("slamkern.training.checkpoint.check_finite", lambda *_: None)
    save_delta(trained, tmp_path)
    monkeypatch.undo()
    refused(tiny_model(), tmp_path, "not finite")


def test_nothing_trained_makes_no_delta(tmp_path):
    with pytest.raises(SlamkernError, match="apply_selection"):
        save_delta(tiny_model().requires_grad_(False), tmp_path)
    assert not list(tmp_path.iterdir())


def adamw(model):
    optimizer = MasterAdamW((n, p) for n, p in model.named_parameters() if p.requires_grad)
    for parameter in optimizer.parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(0.1)
    return optimizer


def test_checkpoints_keep_the_last_two_and_restore(trained, tmp_path):
    optimizer = adamw(trained)
    for step in (9, 10, 11):
        save_checkpoint(trained, optimizer, tmp_path, step=step, fingerprint="run")
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-11"]
    fresh = tiny_model()
    apply_selection(fresh, (0, 2))
    other = adamw(fresh)
    assert restore_checkpoint(tmp_path / "checkpoint-11", fresh, other, fingerprint="run") == 11
    assert all(torch.equal(p, other.parameters[name]) for name, p in optimizer.parameters.items())
    with pytest.raises(SlamkernError, match="another run"):
        restore_checkpoint(tmp_path / "checkpoint-11", fresh, other, fingerprint="other")


def test_a_kill_while_dropping_checkpoints_leaves_none_half_gone(trained, tmp_path, monkeypatch):
    def killed(folder, **_):
        for file in list(folder.glob("*.safetensors")):
            file.unlink()
            raise KeyboardInterrupt

    optimizer = adamw(trained)
    for step in (9, 10):
        save_checkpoint(trained, optimizer, tmp_path, step=step, fingerprint="run")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(trained, optimizer, tmp_path, step=11, fingerprint="run")
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-11"]
    shutil.rmtree(tmp_path / ".checkpoint-9.tmp")  # as the next process does that claims the folder
    shutil.copytree(tmp_path / "checkpoint-10", tmp_path / "checkpoint-9")
    assert restore_newest(tmp_path, trained, optimizer, fingerprint="run") == 11
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-11"]


def test_a_full_disk_leaves_no_half_checkpoint_and_the_earlier_one(trained, tmp_path):
    optimizer = adamw(trained)
    save_checkpoint(trained, optimizer, tmp_path, step=1, fingerprint="run")
    before = sorted(path for path in tmp_path.rglob("*"))
    with file_limit() as limit:
        limit(4096)
        with pytest.raises(OSError, match="cannot write"):
            save_checkpoint(trained, optimizer, tmp_path, step=2, fingerprint="run")
        with pytest.raises(OSError):  # noqa: PT011  (in the words of whichever write comes first)
            export_model(trained, _NoTokenizer(), tmp_path / "exported")
    assert sorted(path for path in tmp_path.rglob("*")) == before
    restore_checkpoint(tmp_path / "checkpoint-1", trained, optimizer, fingerprint="run")


class _NoTokenizer:
    def save_pretrained(self, folder):
        (folder / "tokenizer.json").write_text("{}")
