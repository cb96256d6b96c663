"""Memory of a step: what is predicted is what autograd keeps and torch allocates; plans recompute as little as fits."""

import itertools
import logging
from dataclasses import replace

import pytest
import torch
from support.saved_floor import minimum_saved
from support.tiny_models import tiny_model

import slamkern
from slamkern.data.packing import Example, collate
from slamkern.data.pairs import Pair
from slamkern.modules.packed_attention import packed_attention
from slamkern.modules.patch import fused_ffns
from slamkern.selection.trainable import trained_parameters
from slamkern.training.loss import packed_loss, read_head
from slamkern.training.memory_budget import footprint, parse_bytes
from slamkern.training.optimizer import MasterAdamW
from slamkern.training.step_cost import Dimensions, peak_growth

SHAPE = dict(hidden_size=64, intermediate_size=176, num_attention_heads=4, num_hidden_layers=6, vocab_size=512)
LENGTHS = (70, 33, 90, 57)
TOKENS = sum(LENGTHS)


def prepared(family="llama", dtype=torch.bfloat16, layers=(1, 2), **overrides):
    model = slamkern.patch_model(tiny_model(family, **SHAPE | overrides).to(dtype))
    slamkern.apply_selection(model, layers)
    return model


def packed():
    generator = torch.Generator().manual_seed(0)
    rows = [tuple(torch.randint(3, 96, (length,), generator=generator).tolist()) for length in LENGTHS]
    return collate([Example(ids, ids) for ids in rows])


def kept_bytes(model):
    """Counted without hooks on modules: distinct storages that autograd holds beside parameters and buffers."""
    kept = {tensor.untyped_storage().data_ptr(): 0 for tensor in (*model.parameters(), *model.buffers())}
    alive, head, batch = [], read_head(model), packed()

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept.setdefault(storage.data_ptr(), storage.nbytes())
        alive.append(tensor.detach())
        return tensor

    with packed_attention(model), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        packed_loss(model, batch, head=head)
    return sum(kept.values())


def recompute_in(model, layers):
    for ffn in fused_ffns(model):
        ffn.recompute = ffn.layer in layers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("heads", "layers"), [(4, (0,)), (2, (1, 2))])
