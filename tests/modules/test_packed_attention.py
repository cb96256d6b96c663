"""Packed attention against the model's own attention, one sequence at a time."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import transformers
from transformers import AutoModelForCausalLM

from slamkern.data.packing import IGNORE, Example, collate
from slamkern.errors import SlamkernError
from slamkern.modules import varlen_attention
from slamkern.modules.packed_attention import attends_packed, packed_attention, supports_packing
from slamkern.modules.varlen_attention import packed_attention_forward

LLAMA = dict(
    vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
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


def build(family: str, arguments: dict) -> torch.nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**arguments)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():  # wide weights: at the usual 0.02 attention is nearly uniform and hides mistakes
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.15)
    return model


def examples(lengths=(5, 17, 1, 9, 30), seed=1) -> list[Example]:
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randint(3, 97, (length,), generator=generator).tolist() for length in lengths]
    return [Example(tuple(ids), (*[IGNORE] * min(2, len(ids)), *ids[2:])) for index, ids in enumerate(drawn)]


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


def test_borders_are_read_again_where_position_ids_changed():
    positions = torch.tensor([[0, 1, 2, 0, 1]])
    assert varlen_attention._borders(positions, 5)[0].tolist() == [0, 3, 5]
    positions[0] = torch.tensor([0, 1, 0, 1, 2])
    borders, longest = varlen_attention._borders(positions, 5)
    assert borders.tolist() == [0, 2, 5] and longest == 3


def test_a_window_longer_than_the_check_must_still_be_asked_for(monkeypatch):
    """What reaches a mask alone would be lost: the same model with and without its window in the call."""
    model = build("Mistral", LLAMA | {"sliding_window": 96})
    assert supports_packing(model) is None
    forward = transformers.models.mistral.modeling_mistral.MistralAttention.forward
    monkeypatch.setattr(transformers.models.mistral.modeling_mistral.MistralAttention, "forward", forgetful(forward))
    assert "window or chunk of 96 tokens" in supports_packing(build("Mistral", LLAMA | {"sliding_window": 96}))
    assert supports_packing(build("Mistral", LLAMA | {"sliding_window": None})) is None


def forgetful(forward):
    def without_window(self, *args, **kwargs):
        config, self.config = self.config, copy.copy(self.config)
        self.config.sliding_window = None
        try:
            return forward(self, *args, **kwargs)
        finally:
            self.config = config

    return without_window


def test_a_leak_of_one_token_past_attention_is_found():
    model = build("Llama", LLAMA)
    norm = model.model.layers[1].post_attention_layernorm
    norm.register_forward_hook(lambda module, args, output: output + 0.01 * output.roll(1, dims=1))
    assert "sees the one before it" in supports_packing(model)


def test_the_check_runs_once_and_leaves_no_trace():
    model = build("Llama", LLAMA | {"attention_dropout": 0.5}).train()
    model.model.layers[1].eval()
    forwards = []
    model.model.register_forward_hook(lambda *_: forwards.append(1))
    state, keys = torch.get_rng_state(), model.state_dict().keys()
    assert supports_packing(model) is None and supports_packing(copy.deepcopy(model)) is None
    count = len(forwards)
    with packed_attention(model):
        assert len(forwards) == count <= 7
    assert torch.equal(torch.get_rng_state(), state) and model.state_dict().keys() == keys
    assert model.training and model.model.layers[0].training and not model.model.layers[1].training
    assert model.config._attn_implementation == "eager"


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


def oracle(query, key, value, borders, scaling, window):
    """(1, H, T, D) and twice (1, KV, T, D) -> (T, H, D) in float64, with one masked score matrix."""
    groups = query.shape[1] // key.shape[1]
    wide = (query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1))
    q, k, v = (tensor[0].double() for tensor in wide)  # (H, T, D)
    index = torch.arange(q.shape[1], device=q.device)
    sequence = torch.bucketize(index, borders[1:].to(q.device), right=True)
    distance = index[:, None] - index[None]
    visible = (sequence[:, None] == sequence[None]) & (distance >= 0)
    if window is not None:
        visible &= distance < window
    scores = (q @ k.transpose(1, 2) * scaling).masked_fill(~visible, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1)


@pytest.mark.parametrize(
    ("options", "window"),
    [
        ({"scale", "window_size", "enable_gqa"}, None),
        ({"scale", "window_size", "enable_gqa"}, 5),
        ({"scale", "window_size"}, 5),
        ({"scale", "is_causal"}, None),
    ],
)
def test_the_flash_kernel_is_asked_for_the_same_attention(monkeypatch, options, window):
    """The kernel exists on CUDA only: here a stand-in with its signature checks what it is asked for."""

    def stand_in(query, key, value, cu_q, cu_k, max_q, max_k, **keywords):
        assert keywords.keys() <= options and max_q == max_k == 11
        assert keywords.get("enable_gqa") or query.shape[1] == key.shape[1]
        left, right = keywords.get("window_size", (-1, 0))
        assert right == 0 and ("window_size" in options or keywords["is_causal"])
        wide = [tensor.transpose(0, 1)[None] for tensor in (query, key, value)]
        return oracle(*wide, cu_q, keywords["scale"], None if left == -1 else left + 1).float()

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", stand_in)
    monkeypatch.setattr(varlen_attention, "_varlen_options", lambda: frozenset(options))
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 20, 8), torch.randn(1, 2, 20, 8), torch.randn(1, 2, 20, 8)
    borders = torch.tensor([0, 9, 20], dtype=torch.int32)
    module = SimpleNamespace(is_causal=True)
    one_by_one, _ = packed_attention_forward(
        module, query, key, value, None, scaling=0.3, cu_seq_lens_q=borders, max_length_q=11, sliding_window=window
    )
    flash = varlen_attention._flash(query, key, value, borders, 11, 0.3, window)
    torch.testing.assert_close(flash, one_by_one, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one_by_one[0], oracle(query, key, value, borders, 0.3, window).float())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_on_cuda_values_and_gradients_are_those_of_float64(dtype, window):
    torch.manual_seed(0)
    borders = torch.tensor([0, 190, 191, 513, 900], dtype=torch.int32, device="cuda")
    query, key, value = (
        torch.randn(1, heads, 900, 64, device="cuda", dtype=dtype, requires_grad=True) for heads in (9, 3, 3)
    )
    module = SimpleNamespace(is_causal=True)
    output, _ = packed_attention_forward(
        module, query, key, value, None, cu_seq_lens_q=borders, max_length_q=387, sliding_window=window
    )
    expected = oracle(query, key, value, borders, 64**-0.5, window)
    upstream = torch.randn_like(expected)
    gradients = torch.autograd.grad(output[0], (query, key, value), upstream.to(dtype))
    expected_gradients = torch.autograd.grad(expected, (query, key, value), upstream)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for mine, theirs in zip((output[0], *gradients), (expected, *expected_gradients), strict=True):
        assert (mine.double() - theirs.double()).norm() <= tolerance * theirs.double().norm()
