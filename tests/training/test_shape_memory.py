"""Memory computed from a shape is the memory measured on models of it, and 7B fits where it is said to fit."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig
from typer.testing import CliRunner

import slamkern
from slamkern.bakeoff.config import Cell
from slamkern.bakeoff.trainable import make_trainable
from slamkern.bench.memory_table import memory_rows
from slamkern.bench.workload import even_lengths, shape_builder, shape_config
from slamkern.cli.bench import bench
from slamkern.data.packing import collate
from slamkern.modules.fp8_linear import quantized_modules
from slamkern.modules.packed_attention import packed_attention
from slamkern.modules.patch import fused_ffns
from slamkern.selection.trainable import trained_parameters
from slamkern.training.fp8 import frozen_in_fp8
from slamkern.training.loss import packed_loss, read_head
from slamkern.training.memory_budget import footprint
from slamkern.training.optimizer import MasterAdamW
from slamkern.training.shape_memory import shape_footprint
from slamkern.training.step_cost import peak_growth, storage_bytes

CPU = torch.device("cpu")
# Fewer keys than heads and the lowest layer trained; tied embeddings in float32; the peak among logits, layers apart.
SHAPES = [
    (torch.bfloat16, (0, 1), {}),
    (torch.float32, (1, 2), {"num_key_value_heads": 4, "tie_word_embeddings": True, "hidden_size": 128}),
    (torch.bfloat16, (0, 2), {"vocab_size": 4096, "num_hidden_layers": 6}),
]


def prepared(dtype, layers, changes):
    model = slamkern.patch_model(shape_builder("tiny", CPU, dtype, **changes)())
    slamkern.apply_selection(model, layers)
    return model


@pytest.mark.parametrize(("dtype", "layers", "changes"), SHAPES)
def test_the_computed_footprint_is_the_measured_one(dtype, layers, changes):
    model = prepared(dtype, layers, changes)
    for accumulation in (1, 2):
        measured = footprint(model, accumulation=accumulation)
        computed = shape_footprint(model.config, layers, itemsize=dtype.itemsize, accumulation=accumulation)
        assert computed == measured


# What else a bake-off trains; everything is of all layers.
PARTS = [
    ("ffn", ("gate", "up", "down")),
    ("ffn", ("up",)),
    ("ffn", ("down",)),
    ("attention", ()),
    ("full", ()),
]


def trained_part(part, projections, dtype, layers, changes):
    """(model, layers of which the part is trained)."""
    model = shape_builder("tiny", CPU, dtype, **changes)()
    if part == "ffn":
        slamkern.apply_selection(slamkern.patch_model(model), layers, projections)
        return model, layers
    make_trainable(model, Cell(name="cell", train=part), SimpleNamespace(layers=layers), seed=0)
    return model, layers if part == "attention" else range(model.config.num_hidden_layers)


@pytest.mark.parametrize(("part", "projections"), PARTS)
@pytest.mark.parametrize(("dtype", "layers", "changes"), SHAPES)
def test_the_footprint_of_other_parts_is_the_measured_one(part, projections, dtype, layers, changes):
    model, layers = trained_part(part, projections, dtype, layers, changes)
    for accumulation in (1, 2):
        measured = footprint(model, accumulation=accumulation)
        assert measured == shape_footprint(
            model.config, layers, part=part, projections=projections, itemsize=dtype.itemsize, accumulation=accumulation
        )


@pytest.mark.parametrize(("part", "projections"), PARTS)
@pytest.mark.parametrize(("dtype", "layers", "changes"), SHAPES)
def test_the_peak_of_other_parts_is_within_a_tenth(part, projections, dtype, layers, changes):
    model, layers = trained_part(part, projections, dtype, layers, changes)
    computed = shape_footprint(model.config, layers, part=part, projections=projections, itemsize=dtype.itemsize)
    assert computed.total(1024) == pytest.approx(peak_of_a_step(model, ()), rel=0.1)


def test_fp8_keeps_one_copy_of_a_frozen_weight():
    model = prepared(torch.bfloat16, (0, 1), {})
    computed = shape_footprint(model.config, (0, 1), fp8=True)
    with frozen_in_fp8(model, keep_transposed=False):
        measured = footprint(model)
        originals = 2 * sum(module.slamkern_fp8.values.numel() for module in quantized_modules(model))
    assert computed.weights == measured.weights - originals  # they wait in host memory, which is this device's
    assert computed.saved == measured.saved


@pytest.mark.parametrize(("dtype", "layers", "changes"), SHAPES)
@pytest.mark.parametrize("recompute", [False, True])
def test_the_estimate_is_within_a_tenth_of_the_peak(dtype, layers, changes, recompute):
    model = prepared(dtype, layers, changes)
    computed = shape_footprint(model.config, layers, itemsize=dtype.itemsize)
    chosen = tuple(computed.recomputable) if recompute else ()
    assert computed.total(1024, chosen) == pytest.approx(peak_of_a_step(model, chosen), rel=0.1)


def peak_of_a_step(model, recomputed, tokens=1024):
    """Bytes of weights, optimizer state and what a step of supervised tokens allocates at most beside them."""
    for ffn in fused_ffns(model):
        ffn.recompute = ffn.layer in recomputed
    examples = even_lengths(64, tokens, model.config.vocab_size, steps=1, supervised=1.0).steps[0]
    batch, head = collate(examples), read_head(model)
    optimizer = MasterAdamW(trained_parameters(model).items())
    with packed_attention(model):
        for _ in range(2):  # moments exist from the first step on
            with peak_growth(CPU) as growth:
                (packed_loss(model, batch, head=head) / tokens).backward()
                optimizer.collect_gradients()
                optimizer.step(1e-5)
    return growth[0] + storage_bytes([*model.parameters(), *model.buffers(), *optimizer.state_dict().values()])


def test_a_layer_that_keeps_more_than_the_formula_says_is_found():
    """Planted: every FFN's result goes through a function that keeps its own."""
    dtype, layers, changes = SHAPES[0]
    model = prepared(dtype, layers, changes)
    computed = shape_footprint(model.config, layers, itemsize=dtype.itemsize)
    assert computed == footprint(model)
    for ffn in fused_ffns(model)[1:]:
        model.get_submodule(ffn.path).register_forward_hook(lambda module, args, y: y.tanh().tanh().tanh().tanh())
    measured = footprint(model)
    hidden = model.config.hidden_size * dtype.itemsize
    more = {layer: measured.saved[layer] - kept for layer, kept in computed.saved.items()}
    assert more == {layer: 0 if layer < 1 else 4 * hidden for layer in computed.saved}
    assert computed.total(1024) != pytest.approx(peak_of_a_step(model, ()), rel=0.1)


