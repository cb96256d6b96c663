"""Training with CUDA graphs: the same steps; nothing in a micro-batch that a graph cannot repeat."""

from dataclasses import replace

import pytest
import torch
from support.graphs import launches_of_training, recorded_graphs  # noqa: F401
from support.packed_models import examples
from support.tiny_models import FAMILIES, tiny_model
from support.tiny_training import CONFIG, lines, selected

import slamkern
from benchmarks import families
from slamkern.data.buckets import in_bucket
from slamkern.data.packing import collate
from slamkern.errors import SlamkernError
from slamkern.modules.packed_attention import supports_packing
from slamkern.selection.layers import LayerSelection

IN_GRAPHS = replace(CONFIG, cuda_graphs=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_is_the_run_without_to_rounding(fit, recorded_graphs, tmp_path, dtype):  # noqa: F811
    theirs, expected = fit(CONFIG, model=selected().to(dtype))
    ours, result = fit(IN_GRAPHS, model=selected().to(dtype), out=tmp_path)
    (graphs,) = recorded_graphs
    assert graphs.captured >= 1 and graphs.replayed >= graphs.captured
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    assert result.losses == pytest.approx(expected.losses, rel=tolerance)
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=tolerance, atol=tolerance, msg=name)
    assert result.tokens == expected.tokens  # real ones
    assert 0 < result.padding_share < 1 / 9 and expected.padding_share == 0
    assert all(row["padding_share"] > 0 for row in lines(tmp_path))
    assert all(parameter.grad is None for parameter in ours.parameters())


def test_what_cannot_be_captured_is_refused(fit):
    with pytest.raises(SlamkernError, match="cuda_graphs is for a model on one NVIDIA GPU; this one is on cpu"):
        fit(IN_GRAPHS)
    with pytest.raises(SlamkernError, match="cuda_graphs and packing False do not go together"):
        replace(IN_GRAPHS, packing=False)


# Layers that are handed position ids alone, latent attention, and a look for padding in the ids.
OTHERS = ("stablelm", "minicpm3", "gpt-sw3")


@pytest.mark.parametrize("family", [*sorted(FAMILIES), *OTHERS])
def test_no_family_waits_for_the_device_and_all_batches_of_a_bucket_are_the_same_launches(family, monkeypatch):
    model = families.build(family) if family in OTHERS else tiny_model(family)
    if supports_packing(model) is not None:
        pytest.skip("cannot be packed")
    slamkern.patch_model(model)
    slamkern.apply_selection(model, LayerSelection(layers=(1,)), projections=("down",))
    batches = [collate(examples(lengths)) for lengths in ((5, 17, 1, 9, 30), (9, 20, 11, 6, 17))]
    noted = launches_of_training(model, [*batches, *map(in_bucket, batches)], monkeypatch)
    assert noted[2] == noted[3] != noted[0] != noted[1]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_a_run_is_the_run_without_to_rounding(fit):
    _, expected = fit(CONFIG, model=selected().to("cuda", torch.bfloat16))
    _, result = fit(IN_GRAPHS, model=selected().to("cuda", torch.bfloat16))
    assert result.losses == pytest.approx(expected.losses, rel=1e-2) and result.tokens == expected.tokens
