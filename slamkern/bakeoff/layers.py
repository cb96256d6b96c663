"""Which layers and neurons a cell trains: its rule, applied to what was measured of the base model once."""

from pathlib import Path
from typing import Any

from slamkern.bakeoff.config import Cell
from slamkern.errors import SlamkernError
from slamkern.files import read_checked
from slamkern.probe.stats import ActivationStats
from slamkern.selection.layers import LayerSelection, choose_before_probe, choose_by_score, select_layers
from slamkern.selection.scores import SCORES

PLACES = ("lowest", "highest", "ends", "middle", "random")
STATS, WEIGHT_SNR, GRADIENT_NORM = "stats.safetensors", "weight_snr.json", "gradient_norm.json"
_FILES = {"weight_snr": WEIGHT_SNR, "gradient_norm": GRADIENT_NORM}


def needed_files(cell: Cell) -> tuple[str, ...]:
    """Which measurements of the base model the choice stands on."""
    rule = _parse(cell.layers)[0]
    scored = (_FILES[rule],) if rule in _FILES else (STATS,) if rule in SCORES else ()
    return tuple(dict.fromkeys((*scored, *((STATS,) if cell.neurons is not None else ()))))


def check_layers_of(cell: Cell, num_layers: int) -> None:
    """Refuse a rule that is unknown or cannot be kept by a model of so many layers."""
    rule, k, region = _parse(cell.layers)
    if rule == "list":
        choose_before_probe(num_layers, 1, cell.layers, "all")
    elif rule != "all":
        choose_before_probe(num_layers, k, "top_k", region)


def number_of_layers(cell: Cell, num_layers: int) -> int:
    """How many layers the rule will name."""
    rule, k, _ = _parse(cell.layers)
    if rule == "list":
        return len(choose_before_probe(num_layers, 1, cell.layers, "all"))
    return num_layers if rule == "all" else k


def choose(cell: Cell, num_layers: int, folder: Path, seed: int) -> LayerSelection:
    """The selection of a cell; ``folder`` holds the measurements, ``seed`` draws random layers."""
    rule, k, region = _parse(cell.layers)
    if rule == "all":
        layers: tuple[int, ...] = tuple(range(num_layers))
    elif rule == "list":
        layers = choose_before_probe(num_layers, 1, cell.layers, "all")
    elif rule in PLACES:
        layers = choose_before_probe(num_layers, k, rule, region, seed=seed)
    elif rule in _FILES:
        layers = choose_by_score(read_checked(folder / _FILES[rule])["scores"], k, region)
    else:
        layers = select_layers(ActivationStats.load(folder / STATS), k, rule, region=region, bootstrap=0).layers
    if cell.neurons is None:
        return LayerSelection(layers, k=len(layers), num_layers=num_layers)
    listed = f"list:{','.join(map(str, layers))}"
    return select_layers(
        ActivationStats.load(folder / STATS), score="lape", rule=listed, region="all",
        neuron_fraction=cell.neurons, bootstrap=0,
    )  # fmt: skip


def _parse(text: str) -> tuple[str, int, str]:
    """(rule, k, region) of ``RULE:K[:REGION]``; k is 0 where the rule has none."""
    rule, _, rest = text.partition(":")
    known = (*PLACES, *SCORES, *_FILES)
    if text == "all" or (rule == "list" and rest):
        return rule, 0, "all"
    number, _, region = rest.partition(":")
    if rule not in known or not number.isdecimal():
        raise SlamkernError(f"layers {text!r}; expected all, list:0,3 or RULE:K[:REGION], RULE of: {' '.join(known)}")
    return rule, int(number), region or "all"


def describe(cell: Cell) -> dict[str, Any]:
    """The values of a cell that are not the defaults."""
    return cell.model_dump(mode="json", exclude_defaults=True)
