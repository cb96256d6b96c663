"""Layers by the signal-to-noise ratio of their weights (Spectrum, arXiv 2406.06623): no data, no forward."""

from collections.abc import Sequence
from statistics import fmean

import torch
from torch import Tensor, nn

from slamkern.errors import SlamkernError
from slamkern.modules.ffn_match import by_layer, find_ffns


def spectrum_snr(weight: Tensor) -> float:
    """Singular values above the Marchenko-Pastur bound over those below it, divided by the largest one.

    As Spectrum has it: sigma = interquartile range of the singular values / 1.349, the bound
    ``sigma * (1 + sqrt(smaller side / larger side))``.
    """
    values = torch.linalg.svdvals(weight.double())
    quartiles = values.quantile(torch.tensor([0.25, 0.75], dtype=values.dtype, device=values.device))
    small, large = sorted(weight.shape)
    bound = float(quartiles[1] - quartiles[0]) / 1.349 * (1 + (small / large) ** 0.5)
    noise = float(values[values <= bound].sum())
    return float(values[values > bound].sum()) / (noise or 1.0) / float(values.max())


def weight_snr(model: nn.Module, projections: Sequence[str] = ("up", "down")) -> list[float]:
    """Mean over the ``projections`` of every layer's FFN, layer by layer.

    Spectrum ranks each kind of projection by itself; here whole layers are ranked, so that each trains all of them.
    """
    ffns = by_layer(find_ffns(model))
    if not ffns:
        raise SlamkernError(f"{type(model).__name__} has no FFN that slamkern knows; explain(model) says why")
    return [
        fmean(
            spectrum_snr(getattr(ffns[layer].block, getattr(ffns[layer].part, name)).weight.detach())
            for name in projections
        )
        for layer in sorted(ffns)
    ]
