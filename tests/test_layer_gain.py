"""Training single layers: the remembered inputs change nothing, a whole study of a tiny model, known correlations."""

import json

import numpy as np
import pytest
import torch
from support.tiny_causal_lm import save_folder, tiny_model

from benchmarks import layer_gain, layer_scores
from benchmarks.prefix_cache import PrefixCache
from benchmarks.rank_correlation import kendall, spearman, spearman_interval
from slamkern.data.packing import Example
from slamkern.modules.packed_attention import packed_attention
from slamkern.selection.trainable import apply_selection
from slamkern.selection.weight_snr import spectrum_snr
from slamkern.training.batches import sum_loss


def test_from_remembered_inputs_loss_and_gradients_are_those_of_the_whole_model():
    model = tiny_model(num_hidden_layers=4)
    batch = [Example(tuple(range(3, 20)), tuple(range(3, 20))), Example((5, 6, 7), (5, 6, 7))]
    (trained, *_) = apply_selection(model, [2])
    cache = PrefixCache(model)
    with packed_attention(model):
        with cache.recording():
            whole = sum_loss(model, None, batch, packing=True)
        whole.backward()
        expected, trained.parameter.grad = trained.parameter.grad, None
        layers = list(model.model.layers)
        with cache.above(2):
            part = sum_loss(model, None, batch, packing=True)
            part.backward()
            with pytest.raises(KeyError):
                sum_loss(model, None, batch[:1], packing=True)
    assert torch.equal(part, whole) and torch.equal(trained.parameter.grad, expected)
    assert list(model.model.layers) == layers


def test_a_study_trains_each_layer_from_the_base_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    for name, value in dict(PROBED=4, TRAINED=2, HELD_OUT=2, STEPS=2, RATE=1e-2, REPLY_TOKENS=4).items():
        monkeypatch.setattr(layer_gain, name, value)
    monkeypatch.setattr(layer_scores, "TOP", 1)
    save_folder(tmp_path / "model", tiny_model(num_hidden_layers=3))
    for code in layer_gain.LANGUAGES:
        (folder := tmp_path / "pairs" / f"{code}-en").mkdir(parents=True)
        (folder / f"train.{code}").write_text("".join(f"{code} question {n}\n" for n in range(8)))
        (folder / "train.en").write_text("".join(f"english {n}\n" for n in range(8)))
    options = ["--prompt", "alpaca", "--dtype", "float32", "--name", "tiny", "--results", str(tmp_path)]
    options += [f"--{name}={tmp_path / name}" for name in ("model", "pairs", "work")]
    layer_gain.main(options)
    stages = json.loads((tmp_path / "layer-gain-tiny.json").read_text())["stages"]
    gains = [row["gains"] for row in stages["layer-gain"]["rows"]]
    assert len(gains) == 3 and all(gain["reply, reply loss"] > 0 for gain in gains)
    assert len({gain["translate, translate loss"] for gain in gains}) == 3
    rows = stages["layer-correlation"]["rows"]
    assert {row["score"] for row in rows} >= {"active_msd", "snr", "gradient_norm", "lowest"}
    assert all(row["best_gain"] >= row["top_gain"] and row["best_gain"] >= row["mean_gain"] for row in rows)
    assert [row["questions"] for row in stages["layer-stability"]["rows"]] == [1, 2]

    again = tmp_path / "work" / "reply-01.json"
    first = again.read_text()
    again.unlink()
    layer_gain.main(options)
    assert json.loads(again.read_text()) == json.loads(first)


def test_the_order_of_layers_covers_all_of_them_from_everywhere_at_once():
    assert layer_gain.spread(12) == [0, 8, 4, 2, 6, 10, 1, 3, 5, 7, 9, 11]


def test_rank_correlations_have_their_known_values():
    x = np.array([1.0, 2, 3, 4, 5])
    y = np.array([2.0, 1, 4, 3, 5])
    assert spearman(x, y) == pytest.approx(0.8) and kendall(x, y) == pytest.approx(0.6)
    assert spearman(x, -x) == -1 and kendall(x, np.exp(x)) == 1
    tied = np.array([1.0, 2, 2, 3])  # mean ranks 0, 1.5, 1.5, 3: rho = 4.5 / sqrt(4.5 * 5)
    assert spearman(tied, np.arange(4.0)) == pytest.approx(0.9487, abs=1e-4)
    low, high = spearman_interval(np.arange(30.0), np.random.default_rng(1).normal(size=30), resamples=500)
    assert low < 0 < high


def test_signal_to_noise_of_known_singular_values():
    # Quartiles 1.75 and 4.25, so sigma 1.853 and the bound of a square matrix 3.706: 8 is signal, 3 + 2 + 1 noise.
    weight = torch.diag(torch.tensor([8.0, 3, 2, 1]))
    assert spectrum_snr(weight) == pytest.approx(8 / 6 / 8)
