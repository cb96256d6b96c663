"""What becomes of pairs before a step: dropped where they do not fit, batched either way, one loss."""

from dataclasses import replace

import pytest
import torch
from support.tiny_models import tiny_model
from support.tiny_training import CONFIG, PAIRS

from slamkern.data.packing import IGNORE, Example
from slamkern.errors import SlamkernError
from slamkern.modules.packed_attention import supports_packing
from slamkern.training.batches import mean_loss, supervised_tokens, tokenize
from slamkern.training.loop import train

EXAMPLES = [Example(tuple(range(3, 3 + n)), (IGNORE, IGNORE, *range(5, 3 + n))) for n in (17, 4, 9, 30, 3)]


def test_pairs_longer_than_the_models_context_are_dropped_and_counted(tiny_tokenizer, caplog):
    config = replace(CONFIG, max_length=256, tokens_per_batch=256)
    every = tokenize(PAIRS, tiny_tokenizer, config)
    lengths = sorted(len(example.input_ids) for example in every)
    context = lengths[len(lengths) // 2]
    kept = tokenize(PAIRS, tiny_tokenizer, config, context=context)
    assert kept == [example for example in every if len(example.input_ids) <= context] != every
    dropped = [record.args for record in caplog.records if "longer than" in record.message]
    assert sum(count for count, _, _ in dropped) == len(every) - len(kept)
    assert {limit for _, _, limit in dropped} == {context}
    with pytest.raises(SlamkernError, match="none of the 12 pairs fits into max_length=8"):
        tokenize(PAIRS, tiny_tokenizer, CONFIG, context=8)


def test_training_reads_the_context_of_the_model(tiny_tokenizer):
    model = tiny_model("gpt2", n_positions=8)  # indexing its positions would fail further down
    with pytest.raises(SlamkernError, match="max_length=8"):
        train(model, tiny_tokenizer, PAIRS, CONFIG, progress=False)


@pytest.mark.parametrize("family", ["llama", "falcon"])  # the second cannot be packed
@pytest.mark.parametrize("tokens_per_batch", [1, 40, 10**6])
def test_the_held_out_loss_does_not_depend_on_the_batching(family, tokens_per_batch):
    model = tiny_model(family, **({"attention_dropout": 0.5} if family == "llama" else {})).train()
    packs = supports_packing(model) is None
    assert packs == (family == "llama")
    expected = mean_loss(model, EXAMPLES, packing=False, tokens_per_batch=1)
    assert mean_loss(model, EXAMPLES, tokens_per_batch=tokens_per_batch) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(SlamkernError, match="none of the 1 examples has a token with a loss"):
        mean_loss(model, [Example((1, 4, 6), (3, IGNORE, IGNORE))])  # the first token follows nothing
    assert supervised_tokens(EXAMPLES) == 15 + 2 + 7 + 28 + 1
    assert model.training


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_loss_that_is_not_finite_is_refused(value):
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = value
    with pytest.raises(SlamkernError, match=r"the loss of .* examples is (nan|inf): .*learning_rate"):
        mean_loss(model, EXAMPLES)
