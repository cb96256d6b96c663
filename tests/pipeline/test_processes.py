"""A whole run of two processes: the files of one, and a run that one process began goes on with two."""

import pytest
import torch
from support.processes import launch
from support.tiny_causal_lm import ending_model, save_folder

from slamkern.files import load_tensors
from slamkern.pipeline import run
from slamkern.pipeline.config import build_config
from slamkern.pipeline.verify import verify


def configuration(folder):
    save_folder(folder, ending_model())
    sections = {
        "model": {"name": str(folder), "dtype": "float32", "device": "cpu"},
        "data": {"path": "corpus:", "languages": ["de", "zh"], "limit": 16, "held_out": 2},
        "probe": {"questions": 6, "groups": 3, "token_budget": 256},
        "select": {"k": 1, "bootstrap": 10},
        "align": {"target": "reply", "examples": 6, "questions": 10, "max_new_tokens": 40},
        "train": {"max_steps": 3, "save_steps": 2, "prompt": "authors", "tokens_per_batch": 1024},
        "evaluate": {"task": "corpus", "limit": 2, "languages": ["en", "de"], "prompt": "authors", "max_new_tokens": 4,
                     "chrf_limit": 1, "english": "corpus:"},
    }  # fmt: skip
    return build_config(sections)


def test_a_run_of_two_processes_is_that_of_one(tmp_path, monkeypatch):
    config = configuration(tmp_path / "model")
    one, two = tmp_path / "one", tmp_path / "two"
    expected = run.run(config, one, progress=False)

    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "measure", stopped)
        with pytest.raises(KeyboardInterrupt):
            run.run(config, two, progress=False)
    ours, theirs = launch(2, lambda _: run.run(config, two, progress=False))

    timed = {"seconds", "tokens_per_second", "peak_memory_bytes", "made"}
    assert {name: value for name, value in ours.items() if name not in timed} == {
        name: value for name, value in theirs.items() if name not in timed
    }
    assert ours["losses"] == pytest.approx(expected["losses"], rel=1e-5)
    assert ours["selected_layers"] == expected["selected_layers"]
    for moment in ("before", "after"):
        assert ours[moment]["evaluation"] == expected[moment]["evaluation"]
        assert ours[moment]["english_loss"] == pytest.approx(expected[moment]["english_loss"], rel=1e-5)
        assert ours[moment]["reply_loss"] == pytest.approx(expected[moment]["reply_loss"], rel=1e-5)
    names = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in (one, two)]
    assert names[0] == names[1]
    for name in ("replies.json", "evaluation/before/predictions.jsonl", "evaluation/after/predictions.jsonl"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    deltas = [load_tensors(folder / "train/delta.safetensors", "delta")[0] for folder in (one, two)]
    for name, tensor in deltas[0].items():
        torch.testing.assert_close(deltas[1][name], tensor, atol=1e-6, rtol=1e-5)
    assert verify(two)[1] == []
    assert launch(2, lambda _: run.run(config, two, progress=False)) == [ours, ours]  # nothing left to do
