"""Choosing layers by their place alone, without statistics: a model that fits no single GPU cannot be probed."""

from slamkern.errors import SlamkernError
from slamkern.pipeline.checks import check_model
from slamkern.pipeline.loading import load_config_of
from slamkern.pipeline.sections import RunConfig
from slamkern.probe.stats import model_signature
from slamkern.selection.layers import WITHOUT_SCORES, LayerSelection, choose_before_probe


def choose_by_place(config: RunConfig) -> LayerSelection:
    """The selection of the select section for the model whose configuration the model section names.

    SlamkernError for a rule that goes by scores, and for single neurons, which are chosen by them.
    """
    section, model = config.select, config.model
    if section.preset is not None:
        return LayerSelection.preset(section.preset)
    if section.rule.partition(":")[0] not in WITHOUT_SCORES or section.neuron_fraction is not None:
        what = f"rule {section.rule}" if section.neuron_fraction is None else "neuron_fraction"
        raise SlamkernError(
            f"{what} goes by scores: give the folder of a probe; without one, select.rule is one of"
            f" {' '.join(WITHOUT_SCORES)}"
        )
    num_layers = check_model(model)
    layers = choose_before_probe(num_layers, section.k, section.rule, section.region, seed=section.seed)
    signature = model_signature(load_config_of(model.name, trust_remote_code=model.trust_remote_code))
    return LayerSelection(
        layers, k=len(layers), model=model.name, signature=signature, rule=section.rule, num_layers=num_layers
    )
