"""Several processes train as one does, to rounding: dealing, sums, files, resuming, and processes that fail."""

import os
import signal
import time
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
from support.processes import launch
from support.tiny_models import tiny_model
from support.tiny_training import CONFIG, PAIRS, SELECTION, lines, selected

from slamkern import distributed, patch_model
from slamkern.data.packing import Example
from slamkern.errors import SlamkernError
from slamkern.selection.layers import LayerSelection
from slamkern.selection.trainable import apply_selection, trained_parameters
from slamkern.training import accumulate, loop
from slamkern.training.batches import deal
from slamkern.training.checkpoint import list_checkpoints


def example(length):
    return Example((1,) * length, (1,) * length)


def test_a_step_is_dealt_by_tokens_and_nothing_is_lost():
    lengths = [3, 9, 4, 4, 2, 8, 7, 1]
    step = [[example(n) for n in lengths[:3]], [example(n) for n in lengths[3:6]], [example(n) for n in lengths[6:]]]
    assert deal(step, 1, 16) == [step]
    whole = deal(step, 3, 16)
    assert sorted(map(repr, (batch for share in whole for batch in share))) == sorted(map(repr, step))
    assert all(len(share) == 1 for share in whole)
    for processes in (2, 4, 7, 8, 11):
        shares = deal(step, processes, 16)
        tokens = [[sum(len(e.input_ids) for e in batch) for batch in share] for share in shares]
        assert sorted(len(e.input_ids) for share in shares for batch in share for e in batch) == sorted(lengths)
        assert max(n for share in tokens for n in share) <= 16
        loads = sorted(map(sum, tokens))
        assert loads[-1] - loads[0] <= max(lengths), "no process has an example more than it needs"
        assert sum(not share for share in shares) == max(0, processes - len(lengths))


def trained(model):
    return {name: parameter.detach().clone() for name, parameter in trained_parameters(model).items()}


def close(ours, theirs, dtype=torch.float32):
    tolerance = {torch.float32: 2e-5, torch.bfloat16: 1e-2}[dtype]
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=tolerance, rtol=tolerance)


def bytes_summed(monkeypatch):
    """How many bytes all_reduce is called with, counted from now on."""
    counted, original = [], torch.distributed.all_reduce
    monkeypatch.setattr(
        torch.distributed, "all_reduce", lambda t, *a, **k: (counted.append(t.nbytes), original(t, *a, **k))[1]
    )
    return counted


# Two whole micro-batches a step, one that has to be taken apart, padded batches, masters beside the parameters.
CASES = {
    "whole": (CONFIG, torch.float32),
    "apart": (replace(CONFIG, gradient_accumulation_steps=1), torch.float32),
    "padded": (replace(CONFIG, packing=False), torch.float32),
    # With its usual epsilon AdamW's first steps are the signs of gradients, which rounding turns where they are near 0.
    "bfloat16": (replace(CONFIG, gradient_accumulation_steps=3, adam_epsilon=0.1), torch.bfloat16),
}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_end_where_one_does(fit, tmp_path, monkeypatch, case):
    config, dtype = CASES[case]
    model, expected = fit(config, model=selected().to(dtype), out=tmp_path / "one", held_out=PAIRS[:3])

    def work(name):
        def run(rank):
            counted = bytes_summed(monkeypatch)
            ours, result = fit(config, model=selected().to(dtype), out=tmp_path / name, held_out=PAIRS[:3])
            return trained(ours), result, sum(counted)

        return launch(2, run)

    (ours, result, sent), (theirs, same, _) = work("two")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert result.losses == same.losses
    assert result.losses == pytest.approx(expected.losses, rel=1e-5 if dtype == torch.float32 else 1e-2)
    assert result.held_out_loss == pytest.approx(expected.held_out_loss, rel=1e-5 if dtype == torch.float32 else 1e-2)
    assert result.tokens == expected.tokens
    close(ours, trained(model), dtype)
    # Float32 gradients of the trained parameters, the loss, three values agreed upon; two held-out losses.
    assert sent == result.steps * (4 * result.trained_parameters + 4 + 3 * 8) + 2 * 8
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("one", "two")]
    assert names[0] == names[1]
    if case == "apart":
        (again, repeated, _), _ = work("again")
        assert repeated.losses == result.losses and all(torch.equal(t, again[name]) for name, t in ours.items())