def test_a_frozen_llama_layer_keeps_the_least_it_can(dtype, heads, layers):
    model = prepared(dtype=dtype, layers=layers, num_key_value_heads=heads)
    measured = footprint(model)
    least = sum(minimum_saved(Dimensions.of(model.config), dtype.itemsize).values())
    hidden, neurons = SHAPE["hidden_size"] * dtype.itemsize, SHAPE["intermediate_size"] * dtype.itemsize
    width = {"D": hidden, "G": hidden * heads // 4, "F": neurons, "H": 4}
    assert least == 4 * width["D"] + 2 * width["G"] + 2 * width["F"] + 8 + 4 * width["H"]
    # The lowest layer with a whole graph also holds cosines and sines, which all layers share.
    for layer in set(range(min(layers) + 2, 5)) - set(layers):
        assert measured.saved[layer] == least
        assert measured.recomputable[layer] == 2 * neurons - hidden
    assert measured.saved[5] <= least + 8  # the last FFN: the index of its supervised tokens
    for layer in range(min(layers)):
        assert measured.saved[layer] == 0 and layer not in measured.recomputable
    assert measured.saved[min(layers)] == hidden + 2 * neurons  # x, gate and up: no attention, no norm


@pytest.mark.parametrize("recompute", [(), (2, 4), range(6)])
@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3"])
def test_prediction_equals_what_is_kept(family, recompute):
    model = prepared(family)
    measured = footprint(model, length=max(LENGTHS))
    chosen = set(recompute) & set(measured.recomputable)
    recompute_in(model, chosen)
    assert measured.saved_bytes(TOKENS, chosen) == pytest.approx(kept_bytes(model), rel=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("vocabulary", [512, 8])  # the peak is among the logits, or in the FFNs
def test_predicted_peak_is_close_to_the_allocators(dtype, vocabulary):
    model = prepared(dtype=dtype, vocab_size=max(96, vocabulary))
    measured = footprint(model)
    optimizer, head, batch = MasterAdamW(trained_parameters(model).items()), read_head(model), packed()
    for layers in ((), tuple(measured.recomputable)):
        recompute_in(model, layers)
        with packed_attention(model):
            for growth in (None, []):  # moments exist from the first step on
                with peak_growth(torch.device("cpu")) as growth:
                    (packed_loss(model, batch, head=head) / TOKENS).backward()
                    optimizer.collect_gradients()
                    optimizer.step(1e-5)
        expected = measured.total(TOKENS, layers) - measured.weights - measured.state
        assert 0.95 <= expected / growth[0] <= 1.2


def test_a_smaller_budget_recomputes_more_of_the_same_layers():
    measured = footprint(prepared())
    most, least = measured.total(TOKENS), measured.total(TOKENS, measured.recomputable)
    assert least < most
    plans = [measured.plan(TOKENS, least + (most - least) * step // 20).recompute for step in range(21)]
    for smaller, larger in itertools.pairwise(plans):
        assert smaller >= larger
    assert plans[0] == set(measured.recomputable) and plans[-1] == frozenset() and len(set(plans)) > 4
    for step, plan in enumerate(plans):
        budget = least + (most - least) * step // 20
        assert measured.total(TOKENS, plan) <= budget
        for other in itertools.combinations(measured.recomputable, max(0, len(plan) - 1)):
            assert not plan or measured.total(TOKENS, other) > budget  # no smaller set fits


def test_what_cannot_fit_says_how_much_it_needs_and_what_would():
    model = prepared()
    measured = footprint(model)
    least = measured.total(TOKENS, measured.recomputable)
    with pytest.raises(slamkern.SlamkernError, match=r"of 250 tokens needs .* GB .* micro-batches of \d+ tokens would"):
        measured.plan(TOKENS, least - 1)
    with pytest.raises(slamkern.SlamkernError, match="train fewer layers"):
        measured.plan(TOKENS, measured.weights)
    assert measured.plan(TOKENS, least).recompute == set(measured.recomputable)
    assert not any(ffn.recompute for ffn in fused_ffns(model))
    # Summed gradients outlive a micro-batch.
    assert footprint(model, accumulation=2).state > measured.state
    with pytest.raises(slamkern.SlamkernError, match="patch_model"):
        footprint(slamkern.unpatch_model(model))


def test_amounts_of_memory():
    assert parse_bytes("24GB") == 24 * 10**9 and parse_bytes(" 22.5 gib") == 22.5 * 2**30 and parse_bytes("7") == 7
    for bad in ("", "GB", "lots", "-1GB", "0GB", "24 GBs"):
        with pytest.raises(slamkern.SlamkernError, match="24GB"):
            parse_bytes(bad)
        with pytest.raises(slamkern.SlamkernError, match="24GB"):
            slamkern.TrainConfig(memory_budget=bad)
    with pytest.raises(slamkern.SlamkernError, match="choose one"):
        slamkern.TrainConfig(memory_budget="24GB", gradient_checkpointing=True)


def test_training_within_a_budget_is_bitwise_the_same_training(tiny_tokenizer, caplog):
    pairs = [Pair(f"zwei und {n}", f"two and {n}", "de") for n in range(8)]
    config = slamkern.TrainConfig(max_steps=2, tokens_per_batch=600, prompt="mathoctopus", max_length=600)

    def run(config):
        model = slamkern.patch_model(tiny_model("llama", max_position_embeddings=1024))
        slamkern.apply_selection(model, [1])
        result = slamkern.train(model, tiny_tokenizer, pairs, config, progress=False)
        assert not any(ffn.recompute for ffn in fused_ffns(model))
        return result.losses, model.state_dict()

    losses, weights = run(config)
    caplog.clear()  # where the command line ran before in this process, the first one was logged too
    with caplog.at_level(logging.INFO, "slamkern.training.memory_budget"):
        again, same = run(replace(config, memory_budget="2.2MB"))
    assert "recomputed in" in caplog.text and "recomputed in 0" not in caplog.text
    assert losses == again
    assert all(torch.equal(same[name], tensor) for name, tensor in weights.items())
    with pytest.raises(slamkern.SlamkernError, match="memory budget of"):
        run(replace(config, memory_budget="1kB"))
