"""Scores against formulas written out, choice rules, stability, presets, and the selection file."""

import dataclasses
import json
import math

import pytest
import torch

import slamkern
from slamkern.probe.stats import ActivationStats, QuestionGroups
from slamkern.selection.layers import LayerSelection
from slamkern.selection.scores import SCORES, neuron_scores

LANGUAGES, LAYERS, NEURONS, TOKENS = ("en", "de", "th"), 6, 40, 100


def stats_with(rate: torch.Tensor, groups: int = 0, seed: int = 0, mean: torch.Tensor | None = None) -> ActivationStats:
    """Statistics in which neuron n of layer i is active on the share rate[l, i, n] of 100 tokens of language l."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(LANGUAGES), LAYERS, NEURONS)
    mean = torch.rand(shape, generator=generator, dtype=torch.float64) if mean is None else mean
    m2 = (1 + torch.rand(shape, generator=generator, dtype=torch.float64)) * TOKENS
    active = (rate * TOKENS).round().long()
    count = torch.full((len(LANGUAGES),), TOKENS)
    grouped = None
    if groups:
        share = TOKENS // groups
        drawn = torch.binomial(torch.full((groups, *shape), float(share)), rate.expand(groups, *shape).float())
        grouped = QuestionGroups(
            torch.full((groups, len(LANGUAGES)), share), mean.float().expand(groups, *shape).clone(), drawn.int()
        )
    return ActivationStats(LANGUAGES, "m", "llama-6-8-40", "gate", count, mean, m2, active, grouped)


@pytest.fixture
def rate() -> torch.Tensor:
    return torch.rand(len(LANGUAGES), LAYERS, NEURONS, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_scores_follow_their_formulas(rate):
    stats = stats_with(rate)
    p = stats.active.double() / TOKENS
    for layer in range(LAYERS):
        n = [float(p[lang, layer].sum()) for lang in range(3)]
        center = sum(n) / 3
        for lang in range(3):
            assert SCORES["active_msd"](stats)[layer, lang] == pytest.approx((n[lang] - center) ** 2)
            assert SCORES["active_msd"](stats, center="en")[layer, lang] == pytest.approx((n[lang] - n[0]) ** 2)
            spread = p[lang, layer] - p[:, layer].mean(0)
            assert SCORES["rate_msd"](stats)[layer, lang] == pytest.approx(float(spread.square().mean()))
            deviation = stats.mean[lang, layer] - stats.mean[:, layer].mean(0)
            pooled = float((stats.m2[:, layer].sum(0) / (3 * TOKENS)).mean())
            expected = float(deviation.square().mean()) / pooled
            assert SCORES["mean_msd"](stats)[layer, lang] == pytest.approx(expected)
            english, own = (
                set((p[0, layer] > 0.5).nonzero()[:, 0].tolist()),
                set((p[lang, layer] > 0.5).nonzero()[:, 0].tolist()),
            )
            overlap = 1 - len(english & own) / len(english)
            assert SCORES["english_overlap"](stats, center="en")[layer, lang] == pytest.approx(overlap)


def test_lape_finds_the_neurons_of_one_language():
    rate = torch.full((3, LAYERS, NEURONS), 0.3, dtype=torch.float64)
    rate[2, 4, :2] = 0.99  # two neurons of layer 4 that hardly anything but Thai activates
    rate[:2, 4, :2] = 0.01
    scores = SCORES["lape"](stats_with(rate))
    assert scores[4, 2] == pytest.approx(2 / NEURONS) and scores.sum() == scores[4, 2]
    assert set(neuron_scores(stats_with(rate), "lape")[4].topk(2).indices.tolist()) == {0, 1}


def test_mean_msd_does_not_grow_with_the_scale_of_a_layer(rate):
    stats = stats_with(rate)
    scaled = dataclasses.replace(stats, mean=stats.mean * 7, m2=stats.m2 * 49)
    torch.testing.assert_close(SCORES["mean_msd"](scaled), SCORES["mean_msd"](stats))


def test_rules_choose(rate):
    rate[2, 1] = 0.0
    rate[2, 5] = 1.0
    stats = stats_with(rate)
    choose = lambda **options: slamkern.select_layers(stats, **options).layers  # noqa: E731
    ranked = SCORES["active_msd"](stats).mean(1).argsort(descending=True).tolist()
    assert choose(k=2, region="all") == tuple(sorted(ranked[:2])) == (1, 5)
    assert choose(k=1) == (1,) and choose(k=1, region="upper") == (5,)
    assert choose(k=2, region="2-3") == (2, 3)
    assert choose(k=3, rule="lowest") == (0, 1, 2)
    assert choose(rule="list:4,0,4") == (0, 4)
    assert choose(rule="threshold:50", region="all") == (1, 5)
    one, two = (choose(k=3, rule="random", region="all", seed=seed) for seed in (0, 1))
    assert one == choose(k=3, rule="random", region="all", seed=0) and one != two and len(set(one)) == 3


def test_stability_is_high_for_a_clear_choice_and_low_for_a_coin_toss():
    flat = torch.full((3, LAYERS, NEURONS), 0.5, dtype=torch.float64)
    clear = flat.clone()
    clear[2, 4] = 0.9
    certain = slamkern.select_layers(stats_with(clear, groups=10), k=1, region="all")
    assert certain.layers == (4,) and certain.stability == (0, 0, 0, 0, 1, 0)
    doubtful = slamkern.select_layers(stats_with(flat, groups=10), k=1, region="all")
    assert sum(doubtful.stability) == pytest.approx(1) and max(doubtful.stability) < 0.9
    assert slamkern.select_layers(stats_with(flat), k=1).stability is None


def test_stability_leaves_out_a_language_a_resample_missed():
    stats = stats_with(torch.rand(3, LAYERS, NEURONS).double(), groups=2)
    only_first = stats.groups.count.clone()
    only_first[1, 2] = 0
    grouped = dataclasses.replace(stats.groups, count=only_first)
    selection = slamkern.select_layers(dataclasses.replace(stats, groups=grouped), k=2)
    assert all(math.isfinite(share) for share in selection.stability)


def test_neurons_of_chosen_layers(rate):
    rate[:, 2, 7] = torch.tensor([0.0, 0.5, 1.0])
    selection = slamkern.select_layers(stats_with(rate), rule="list:2,3", neuron_fraction=0.1)
    assert set(selection.neurons) == {2, 3} and all(len(ids) == 4 for ids in selection.neurons.values())
    assert 7 in selection.neurons[2] and list(selection.neurons[2]) == sorted(selection.neurons[2])


def test_file_contract_and_round_trip(rate, tmp_path):
    selection = slamkern.select_layers(stats_with(rate, groups=4), k=2, neuron_fraction=0.05, bootstrap=5)
    path = tmp_path / "selection.json"
    selection.save(path)
    content = json.loads(path.read_text())
    assert content["layers"] == list(selection.layers) and content["score"] == "active_msd" and content["k"] == 2
    assert len(content["scores"]) == LAYERS and len(content["scores"][0]) == len(LANGUAGES)
    assert content["model"] == "m" and set(content["neurons"]) == set(map(str, selection.layers))
    assert LayerSelection.load(path) == selection
    path.write_text('{"layers": [1]}')
    with pytest.raises(slamkern.SlamkernError, match=r"is not a selection\.json"):
        LayerSelection.load(path)


def test_presets_are_the_authors_layers():
    assert (
        slamkern.LayerSelection.preset("slam-7b-paper").layers
        == slamkern.LayerSelection.preset("slam-13b").layers
        == (0, 1, 2, 3, 4, 5)
    )
    assert slamkern.LayerSelection.preset("slam-7b-script").layers == (0, 1, 2, 3, 4)
    with pytest.raises(slamkern.SlamkernError, match="unknown preset 'slam-70b'; known: slam-7b-paper"):
        slamkern.LayerSelection.preset("slam-70b")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 9}, "k is 9; the region has 3 of 6 layers: choose k from 1 to 3"),
        ({"k": 0}, "k is 0"),
        ({"rule": "list:2,6,-1"}, "layers out of range: -1, 6; the model has layers 0 to 5"),
        ({"rule": "list:a"}, "layers 'a' are not numbers"),
        ({"rule": "threshold:1e9"}, "the highest score in the region is"),
        ({"rule": "threshold:x"}, "needs a number"),
        ({"rule": "best"}, "unknown rule 'best'; known: top_k"),
        ({"rule": "lowest:3"}, "takes no argument; k says how many"),
        ({"region": "middle"}, "unknown region 'middle'; known: lower"),
        ({"region": "4-9"}, "within 0-5"),
        ({"score": "msd"}, "unknown score 'msd'; known: active_msd"),
        ({"center": "de"}, "unknown center 'de'; known: mean en"),
        ({"neuron_fraction": 1.5, "k": 1}, "neuron_fraction is 1.5"),
    ],
)
def test_bad_options_are_refused(rate, options, message):
    with pytest.raises(slamkern.SlamkernError, match=message):
        slamkern.select_layers(stats_with(rate), **options)


def test_a_comparison_with_english_needs_english(rate):
    stats = dataclasses.replace(stats_with(rate), languages=("fr", "de", "th"))
    for options in ({"score": "english_overlap"}, {"center": "en"}):
        with pytest.raises(slamkern.SlamkernError, match="needs 'en' among the languages: fr de th"):
            slamkern.select_layers(stats, k=1, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": [True, False]}, r"layers\.0: .*valid integer, not True"),
        ({"layers": "01"}, r"layers: .*valid array, not '01'"),
        ({"layers": []}, r"layers: .*at least 1 item"),
        ({"layers": [-1]}, r"layers\.0: .*greater than or equal to 0, not -1"),
        ({"layers": [1, 1]}, r"layers: a value twice in 1, 1"),
        ({"layers": [0, 99]}, r"layer 99, but its model has layers 0 to"),
        ({"scores": "abcd"}, r"scores: .*valid array, not 'abcd'"),
        ({"scores": [[1.0]]}, r"scores of 1 layers, but the model has"),
        ({"languages": None}, r"languages: .*valid array, not None"),
        ({"languages": "end"}, r"languages: .*valid array, not 'end'"),
        ({"languages": ["en", "en", "de"]}, r"languages: a value twice"),
        ({"neurons": {"x": [1]}}, r"neurons of the layers x"),
        ({"stability": [2.0]}, r"stability\.0: .*less than or equal to 1, not 2"),
        ({"k": 1.5}, r"k: .*valid integer"),
    ],
)
def test_a_file_that_is_no_selection(rate, tmp_path, change, message):
    path = tmp_path / "selection.json"
    values = slamkern.select_layers(stats_with(rate, groups=4), k=2, bootstrap=5).to_dict()
    path.write_text(json.dumps(values | change))
    with pytest.raises(slamkern.SlamkernError, match=rf"is not a selection\.json: {message}"):
        LayerSelection.load(path)


@pytest.mark.parametrize(
    ("rule", "k", "region", "layers"),
    [
        ("lowest", 2, "all", (0, 1)),
        ("highest", 2, "all", (4, 5)),
        ("highest", 2, "lower", (1, 2)),
        ("ends", 2, "all", (0, 5)),
        ("ends", 3, "all", (0, 1, 5)),
        ("ends", 1, "all", (0,)),
        ("middle", 2, "all", (2, 3)),
        ("middle", 3, "1-5", (2, 3, 4)),
        ("middle", 6, "all", (0, 1, 2, 3, 4, 5)),
    ],
)
def test_rules_of_place(rate, rule, k, region, layers):
    assert slamkern.select_layers(stats_with(rate), k, rule=rule, region=region).layers == layers
