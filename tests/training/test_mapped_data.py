"""Runs on pairs and tokens that lie in files: stopped and gone on with, by as many processes and by more."""

import json
import os
import signal
from dataclasses import asdict, replace

import pytest
from support.processes import launch
from support.tiny_training import CONFIG, WORDS, same_weights

from slamkern import distributed
from slamkern.data import arrow_table, tokenization
from slamkern.data.pairs import Pair, load_pairs
from slamkern.files import load_tensors
from slamkern.training import loop


@pytest.fixture
def mapped(tmp_path, monkeypatch):
    """A file of 40 pairs, which is more than is held in memory here."""
    for module in (arrow_table, tokenization):
        monkeypatch.setattr(module, "IN_MEMORY", 8)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    pairs = [Pair(f"{WORDS[n % 6]} {n}", f"{n} apples", "de", id=str(n)) for n in range(40)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(asdict(pair)) + "\n" for pair in pairs))
    return path


def delta(folder):
    return load_tensors(folder / "delta.safetensors", "delta")[0]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stopped_run_goes_on_where_it_was(fit, mapped, tmp_path, monkeypatch, processes):
    config = replace(CONFIG, save_steps=2, num_train_epochs=1)
    model, expected = fit(config, pairs=load_pairs(mapped), out=tmp_path / "whole")
    assert len(list((tmp_path / "cache").rglob("*.arrow"))) == 1
    original = loop.learning_rate

    def press(done, *rest):
        if done == 4 and distributed.is_main():
            os.kill(os.getpid(), signal.SIGTERM)
        return original(done, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "learning_rate", press)
        with pytest.raises(SystemExit):
            fit(config, pairs=load_pairs(mapped), out=tmp_path / "cut")

    def go_on(_=0):
        # Tokens are read from the file that the first of the two made.
        monkeypatch.setattr(tokenization, "_encode", lambda *_: pytest.fail("tokenized again"))
        ours, result = fit(config, pairs=load_pairs(mapped), out=tmp_path / "cut", resume=True)
        return same_weights(ours, model), result.losses

    if processes == 1:
        assert go_on() == (True, expected.losses)
        return
    for _, losses in launch(processes, go_on):
        assert losses == pytest.approx(expected.losses, rel=1e-5)
    for name, tensor in delta(tmp_path / "whole").items():
        assert (tensor - delta(tmp_path / "cut")[name]).abs().max() < 2e-5
