"""Several processes probe as one does: counts are equal, moments to rounding, and the selection is the same."""

import pytest
import torch
from support.processes import launch
from support.tiny_models import tiny_model

from slamkern import distributed
from slamkern.probe.collect import collect_stats
from slamkern.selection.layers import select_layers

TEXTS = {
    "en": [f"{n} apples and {n * n} pears" for n in range(9)],
    "de": [f"{n} Aepfel" for n in range(9)],
    "sw": ["tufaha", "matofaa mawili, matatu", "nne"],
}


def test_a_model_in_ddp_is_probed_where_a_process_has_no_batch(tiny_tokenizer):
    expected = collect_stats(tiny_model(), tiny_tokenizer, TEXTS, progress=False)

    def probe(_):
        distributed.join()
        wrapped = torch.nn.parallel.DistributedDataParallel(tiny_model())
        return collect_stats(wrapped, tiny_tokenizer, TEXTS, progress=False)

    for stats in launch(2, probe):
        assert torch.equal(stats.active, expected.active) and stats.signature == expected.signature


# One batch, which leaves the second process without any; many.
@pytest.mark.parametrize("token_budget", [4096, 64])
def test_processes_count_what_one_counts(tiny_tokenizer, token_budget):
    def probe(_=0):
        return collect_stats(tiny_model(), tiny_tokenizer, TEXTS, token_budget=token_budget, groups=2, progress=False)

    expected = probe()
    ours, theirs = launch(2, probe)
    again, _ = launch(2, probe)
    for stats in (theirs, again):
        for name in ("count", "mean", "m2", "active"):
            assert torch.equal(getattr(stats, name), getattr(ours, name)), name
    assert torch.equal(ours.count, expected.count) and torch.equal(ours.active, expected.active)
    torch.testing.assert_close(ours.mean, expected.mean, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ours.m2, expected.m2, rtol=1e-9, atol=1e-12)
    assert torch.equal(ours.groups.count, expected.groups.count)
    for score in ("active_msd", "mean_msd"):
        mine, theirs = select_layers(ours, 2, score), select_layers(expected, 2, score)
        assert mine.layers == theirs.layers