# Planted: one term of the formula is forgotten, where it matters; gate and up of every layer, the masters, the logits.
FORGOTTEN = {
    "saved": (1024, lambda right: {at: kept - right.recomputable.get(at, 0) for at, kept in right.saved.items()}),
    "state": (64, lambda right: right.state * 2 // 3),
    "logits": (1024, lambda right: 0),
}


@pytest.mark.parametrize("term", FORGOTTEN)
def test_a_term_left_out_of_the_formula_is_found(term):
    tokens, wrong = FORGOTTEN[term]
    model = prepared(torch.bfloat16, range(4), {})
    right = shape_footprint(model.config, range(4))
    peak = peak_of_a_step(model, (), tokens)
    assert right == footprint(model) and right.total(tokens) == pytest.approx(peak, rel=0.1)
    assert replace(right, **{term: wrong(right)}).total(tokens) != pytest.approx(peak, rel=0.1)


def test_7b_fits_into_24_and_in_fp8_into_16_gigabytes():
    def row(frozen, recompute, optimizer, budget):
        wanted = {"frozen_weights": frozen, "recompute": recompute, "optimizer": optimizer}
        rows = memory_rows("Llama-2-7B", 4096, range(6), budget=budget)
        return next(row for row in rows if wanted.items() <= row.items())

    plain = row("bfloat16", "nothing", "device", 24 * 10**9)
    assert plain["weights_gb"] == pytest.approx(2 * 6.738, rel=1e-3)  # parameters of Llama-2-7B
    assert plain["optimizer_gb"] == pytest.approx(12 * 0.54107, rel=1e-3)  # 541.07M trained, three float32 each
    assert plain["fits"] == "no" and plain["peak_gb"] > 32
    assert row("bfloat16", "every FFN", "device", 24 * 10**9)["fits"] == "no"  # recomputing alone is not enough
    assert row("bfloat16", "every FFN", "host", 24 * 10**9)["peak_gb"] <= 24
    assert row("fp8", "every FFN", "host", 16 * 10**9)["peak_gb"] <= 16
    for one in memory_rows("Llama-2-7B", 4096, range(6)):
        parts = (one[f"{name}_gb"] for name in ("weights", "optimizer", "saved", "workspace"))
        assert sum(parts) == pytest.approx(one["peak_gb"])


def test_an_attention_that_shares_no_keys_keeps_them_for_every_head_of_the_queries():
    """Llama 3 8B, layers 0 to 5 trained: 24 heads more, of keys and values, in the 31 layers with a graph."""
    llama = LlamaConfig(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
                        num_key_value_heads=8, vocab_size=128256)  # fmt: skip
    shared, repeated = (shape_footprint(llama, range(6), repeated_keys=on).saved_bytes(4096) for on in (False, True))
    assert repeated - shared == 31 * 2 * 24 * 128 * 2 * 4096
    llama.num_key_value_heads = 32
    shared, repeated = (shape_footprint(llama, range(6), repeated_keys=on).saved_bytes(4096) for on in (False, True))
    assert repeated == shared


def test_a_plan_offloads_only_where_recomputing_is_not_enough():
    seven = shape_footprint(shape_config("Llama-2-7B"), range(6))
    small = seven.plan(4096, 32 * 10**9, offload=None)
    assert not small.offload and 0 < len(small.recompute) < 32
    assert seven.plan(4096, 24 * 10**9, offload=None).offload
    with pytest.raises(slamkern.SlamkernError, match=r"28 GB even with every FFN recomputed, more"):
        seven.plan(4096, 24 * 10**9)
    with pytest.raises(slamkern.SlamkernError, match=r"and the optimizer in host memory, more than .* 20 GB"):
        seven.plan(4096, 20 * 10**9, offload=None)


def test_the_command_prints_the_table_without_a_gpu():
    options = ["memory", "--shape", "Llama-2-7B", "--tokens", "4096", "--gpu", "24GB"]
    result = CliRunner().invoke(bench, options, catch_exceptions=False)
    assert result.exit_code == 0 and "every FFN" in result.stdout and "yes" in result.stdout
    words = " ".join(result.stdout.split())
    assert (
        "--memory-budget 24GB --frozen-precision model: 23.9 GB expected, gate and up recomputed in 16 of 32" in words
    )
    assert "layers, optimizer in host memory" in words
    less = CliRunner().invoke(bench, [*options[:-1], "15GB"], catch_exceptions=False)
    assert "micro-batches of 675 tokens would fit" in " ".join(less.stdout.split())
    with pytest.raises(slamkern.SlamkernError, match="SmolLM2-135M has 30 layers; 31"):
        CliRunner().invoke(bench, ["memory", "--shape", "SmolLM2-135M", "--layers", "31"], catch_exceptions=False)
