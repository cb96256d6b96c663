"""Probing with CUDA graphs: the statistics of the same tokens, and of no others."""

import pytest
import torch
from support.graphs import Launches, recorded_graphs, shapes_alone  # noqa: F401
from support.packed_models import examples
from support.tiny_models import tiny_model

import slamkern
from slamkern.data.buckets import in_bucket
from slamkern.data.packing import Example, collate
from slamkern.errors import SlamkernError
from slamkern.modules.cuda_graphs import NoSync
from slamkern.modules.packed_attention import packed_attention
from slamkern.ops.dispatch import backends

TEXTS = {
    "en": [f"How many are {n} apples?" for n in range(30)],
    "de": [f"Wie viele sind {n} Birnen?" for n in range(30)],
}


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_statistics_are_those_without(tiny_tokenizer, recorded_graphs, backend):  # noqa: F811
    if reason := backends("cpu")[backend]:
        pytest.skip(reason)
    stats = []
    for cuda_graphs in (False, True):
        model = slamkern.patch_model(tiny_model("llama"), backend=backend)
        stats.append(
            slamkern.collect_stats(
                model, tiny_tokenizer, TEXTS, token_budget=200, groups=2, cuda_graphs=cuda_graphs, progress=False
            )
        )
    (graphs,) = recorded_graphs
    assert graphs.captured >= 1 and graphs.replayed >= 3
    without, captured = stats
    for name in ("count", "active"):
        assert torch.equal(getattr(captured, name), getattr(without, name)), name
    for name in ("mean", "m2"):
        torch.testing.assert_close(getattr(captured, name), getattr(without, name), rtol=1e-5, atol=1e-6)


def test_no_forward_waits_for_the_device_and_all_batches_of_a_bucket_are_the_same_launches(monkeypatch):
    """With the plan of Triton's kernel, which is made on the device."""
    if reason := backends("cpu")["triton"]:  # the model is tried out on the CPU before it moves
        pytest.skip(reason)
    model = slamkern.patch_model(tiny_model("llama"), backend="triton")
    noted = []
    with packed_attention(model), torch.no_grad():
        shapes_alone(monkeypatch)
        monkeypatch.setattr("slamkern.kernels.unavailable_reason", lambda device_type: None)
        model.to("meta")
        with slamkern.record_stats(model, ["en", "de"]) as recorder:
            for lengths in ((5, 17, 1, 9, 30), (9, 20, 11, 6, 17)):
                told = [
                    Example(e.input_ids, e.labels, (n % 2,) * len(e.labels)) for n, e in enumerate(examples(lengths))
                ]
                batch = in_bucket(collate(told)).to("meta")
                with Launches() as launches, NoSync(), recorder.tokens(batch.language_ids):
                    model.model(**batch.model_inputs)
                noted.append(launches.noted)
    assert noted[0] == noted[1] and sum("swiglu_record" in op for op, _ in noted[0]) == 4


def test_models_that_cannot_be_captured_are_refused(tiny_tokenizer, monkeypatch):
    with pytest.raises(SlamkernError, match="one NVIDIA GPU; this one is on cpu"):
        slamkern.collect_stats(tiny_model(), tiny_tokenizer, TEXTS, cuda_graphs=True, progress=False)
    monkeypatch.setattr("slamkern.probe.collect.check_capturable", lambda devices: None)
    with pytest.raises(SlamkernError, match="needs packed batches"):
        slamkern.collect_stats(tiny_model("falcon"), tiny_tokenizer, TEXTS, cuda_graphs=True, progress=False)
