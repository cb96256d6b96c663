"""tokens_per_second of SlamCallback: real tokens of all processes, over the time that was training."""

import pytest
from support.processes import launch
from support.tiny_trainer import SELECTION, packed_model, rows, trainer_of
from transformers import TrainerCallback

from slamkern.integrations import pace
from slamkern.integrations.trainer import SlamCallback

TOKENS = sum(len(row["input_ids"]) for row in rows())


class Clock:
    """Stands still but where a callback lets it go on: a second a step, a minute for an evaluation or a save."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class Ticking(TrainerCallback):
    def __init__(self, clock):
        self.clock = clock

    def on_pre_optimizer_step(self, *args, **kwargs):
        self.clock.now += 1

    def on_evaluate(self, *args, **kwargs):
        self.clock.now += 60

    on_save = on_evaluate


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    return clock


def paces(trainer):
    return [entry["tokens_per_second"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("logged", [1, 4])
def test_evaluations_and_saves_are_not_counted(tmp_path, clock, logged):
    callbacks = [SlamCallback(SELECTION), Ticking(clock)]
    options = {"eval_strategy": "steps", "eval_steps": 1, "logging_steps": logged}
    trainer = trainer_of(packed_model(), tmp_path, callbacks, **options)
    trainer.train()
    assert sum(paces(trainer)) == pytest.approx(2 * TOKENS if logged == 1 else TOKENS / 2)
    assert clock.now == 4 + 60 * (4 + 2)


def test_a_training_after_an_interrupted_one_counts_once(tmp_path, clock):
    class Interrupting(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2 and not paces_before:
                paces_before.extend(paces(trainer))
                raise KeyboardInterrupt

    paces_before = []
    callbacks = [SlamCallback(SELECTION), Ticking(clock), Interrupting()]
    trainer = trainer_of(packed_model(), tmp_path, callbacks, save_strategy="no")
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.train()
    assert len(paces_before) == 1 and sum(paces(trainer)) == pytest.approx(2 * TOKENS)
    assert not trainer.model._forward_pre_hooks


def test_tokens_of_all_processes_are_counted(tmp_path, clock):
    def train(rank):
        trainer = trainer_of(packed_model(), tmp_path, [SlamCallback(SELECTION), Ticking(clock)], save_strategy="no")
        trainer.train()
        return paces(trainer)

    assert launch(2, train, seconds=120) == [[pytest.approx(TOKENS)] * 4] * 2
