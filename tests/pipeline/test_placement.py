"""Layers chosen by place, without statistics: those that a probe would have led to, and what is refused."""

import pytest

from slamkern.cli.main import main
from slamkern.errors import SlamkernError
from slamkern.pipeline.config import build_config
from slamkern.pipeline.loading import load_model
from slamkern.pipeline.placement import choose_by_place
from slamkern.probe.collect import collect_stats
from slamkern.selection.layers import LayerSelection, select_layers
from slamkern.selection.trainable import apply_selection


def configuration(folder, **select):
    return build_config({"model": {"name": str(folder), "device": "cpu"}, "select": {"k": 1, "region": "all"} | select})


@pytest.mark.parametrize("rule", ["lowest", "highest", "ends", "middle", "random", "list:1"])
def test_layers_are_those_that_the_rule_names_with_statistics(model_folder, rule):
    model, tokenizer = load_model(str(model_folder), "float32", "cpu")
    stats = collect_stats(model, tokenizer, {"en": ["How many?"], "de": ["Wie viele?"]}, progress=False)
    expected = select_layers(stats, 1, rule=rule, region="all", bootstrap=0, seed=3)
    chosen = choose_by_place(configuration(model_folder, rule=rule, seed=3))
    assert (chosen.layers, chosen.rule, chosen.num_layers) == (expected.layers, rule, 2)
    assert chosen.signature == expected.signature and apply_selection(model, chosen)


def test_a_choice_that_needs_scores_is_refused(model_folder):
    for select, words in (
        ({"rule": "top_k"}, "rule top_k goes by scores: give the folder of a probe"),
        ({"rule": "threshold:1"}, "rule threshold:1 goes by scores"),
        ({"rule": "lowest", "neuron_fraction": 0.5}, "neuron_fraction goes by scores"),
        ({"rule": "lowest", "k": 3}, "k is 3; the region has 2 of 2 layers"),
    ):
        with pytest.raises(SlamkernError, match=words):
            choose_by_place(configuration(model_folder, **select))


def test_the_command_selects_with_a_model_alone(model_folder, tmp_path, capsys):
    named = ["select", "--model", str(model_folder), "-k", "1", "--out", str(tmp_path / "out")]
    assert main([*named, "-s", "select.rule=lowest"]) == 0
    assert "layers 0" in capsys.readouterr().out
    assert LayerSelection.load(tmp_path / "out/selection.json").layers == (0,)
    assert main([*named]) == 2
    assert "give the folder of a probe" in capsys.readouterr().err
    assert main(["select", str(tmp_path), *named[1:], "-s", "select.rule=lowest"]) == 2
    assert "--model is for" in capsys.readouterr().err
