"""Selections of other tools: what axolotl would unfreeze, and masks as the code of LAPE saves them."""

import re

import pytest
import torch
import yaml
from support.tiny_models import tiny_model

from slamkern.errors import SlamkernError
from slamkern.modules.patch import patch_model
from slamkern.selection.exchange import read_lape_mask, unfrozen_parameters
from slamkern.selection.layers import LayerSelection
from slamkern.selection.trainable import apply_selection, trained_parameters


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_axolotl_unfreezes_exactly_what_a_selection_trains(family):
    model = tiny_model(family)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    patterns = yaml.safe_load(unfrozen_parameters(model, LayerSelection((0, 1))))["unfrozen_parameters"]
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    unfrozen = {name for name, _ in model.named_parameters() if any(re.match(pattern, name) for pattern in patterns)}
    apply_selection(model, LayerSelection((0, 1)))
    assert unfrozen == set(trained_parameters(model)) and len(unfrozen) == 4
    with pytest.raises(SlamkernError, match="single neurons"):
        unfrozen_parameters(model, LayerSelection((0,), neurons={0: (1,)}))


def test_half_of_a_weight_has_no_name():
    selection = LayerSelection((1,))
    for model in (tiny_model("phi3"), patch_model(tiny_model("phi3"))):
        with pytest.raises(SlamkernError, match=r"half of model\.layers\.1\.mlp\.gate_up_proj.*projections gate, up"):
            unfrozen_parameters(model, selection)
        whole = unfrozen_parameters(model, selection, ("gate", "up", "down"))
        assert whole.count("gate_up_proj") == 1 and whole.count("down_proj") == 1


def test_what_is_trained_meanwhile_stays(llama):
    patch_model(llama)
    apply_selection(llama, LayerSelection((1,), neurons={1: (2, 3)}))
    before = trained_parameters(llama)
    assert unfrozen_parameters(llama, LayerSelection((1,))).count("proj") == 2
    assert trained_parameters(llama) == before and len(before) == 2


def test_a_lape_mask_becomes_a_selection_of_neurons(tmp_path):
    path = tmp_path / "mask"
    ids = [[[3, 1], [], [7]], [[1, 2], [], []]]  # two languages, three layers
    torch.save([[torch.tensor(layer).long() for layer in language] for language in ids], path)
    both = read_lape_mask(path, ["de", "th"], mask_languages=["th", "de"])
    assert (both.layers, both.neurons, both.num_layers) == ((0, 2), {0: (1, 2, 3), 2: (7,)}, 3)
    assert read_lape_mask(path, ["de"], mask_languages=["th", "de"]).neurons == {0: (1, 2)}
    both.save(tmp_path / "selection.json")
    assert LayerSelection.load(tmp_path / "selection.json") == both
    for languages, named, words in (
        (["fr"], ["th", "de"], "has no fr; it has th de"),
        (["de"], ["de"], "has 2 languages, and 1 are named"),
    ):
        with pytest.raises(SlamkernError, match=words):
            read_lape_mask(path, languages, mask_languages=named)
    torch.save({"de": torch.ones(2)}, path)
    with pytest.raises(SlamkernError, match="not a LAPE mask"):
        read_lape_mask(path, ["de"], mask_languages=["de"])
    path.write_text("no")
    with pytest.raises(SlamkernError, match="not a mask saved by torch"):
        read_lape_mask(path, ["de"], mask_languages=["de"])
