"""Tokens in the order of their language, cut into parts of one language each: what the statistics kernel walks over.

Made once a batch and used by every layer: it depends on the ids alone. A part has at most ``launch.part_rows`` rows, so
there are ``tokens / part_rows + languages + 1`` of them at most; the tokens of no language are parts too, for they have
activations. Nothing here waits for the device, unless the ids are on the CPU already: then the table of parts is cut
to those that exist.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from slamkern.kernels import launch

COLUMNS = 6  # of a part: first place in `order`, rows, language, and of that the first slot, parts before, parts


class RowPlan(NamedTuple):
    """See the module docstring; the last two are working memory, which one launch at a time may use."""

    order: Tensor  # (tokens,) int32: token indices, sorted by language
    parts: Tensor  # (parts, COLUMNS) int32; parts that do not exist have 0 rows
    arrived: Tensor  # (languages, strips + 1) int32, zeros before and after a launch
    partials: Tensor  # (slots, 3, neurons) float32: mean, M2 and active of the parts of languages with several


def plan_rows(language_ids: Tensor, num_languages: int, neurons: int, device: torch.device | None = None) -> RowPlan:
    """The plan for ``language_ids`` (tokens,) int32 on ``device`` (theirs by default), for matrices of so many neurons.

    Ids outside ``0..num_languages-1`` stand for no language.
    """
    ids, device = language_ids, language_ids.device if device is None else device
    tokens, none = ids.shape[0], num_languages
    most = launch.part_rows(tokens, neurons, launch.processors(device))
    known = torch.where((ids >= 0) & (ids < none), ids, none).long()
    order = torch.sort(known, stable=True).indices
    rows = torch.zeros(none + 1, dtype=torch.int64, device=ids.device).index_add_(0, known, torch.ones_like(known))
    parts_of = (rows + (most - 1)) // most
    last = parts_of.cumsum(0)
    length = int(last[-1]) if ids.device.type == "cpu" else tokens // most + none + 1
    index = torch.arange(length, device=ids.device)
    language = torch.searchsorted(last, index, right=True)
    exists, language = language <= none, language.clamp(max=none)
    before = index - (last - parts_of)[language]
    first = (rows.cumsum(0) - rows)[language] + before * most
    here = torch.where(exists, (rows[language] - before * most).clamp(max=most), 0)
    # Languages of a single part need no slot: at most 2 * tokens / most parts have company, however many languages.
    several = torch.where(parts_of > 1, parts_of, 0)
    several[none:].zero_()  # `several[none] = 0` would wait: torch copies the number from the CPU
    slot = (several.cumsum(0) - several)[language]
    parts = torch.stack((first, here, language, slot, before, parts_of[language]), 1).to(torch.int32)
    slots, strips = 2 * (tokens // most), launch.most_strips(neurons)
    return RowPlan(
        order.to(torch.int32).to(device, non_blocking=True),
        parts.to(device, non_blocking=True),
        torch.zeros((num_languages, strips + 1), dtype=torch.int32, device=device),
        torch.empty((slots, 3, neurons), dtype=torch.float32, device=device),
    )
