"""What a step costs against the least it could: FLOPs, and bytes kept for the backward; the same on any machine."""

import pytest
import torch
from support.saved_floor import minimum_saved

from slamkern.bench.workload import shape_builder
from slamkern.data.packing import IGNORE, Example, collate
from slamkern.modules.packed_attention import packed_attention
from slamkern.modules.patch import patch_model
from slamkern.selection.trainable import apply_selection
from slamkern.training.batches import supervised_tokens
from slamkern.training.loss import packed_loss, read_head
from slamkern.training.step_cost import Dimensions, SavedBytes, flop_counter, peak_growth

# A Llama, scaled down: heads share keys or do not, FFN 8/3 or 3.5 times as wide.
SHAPES = {
    "as Llama-2-7B": {"hidden_size": 128, "intermediate_size": 352, "num_attention_heads": 4, "num_key_value_heads": 4},
    "as Llama-3-8B": {"hidden_size": 128, "intermediate_size": 448, "num_attention_heads": 4, "num_key_value_heads": 1},
}
LAYERS = 8
LENGTHS = (41, 17, 90, 64, 33)
EXAMPLES = [Example(tuple(range(3, 3 + n)), (*[IGNORE] * (n - n // 3), *range(3, 3 + n // 3))) for n in LENGTHS]


def slam_model(shape, trained, dtype=torch.float32):
    model = shape_builder("tiny", torch.device("cpu"), dtype, num_hidden_layers=LAYERS, **SHAPES[shape])().train()
    apply_selection(patch_model(model, backend="reference"), trained)
    return model


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("trained", [(0, 1, 2), (3, 5)])
def test_a_step_needs_hardly_more_flops_than_the_least(shape, trained):
    model = slam_model(shape, trained)
    head = read_head(model)
    with packed_attention(model), flop_counter() as counter:
        packed_loss(model, collate(EXAMPLES), head=head).backward()
    dimensions, supervised = Dimensions.of(model.config), supervised_tokens(EXAMPLES)
    least = dimensions.minimum_flops(LENGTHS, supervised, trained)
    # The last FFN also computes the tokens that nobody supervises, and their gradients: three products each way.
    last_ffn = (sum(LENGTHS) - supervised) * 6 * 2 * dimensions.hidden * dimensions.neurons
    assert least <= counter.get_total_flops() <= 1.02 * least + last_ffn


def test_the_least_is_what_the_method_promises():
    """6 of 32 layers of Llama-2-7B: 2.08 forwards in GEMMs, 3 for training everything."""
    config = shape_builder("Llama-2-7B", torch.device("meta"), torch.bfloat16)().config
    dimensions = Dimensions.of(config)
    tokens = [1] * 1000  # of one token each: no attention to speak of
    forward = 2 * 1000 * 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    head = 2 * 2 * 1000 * 4096 * 32000  # logits and the gradient of their input
    assert (dimensions.minimum_flops(tokens, 1000, range(6)) - head) / forward == pytest.approx(2.08, abs=0.03)
    assert minimum_saved(dimensions)["ffn"] == 4 * 11008
    assert sum(minimum_saved(dimensions).values()) == 4 * 8192 + 2 * 8192 + 2 * 22016 + 8 + 4 * 32  # 91 KiB


@pytest.mark.parametrize("shape", SHAPES)
def test_a_frozen_layer_keeps_little_for_the_backward(shape):
    saved, least = saved_by_layer(shape, trained=(1,))
    layer = "model.layers.4."
    parts = {
        "ffn": saved.of(f"{layer}mlp"),
        "attention": saved.of(f"{layer}self_attn"),
        "norms": saved.of(f"{layer}input_layernorm") + saved.of(f"{layer}post_attention_layernorm"),
    }
    assert saved.of(layer.rstrip(".")) == sum(parts.values())  # the residual additions keep nothing
    for name, size in parts.items():
        assert least[name] * sum(LENGTHS) <= size <= 1.02 * least[name] * sum(LENGTHS), name


def test_below_the_lowest_trained_layer_nothing_is_kept():
    saved, _ = saved_by_layer("as Llama-2-7B", trained=(3,))
    assert [saved.of(f"model.layers.{layer}") for layer in range(3)] == [0, 0, 0]
    # That layer keeps the input of the FFN, gate and up, and nothing of its attention.
    per_token = saved.of("model.layers.3.self_attn") / sum(LENGTHS), saved.of("model.layers.3.mlp") / sum(LENGTHS)
    assert per_token == (0, 2 * (128 + 2 * 352))


def test_transformers_keeps_more():
    """The same layer as it comes: a norm keeps its input in float32, the FFN silu(gate) beside gate and up."""
    changes = {"num_hidden_layers": LAYERS} | SHAPES["as Llama-2-7B"]
    model = shape_builder("tiny", torch.device("cpu"), torch.bfloat16, **changes)()
    apply_selection(model.train(), (1,))
    with packed_attention(model), SavedBytes(model) as saved:
        model(**collate(EXAMPLES).model_inputs)
    least = minimum_saved(Dimensions.of(model.config))
    parts = ("mlp", "self_attn", "input_layernorm")
    per_token = {part: saved.of(f"model.layers.4.{part}") / sum(LENGTHS) for part in parts}
    assert per_token == {"mlp": 1.5 * least["ffn"], "self_attn": least["attention"], "input_layernorm": 4 * 128 + 4}


def saved_by_layer(shape, trained):
    model = slam_model(shape, trained, torch.bfloat16)
    head = read_head(model)
    batch = collate(EXAMPLES)
    with packed_attention(model), SavedBytes(model) as saved:
        packed_loss(model, batch, head=head)
    return saved, minimum_saved(Dimensions.of(model.config))


def test_peak_growth_counts_what_is_alive_at_once():
    weight = torch.randn(100, 1000)
    with peak_growth(torch.device("cpu")) as grown:
        kept = weight * weight
        gone = kept * kept
        del gone
        also = kept * weight
        del kept, also
    assert grown == [2 * 4 * 100_000]
