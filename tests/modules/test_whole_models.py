"""Whole models on the device of the tests: patched against unpatched, and the same bits from run to run."""

import copy

import pytest
import torch
from support.kernel_checks import DEVICE, DTYPES, assert_as_good
from support.tiny_models import tiny_model

import slamkern
from slamkern.bench.runner import Runner
from slamkern.bench.variants import VARIANTS, Settings
from slamkern.data.packing import Example

# Wider than the other tests' models, so that a matrix has several tiles, the last of them ragged.
WIDE = {
    "llama": {"hidden_size": 192, "intermediate_size": 520},
    "gemma2": {"hidden_size": 192, "intermediate_size": 520, "head_dim": 48},
    "gpt_neox": {"hidden_size": 192, "intermediate_size": 520},
}
RUNS = 20


def wide(family, dtype=torch.float32):
    return tiny_model(family, **WIDE[family]).to(DEVICE, dtype)


@pytest.fixture
def deterministic():
    """torch's own deterministic kernels where it has a choice: attention's backward adds in any order without."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", WIDE)
def test_patched_models_are_as_good_as_unpatched(family, dtype):
    stock = wide(family, dtype)
    patched = slamkern.patch_model(copy.deepcopy(stock))
    exact = copy.deepcopy(stock).double()
    ids = torch.randint(3, 96, (3, 67), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    outputs = [model(input_ids=ids, labels=ids) for model in (patched, stock, exact)]
    assert_as_good(*(output.logits for output in outputs), "logits")
    for output in outputs:
        output.loss.backward()
    for (name, ours), theirs, truth in zip(
        patched.named_parameters(), stock.parameters(), exact.parameters(), strict=True
    ):
        assert_as_good(ours.grad, theirs.grad, truth.grad, name)


def test_statistics_are_the_same_bits_every_time(tiny_tokenizer):
    model = slamkern.patch_model(wide("llama"))
    texts = {"de": ["ab cd ef", "a"], "fr": ["gh", "ij kl mn op"], "sw": ["q r s"]}

    def probe():
        return slamkern.collect_stats(model, tiny_tokenizer, texts, groups=2, progress=False)

    first = probe()
    for _ in range(RUNS):
        again = probe()
        for name in ("count", "mean", "m2", "active"):
            assert torch.equal(torch.as_tensor(getattr(again, name)), torch.as_tensor(getattr(first, name))), name


@pytest.mark.usefixtures("deterministic")
def test_a_training_step_is_the_same_bits_every_time():
    generator = torch.Generator().manual_seed(2)
    ids = [tuple(torch.randint(3, 96, (length,), generator=generator).tolist()) for length in (40, 7, 23, 61)]
    examples = [Example(tokens, (-100,) * 3 + tokens[3:]) for tokens in ids]
    start = wide("llama", torch.bfloat16 if DEVICE == "cuda" else torch.float32)

    def step():
        model = copy.deepcopy(start)
        runner = Runner(VARIANTS["slamkern"], model, Settings((1, 2), packed_tokens=128))
        try:
            loss = runner.backward(examples)
            runner.update()
        finally:
            runner.close()
        return loss, model.state_dict()

    loss, weights = step()
    assert not torch.equal(weights["model.layers.1.mlp.up_proj.weight"], start.model.layers[1].mlp.up_proj.weight)
    for _ in range(RUNS):
        again_loss, again = step()
        assert again_loss == loss
        assert all(torch.equal(tensor, again[name]) for name, tensor in weights.items())
