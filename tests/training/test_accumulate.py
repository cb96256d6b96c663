"""What a step does where memory is not enough: it says what to lower, or goes on in smaller parts."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from support.tiny_training import CONFIG, selected

from slamkern.data.packing import IGNORE, Example
from slamkern.errors import SlamkernError
from slamkern.modules.packed_attention import packed_attention
from slamkern.selection.trainable import trained_parameters
from slamkern.training import accumulate
from slamkern.training.accumulate import Accumulator, cut
from slamkern.training.loss import read_head
from slamkern.training.optimizer import MasterAdamW

WHOLE = replace(CONFIG, tokens_per_batch=4096, gradient_accumulation_steps=1, learning_rate=1e-3)


def positions(batch, packing):
    lengths = [len(example.input_ids) for example in batch]
    return sum(lengths) if packing else len(lengths) * max(lengths)


@pytest.fixture(params=[torch.OutOfMemoryError("CUDA out of memory"), MemoryError()], ids=["GPU", "host"])
def small_memory(monkeypatch, request):
    """Micro-batches of more than 100 positions fail, in the backward."""
    computed = []

    def sum_loss(model, head, batch, packing):
        loss = original(model, head, batch, packing)
        if positions(batch, packing) > 100:
            loss.backward()  # gradients of a part that did not fit must not stay
            raise request.param
        computed.append(positions(batch, packing))
        return loss

    original = accumulate.sum_loss
    monkeypatch.setattr(accumulate, "sum_loss", sum_loss)
    return computed


@pytest.mark.parametrize("packing", [True, False])
def test_halving_ends_with_the_same_result(fit, small_memory, monkeypatch, caplog, packing):
    config = replace(WHOLE, packing=packing, on_oom="halve")
    ours, result = fit(config)
    assert small_memory and max(small_memory) <= 100
    lines = [record.getMessage() for record in caplog.records if "out of memory" in record.getMessage()]
    assert len(lines) == 2 and "at most 63 tokens, not 126" in lines[1]  # from 256: once, not in every step
    monkeypatch.undo()
    from slamkern.data.prompts import Prompt

    monkeypatch.setattr(Prompt, "translation", lambda self, pair: (self._render(pair.source, "English"), pair.target))
    theirs, expected = fit(WHOLE)
    assert result.losses == pytest.approx(expected.losses, rel=1e-4)
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=1e-4, atol=2e-5, msg=name)


def test_otherwise_it_says_what_to_lower(fit, small_memory):
    with pytest.raises(SlamkernError, match=r"micro-batches of \d+ tokens; lower tokens_per_batch \(now 4096\)"):
        fit(WHOLE)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_where_nothing_is_left_to_halve_it_says_so(fit, monkeypatch, error):
    def never(*_):
        raise error

    monkeypatch.setattr(accumulate, "sum_loss", never)
    with pytest.raises(SlamkernError, match=r"single sequences of \d+ tokens; lower max_length"):
        fit(replace(WHOLE, on_oom="halve"))


def test_other_errors_pass(fit, monkeypatch):
    monkeypatch.setattr(accumulate, "sum_loss", lambda *_: [][0])
    with pytest.raises(IndexError):
        fit(WHOLE)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("own_head", [True, False])
def test_a_micro_batch_without_supervised_tokens_adds_nothing(packing, own_head):
    learned, read = Example((1, 5, 7, 9, 2), (IGNORE, IGNORE, 7, 9, 2)), Example((1, 4, 6), (IGNORE,) * 3)
    config = replace(CONFIG, packing=packing)

    def step(*batches):
        model = selected()
        optimizer = MasterAdamW(trained_parameters(model).items())
        with packed_attention(model) if packing else nullcontext():
            accumulator = Accumulator(model, None if own_head else read_head(model), optimizer, config)
            return accumulator.backward(batches, 3), list(optimizer.gradients())

    loss, gradients = step([learned])
    for batches in (([read], [learned]), ([learned], [read, read])):
        again, others = step(*batches)
        assert torch.equal(again, loss) and all(map(torch.equal, others, gradients))
    loss, gradients = step([read])
    assert loss == 0 and gradients and not any(gradient.any() for gradient in gradients)


def test_cut_keeps_order_and_limit():
    batch = [Example((1,) * n, (1,) * n, 0) for n in (3, 4, 9, 2, 2)]
    assert [len(part) for part in cut(batch, 7, padded=False)] == [2, 1, 2]
    assert [len(part) for part in cut(batch, 7, padded=True)] == [1, 1, 1, 2]
    assert [example for part in cut(batch, 7, padded=True) for example in part] == batch and cut(
        batch, None, padded=True
    ) == [batch]
