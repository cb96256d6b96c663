"""Signals while training, and checkpoints by the clock: what is lost when a run has to stop."""

import itertools
import os
import signal
from dataclasses import replace

import pytest
from support.tiny_training import CONFIG, same_weights

from slamkern.training import loop
from slamkern.training.checkpoint import list_checkpoints


def test_ctrl_c_saves_at_the_end_of_the_step_and_resumes(fit, tmp_path, monkeypatch):
    unbroken, expected = fit()
    original = loop.learning_rate

    def press(done, *rest, **options):
        if done == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return original(done, *rest, **options)

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "learning_rate", press)
        with pytest.raises(KeyboardInterrupt, match=r"step 2 of 6.*resume=True"):
            fit(out=tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2"]
    resumed, result = fit(out=tmp_path, resume=True)
    assert same_weights(resumed, unbroken) and result.losses == expected.losses


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_schedulers_signal_saves_and_has_its_status(fit, tmp_path, monkeypatch, number, status):
    unbroken, _ = fit()
    original = loop.learning_rate

    def notice(done, *rest, **options):
        if done == 1:
            os.kill(os.getpid(), number)
        return original(done, *rest, **options)

    before = signal.signal(number, lambda *_: pytest.fail("not ours"))
    try:
        with monkeypatch.context() as patch:
            patch.setattr(loop, "learning_rate", notice)
            with pytest.raises(SystemExit) as caught:
                fit(out=tmp_path)
    finally:
        signal.signal(number, before)
    assert caught.value.code == status
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2"]
    resumed, _ = fit(out=tmp_path, resume=True)
    assert same_weights(resumed, unbroken)


def test_by_default_the_last_checkpoint_is_at_most_ten_minutes_old(fit, tmp_path, monkeypatch):
    assert CONFIG.save_steps is None
    minutes = iter(range(0, 10_000, 4))  # a step takes four of them
    monkeypatch.setattr(loop.time, "monotonic", lambda: 60.0 * next(minutes))
    saved = []
    monkeypatch.setattr(loop, "save_checkpoint", lambda *_, step, **__: saved.append(step))
    fit(replace(CONFIG, max_steps=9), out=tmp_path)
    assert saved and max(b - a for a, b in itertools.pairwise([0, *saved])) <= 3
    saved.clear()
    fit(replace(CONFIG, max_steps=9, save_minutes=0), out=tmp_path / "never")
    assert not saved


def test_second_ctrl_c_is_immediate(fit, tmp_path, monkeypatch):
    def press_twice(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(loop, "learning_rate", press_twice)
    with pytest.raises(KeyboardInterrupt):
        fit(out=tmp_path)
    assert not list_checkpoints(tmp_path) and not (tmp_path / "metrics.jsonl").exists()
