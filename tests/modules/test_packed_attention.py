"""Packed attention against the model's own attention, one sequence at a time."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import transformers
from support.packed_models import LLAMA, build, examples

from slamkern.data.packing import IGNORE, collate
from slamkern.errors import SlamkernError
from slamkern.modules.packed_attention import attends_packed, packed_attention, supports_packing
from slamkern.modules.varlen_attention import packed_attention_forward

WINDOW = LLAMA | {"sliding_window": 6}  # shorter than the longest sequence, so that it matters
PLAIN = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
EXACT = {
    "Llama": LLAMA,
    "Mistral": WINDOW,
    "Qwen3": LLAMA | {"head_dim": 16},
    "Gemma2": WINDOW | {"head_dim": 8, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0},
    "Gemma3Text": WINDOW | {"head_dim": 8},
    "Phi3": WINDOW | {"resid_pdrop": 0.0},
    "Olmo2": LLAMA,
    "SmolLM3": LLAMA,
    "Granite": LLAMA | {"attention_multiplier": 0.3},
    "GPTNeoX": PLAIN,
    "GPT2": dict(vocab_size=97, n_embd=32, n_layer=3, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=2),
    "OPT": PLAIN | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "Nemotron": LLAMA,  # these two hand their attention no borders, only position_ids
    "StableLm": LLAMA,
}
REFUSED = {
    "Falcon": (PLAIN, "does not go through transformers' AttentionInterface"),
    "GPTJ": (EXACT["GPT2"] | {"rotary_dim": 4}, "does not go through"),
    "Bloom": (dict(vocab_size=97, hidden_size=32, n_layer=2, n_head=4), "does not go through"),  # ALiBi
    "GptOss": (LLAMA | {"num_local_experts": 2, "head_dim": 8, "rope_parameters": {"rope_theta": 1e4}}, "a sink"),
    "Qwen2Moe": (
        WINDOW | {"use_sliding_window": True, "num_experts": 2, "num_experts_per_tok": 2},
        "leaves its window or chunk of 6 tokens to a mask",
    ),
    "Llama4Text": (
        LLAMA | {"num_local_experts": 2, "head_dim": 8, "intermediate_size_mlp": 32},
        "chunk of 8192 tokens",
    ),
    "Lfm2": (LLAMA | {"layer_types": ["conv", "full_attention", "conv"]}, "sees the one before it"),
}


def loss_and_gradients(model, logits, labels):
    loss = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    model.zero_grad()
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def packed_logits(model, batch):
    with packed_attention(model):
        return model(**batch.model_inputs).logits[0]


@pytest.mark.parametrize("family", EXACT)
def test_logits_loss_and_gradients_equal_those_of_single_sequences(family):
    model = build(family, EXACT[family])
    assert supports_packing(model) is None
    rows = examples()
    batch = collate(rows)
    alone = [model(input_ids=torch.tensor([row.input_ids]), use_cache=False).logits[0] for row in rows]
    labels = [torch.tensor([*row.labels[1:], IGNORE]) for row in rows]
    expected_loss, expected = loss_and_gradients(model, torch.cat(alone), torch.cat(labels))

    logits = packed_logits(model, batch)
    loss, gradients = loss_and_gradients(model, logits, batch.shift_labels[0])

    torch.testing.assert_close(logits, torch.cat(alone), rtol=1e-5, atol=1e-5)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert gradients.keys() == expected.keys()
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name in expected:  # the gradient of a key bias is zero but for rounding: measure against the largest one
        torch.testing.assert_close(gradients[name], expected[name], rtol=1e-4, atol=1e-5 * largest.item(), msg=name)


@pytest.mark.parametrize("family", REFUSED)
def test_models_that_would_be_wrong_are_refused_with_the_reason(family):
    arguments, reason = REFUSED[family]
    model = build(family, arguments)
    with pytest.raises(SlamkernError, match=reason), packed_attention(model):
        pass


def test_what_is_no_decoder_or_fails_is_refused_not_raised(monkeypatch):
    model = build("Llama", LLAMA)
    monkeypatch.setattr(model, "get_decoder", lambda: model.lm_head)  # as ModernBERT's decoder does
    assert "is a Linear, not a transformers decoder" in supports_packing(model)
    assert "is not a transformers decoder" in supports_packing(torch.nn.Linear(2, 2))
    model = build("Llama", LLAMA)
    model.model.register_forward_pre_hook(lambda *_: {}["here"])
    assert "fails with packed sequences (KeyError: 'here')" in supports_packing(model)
    assert model.config._attn_implementation == "eager"


def test_a_sequence_does_not_see_its_neighbors():
    model = build("Llama", LLAMA)
    rows = examples((12, 20, 9))
    changed = [examples((12,), seed=7)[0], rows[1], examples((9,), seed=8)[0]]
    first, second = (packed_logits(model, collate(batch)) for batch in (rows, changed))
    assert torch.equal(first[12:32], second[12:32])
    assert not torch.allclose(first[:12], second[:12])


def test_the_order_of_the_pack_does_not_matter():
    model = build("Llama", LLAMA)
    rows = examples((12, 20, 9))
    logits = packed_logits(model, collate(rows))
    turned = packed_logits(model, collate(rows[::-1]))
    torch.testing.assert_close(turned[:9], logits[32:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(turned[29:41], logits[:12], rtol=1e-5, atol=1e-5)


def test_gradient_checkpointing_passes_the_borders_on():
    model = build("Llama", LLAMA).train()
    batch = collate(examples())
    _, expected = loss_and_gradients(model, packed_logits(model, batch), batch.shift_labels[0])
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with packed_attention(model):  # the recomputation in backward runs the same attention
        _, gradients = loss_and_gradients(model, model(**batch.model_inputs).logits[0], batch.shift_labels[0])
    for name in expected:
        torch.testing.assert_close(gradients[name], expected[name], rtol=1e-5, atol=1e-6)


def test_the_implementation_of_the_model_is_restored_also_after_an_error():
    model = build("Llama", LLAMA)
    with pytest.raises(RuntimeError, match="stop"), packed_attention(model):  # noqa: PT012  (what is tested is leaving)
        assert attends_packed(model)
        raise RuntimeError("stop")
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("borders", [True, False])
def test_batches_of_transformers_own_collator(borders):
    """With the keywords of flash attention, and with nothing but restarting position_ids."""
    model = build("Llama", LLAMA)
    rows = examples()
    collator = transformers.DataCollatorWithFlattening(return_flash_attn_kwargs=borders)
    batch = collator([{"input_ids": list(row.input_ids), "labels": list(row.labels)} for row in rows])
    assert ("cu_seq_lens_q" in batch) == borders
    own = collate(rows)
    assert torch.equal(batch["labels"], own.labels)
    with packed_attention(model):
        output = model(**batch, use_cache=False)
    torch.testing.assert_close(output.logits[0], packed_logits(model, own), rtol=0, atol=0)
    with packed_attention(model):
        ours = model(**own.model_inputs, labels=own.labels)
    assert output.loss == ours.loss


def test_what_packed_attention_does_not_do_is_an_error():
    model = build("Llama", LLAMA)
    batch = collate(examples())
    with packed_attention(model):
        with pytest.raises(SlamkernError, match="padding mask"):
            model(**batch.model_inputs, attention_mask=(batch.position_ids > 0).long())
        with pytest.raises(SlamkernError, match="one row"):
            model(**batch.model_inputs | {"input_ids": batch.input_ids.repeat(2, 1)})
    query = torch.randn(1, 2, 4, 8)
    borders = dict(cu_seq_lens_q=torch.tensor([0, 4], dtype=torch.int32), max_length_q=4)
    module = SimpleNamespace(is_causal=True)
    with pytest.raises(SlamkernError, match="neither cu_seq_lens_q"):
        packed_attention_forward(module, query, query, query, None)
    with pytest.raises(SlamkernError, match=r"position_ids of \(1, 4\), not \(3, 1, 4\)"):
        packed_attention_forward(module, query, query, query, None, position_ids=torch.zeros(3, 1, 4))
    with pytest.raises(SlamkernError, match="sink"):
        packed_attention_forward(module, query, query, query, None, s_aux=torch.zeros(2), **borders)
    with pytest.raises(SlamkernError, match="bias"):
        packed_attention_forward(module, query, query, query, None, position_bias=torch.zeros(1), **borders)
    with pytest.raises(SlamkernError, match="not causal"):
        packed_attention_forward(SimpleNamespace(is_causal=False), query, query, query, None, **borders)