def test_single_neurons_and_steps_with_fewer_examples_than_processes(fit):
    neurons = LayerSelection(layers=(0, 2), neurons={0: (1, 5, 40), 2: (7,)})
    # One example a step: the second process never has a token.
    config = replace(CONFIG, tokens_per_batch=24, gradient_accumulation_steps=1, num_train_epochs=1)

    def run(_=0):
        model = patch_model(tiny_model())
        apply_selection(model, neurons)
        model, result = fit(config, model=model)
        return trained(model), result.losses

    expected, losses = run()
    for ours, found in launch(2, run):
        assert found == losses
        close(ours, expected)


def test_two_then_one_then_three_processes_end_where_one_does(fit, tmp_path, monkeypatch):
    config = replace(CONFIG, save_steps=2)
    model, expected = fit(config)
    original = loop.learning_rate

    def part(end):
        """Train until the process is told to stop, in its step ``end``."""

        def press(done, *rest):
            if done == end and distributed.is_main():
                os.kill(os.getpid(), signal.SIGTERM)
            return original(done, *rest)

        def run(_=0):
            monkeypatch.setattr(loop, "learning_rate", press)
            ours, result = fit(config, out=tmp_path, resume=True, selection=SELECTION)
            return trained(ours), result.losses

        return run

    assert [type(error) for error in launch(2, part(1))] == [SystemExit, KeyboardInterrupt]
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2"]
    with pytest.raises(SystemExit):
        part(3)()
    assert len(lines(tmp_path)) == 4
    for ours, losses in launch(3, part(None)):
        assert losses == pytest.approx(expected.losses, rel=1e-5)
        close(ours, trained(model))
    finished = launch(2, part(None))  # nothing left to do: all of them load the result
    assert all(torch.equal(tensor, finished[1][0][name]) for name, tensor in finished[0][0].items())


@pytest.mark.parametrize("how", ["killed", "silent", "killed sharded"])
def test_a_process_that_is_gone_ends_the_others_with_one_line(fit, tmp_path, monkeypatch, how):
    original = loop.learning_rate

    def fail(done, *rest):
        if done == 3 and distributed.rank() == 1:
            if how.startswith("killed"):
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(16)
        return original(done, *rest)

    def run(rank):
        distributed.join(timedelta(seconds=8 if how == "silent" else 200))
        monkeypatch.setattr(loop, "learning_rate", fail)
        started = time.monotonic()
        try:
            fit(replace(CONFIG, save_steps=2, fsdp=how == "killed sharded"), out=tmp_path)
        except SlamkernError as error:
            return str(error), time.monotonic() - started

    message, seconds = launch(2, run, dies=(1,))[0]
    assert "another of the 2 processes of this job ended or does not answer" in message and "\n" not in message
    assert seconds < 100
    assert len(lines(tmp_path)) == 3
    _, expected = fit()
    _, result = fit(replace(CONFIG, save_steps=2), out=tmp_path, resume=True)  # the folder is free again
    assert result.losses == pytest.approx(expected.losses, rel=1e-5)


def test_what_one_process_finds_wrong_all_refuse(fit, tmp_path):
    fit(out=tmp_path)

    def other_run(_):
        fit(replace(CONFIG, learning_rate=1.0), out=tmp_path, resume=True)

    def other_weights(rank):
        fit(model=selected(seed=rank))

    def other_data(rank):
        fit(pairs=PAIRS[rank:])

    def wrapped(_):
        distributed.join()
        fit(model=torch.nn.parallel.DistributedDataParallel(selected()))

    for work, words in [
        (other_run, "learning_rate was 0.01, now 1.0"),
        (other_weights, "frozen_weights of process 1 is not that of process 0"),
        (other_data, "training_data of process 1 is not that of process 0"),
        (wrapped, "give it model.module"),
    ]:
        errors = launch(2, work)
        assert all(isinstance(error, SlamkernError) and words in str(error) for error in errors), errors


def test_without_memory_one_process_halves_its_own_batches(fit, monkeypatch):
    config = replace(CONFIG, on_oom="halve")
    model, expected = fit(config)
    original = accumulate.sum_loss

    def run(rank):
        def scarce(model, head, batch, packing):
            if rank == 1 and len(batch) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return original(model, head, batch, packing)

        monkeypatch.setattr(accumulate, "sum_loss", scarce)
        ours, result = fit(config)
        return trained(ours), result.losses

    for ours, losses in launch(2, run):
        assert losses == pytest.approx(expected.losses, rel=1e-5)
        close(ours, trained(model))
