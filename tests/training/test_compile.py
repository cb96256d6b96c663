"""Training through torch.compile: the same losses and gradients, programs that serve every length, clear refusals."""

from dataclasses import replace

import pytest
import torch
from support.tiny_models import tiny_model
from support.tiny_training import CONFIG
from torch._dynamo.utils import counters

import slamkern
from slamkern.data.packing import IGNORE, Example, collate, padded_batch
from slamkern.errors import SlamkernError
from slamkern.modules.packed_attention import packed_attention
from slamkern.selection.layers import LayerSelection
from slamkern.selection.trainable import apply_selection
from slamkern.training.compile import compiled_layers, why_not
from slamkern.training.fp8 import frozen_in_fp8
from slamkern.training.loss import packed_loss, padded_loss, read_head
from slamkern.training.step_cost import storage_bytes

MISSING = why_not(torch.device("cpu"))
needs_compiler = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    counters.clear()


def packed(*lengths):
    """The second half of each sequence is supervised."""
    ids = [tuple(range(3, 3 + n)) for n in lengths]
    return collate([Example(row, (*[IGNORE] * (len(row) // 2), *row[len(row) // 2 :]), 0) for row in ids])


def trained_llama(layers=2, trained=(0,), **options):
    model = slamkern.patch_model(tiny_model("llama", num_hidden_layers=layers), **options).train()
    apply_selection(model, trained)
    return model


def loss_and_gradients(model, batch, head):
    model.zero_grad()
    loss = packed_loss(model, batch, head=head)
    loss.backward()
    return loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)


def saved_bytes(model, batch, head):
    tensors = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: tensors.append(t) or t, lambda t: t):
        loss = packed_loss(model, batch, head=head)
    assert loss.requires_grad
    return storage_bytes(tensors)


@needs_compiler
@pytest.mark.slow
def test_losses_and_gradients_are_the_same_and_lengths_need_no_new_program():
    model = trained_llama(4, (0, 2))
    # Not three sequences first: their four borders and the four heads would be taken for one number.
    batches = [packed(*lengths) for lengths in ((7, 8), (5, 9, 2), (20, 3, 11, 2), (6, 6, 6, 6, 9), (30,))]
    with packed_attention(model):
        head = read_head(model)
        assert head.last_ffn is not None  # the last FFN computes the supervised rows alone
        expected = [loss_and_gradients(model, batch, head) for batch in batches]
        with compiled_layers(model):
            programs = []
            for batch, theirs in zip(batches, expected, strict=True):
                for actual, other in zip(loss_and_gradients(model, batch, head), theirs, strict=True):
                    torch.testing.assert_close(actual, other, rtol=1e-5, atol=1e-6)
                programs.append(counters["stats"]["unique_graphs"])
        assert programs[0] >= 10 and set(programs) == {programs[0]}
        assert all(layer._compiled_call_impl is None for layer in model.model.layers)
        again = loss_and_gradients(model, batches[0], head)
        assert all(map(torch.equal, again, expected[0])) and counters["stats"]["unique_graphs"] == programs[0]


@needs_compiler
@pytest.mark.slow
def test_recomputation_still_saves_memory_and_checkpointing_the_same_loss():
    batch, losses = packed(20, 13), []
    for recompute, checkpointing in ((False, False), (True, False), (True, True)):
        model = trained_llama(recompute=recompute)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with packed_attention(model):
            head = read_head(model)
            kept = saved_bytes(model, batch, head)
            with compiled_layers(model):
                losses.append(loss_and_gradients(model, batch, head))
                # A program that held recomputed FFNs would keep gate and up: 9 kB more.
                assert saved_bytes(model, batch, head) <= kept
        assert not any("forward" in vars(module) for module in model.modules())
    for other in losses[1:]:
        for actual, expected in zip(other, losses[0], strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@needs_compiler
@pytest.mark.slow
def test_padded_batches():
    model = trained_llama()
    batch = padded_batch([Example((5, 6, 7, 8), (IGNORE, IGNORE, 7, 8), 0), Example((9, 4, 3), (IGNORE, 4, 3), 0)], 0)
    expected = padded_loss(model, batch)
    head = read_head(model)
    with compiled_layers(model):
        actual = padded_loss(model, batch, head=head)
        torch.testing.assert_close(actual, expected)
        weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for ours, theirs in zip(*(torch.autograd.grad(loss, weights) for loss in (actual, expected)), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert counters["stats"]["unique_graphs"] >= 2


@needs_compiler
@pytest.mark.slow
def test_a_training_run_ends_with_the_same_weights(fit):
    config = replace(CONFIG, max_steps=3)
    expected, theirs = fit(config, model=trained_llama())
    assert not counters["stats"]
    model, ours = fit(replace(config, compile=True), model=trained_llama())
    assert counters["stats"]["unique_graphs"] >= 4
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-5)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, expected.state_dict()[name], rtol=1e-3, atol=1e-4)


@needs_compiler
def test_programs_on_disk_are_of_this_version_of_the_ops(llama, monkeypatch):
    tags = []
    for digest in ("one", "other"):
        monkeypatch.setattr("slamkern.training.compile._digest", lambda digest=digest: digest)
        with compiled_layers(llama):
            tags.append(torch.compiler.config.cache_key_tag)
    assert len({*tags, torch.compiler.config.cache_key_tag}) == 3
    monkeypatch.undo()
    with compiled_layers(llama):
        assert len(torch.compiler.config.cache_key_tag.split()[-1]) == 64


def test_what_cannot_be_compiled_is_refused(llama, monkeypatch):
    slamkern.patch_model(llama)
    with slamkern.record_stats(llama, ["de"]) as recorder, recorder.tokens(torch.zeros(1, 3, dtype=torch.int64)):
        refused(llama, "layers.0.mlp records statistics")
    neurons = LayerSelection((1,), num_layers=4, neurons={1: (3, 7)})
    apply_selection(llama, neurons)
    refused(llama, "layers.1.mlp trains single neurons")
    apply_selection(llama, [1])
    with frozen_in_fp8(llama):
        refused(llama, "frozen weights are in FP8")
    llama.model.layers[2].compile()
    refused(llama, "compiled already")
    llama.model.layers[2]._compiled_call_impl = None
    monkeypatch.setattr("slamkern.training.compile._increment", broken)
    refused(llama, "torch.compile does not work on cpu: .*no such instruction")
    assert all(layer._compiled_call_impl is None for layer in llama.model.layers)


def broken(_):
    raise RuntimeError("no such instruction")


def refused(model, reason):
    with pytest.raises(SlamkernError, match=reason), compiled_layers(model):
        pass
