"""Rows that leave and enter: the texts of each prompt alone, in every family, whoever shares the cache with it."""

from itertools import pairwise

import pytest
import torch
from support import tiny_causal_lm
from support.tiny_models import tiny_model
from torch.nn.functional import scaled_dot_product_attention

from slamkern.evaluation import decoding
from slamkern.evaluation.decoding import Decoder, can_decode, grouped_attention, grouped_attention_forward
from slamkern.modules.eval_mode import eval_mode

# Longest first; some share their first tokens, one is a single token.
PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [5, 6, 7, 30, 31, 32, 33], [5, 6, 7, 40, 41], [5, 6, 50], [5, 6, 60], [5]]
SHARED = [[5, 6, 7, *range(20 + n, 28)] for n in range(5)]


def alone(model, prompt, steps, end):
    """One row, no cache, no padding."""
    new = []
    with torch.no_grad():
        while len(new) < steps and (not new or new[-1] != end):
            new.append(int(model(torch.tensor([prompt + new])).logits[0, -1].argmax()))
    return new


def decode(model, prompts, rows, steps, end):
    decoder = Decoder(model, prompts, rows=rows, max_new_tokens=steps, finished=lambda tokens: tokens[-1] == end)
    found = {}
    with eval_mode(model):
        while done := decoder.run():
            found |= dict(done)
    return [found[index] for index in range(len(prompts))]


def an_end(model, prompts, steps):
    """A token that ends some rows early and not all at once."""
    texts = [alone(model, prompt, steps, None) for prompt in prompts]
    counts = {token: sum(token in text for text in texts) for text in texts for token in text}
    return max(counts, key=lambda token: (0 < counts[token] < len(texts), -abs(counts[token] - len(texts) // 2)))


FAMILIES = ("llama", "qwen2", "gemma2", "gemma3", "gpt_neox", "gpt2", "opt", "falcon", "phi3", "granite")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_decodes_each_prompt_as_if_it_were_alone(family):
    model, steps = tiny_model(family), 10
    assert can_decode(model)
    for prompts in (PROMPTS, SHARED):
        end = an_end(model, prompts, steps)
        expected = [alone(model, prompt, steps, end) for prompt in prompts]
        for rows in (1, 3, 8):
            assert decode(model, prompts, rows, steps, end) == expected


def test_a_sliding_window_counts_tokens_and_not_columns():
    model = tiny_model("mistral", sliding_window=4)
    prompts = [*PROMPTS, [7], [8]]
    expected = [alone(model, prompt, 12, None) for prompt in prompts]
    assert expected != [alone(tiny_model("mistral"), prompt, 12, None) for prompt in prompts]
    assert decode(model, prompts, 3, 12, None) == expected


def test_a_full_cache_moves_to_its_front_and_goes_on(monkeypatch):
    monkeypatch.setattr(decoding, "SPARE_COLUMNS", 1)
    model, prompts = tiny_model(), [[40 - n, 50 + n] for n in range(24)]
    end = an_end(model, prompts, 8)
    moves = []
    decoder = Decoder(model, prompts, rows=4, max_new_tokens=8, finished=lambda tokens: tokens[-1] == end)
    found = {}
    with eval_mode(model):
        while done := decoder.run():
            found |= dict(done)
            moves.append(decoder._memory.clock.now)
    assert any(later < earlier for earlier, later in pairwise(moves))
    assert [found[index] for index in range(24)] == [alone(model, prompt, 8, end) for prompt in prompts]


def test_what_all_prompts_begin_with_runs_once_and_rows_never_wait_for_the_longest():
    model, seen = tiny_model(), []
    model.register_forward_hook(
        lambda module, args, kwargs, output: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    ends = iter([1, 1, 1, 1, 9, 1, 1, 1])
    rows = []  # with the rows themselves, so that no two have one id

    def finished(tokens):
        if len(tokens) == 1:
            rows.append((tokens, next(ends)))
        return len(tokens) >= next(end for row, end in rows if row is tokens)

    decoder = Decoder(model, [[*range(3, 20), 30 + n] for n in range(8)], rows=2, max_new_tokens=9, finished=finished)
    with eval_mode(model):
        while decoder.run():
            pass
    assert seen[0] == (1, 17)
    assert all(width == 1 for _, width in seen[1:])  # the rest of each prompt is its last token
    assert len(seen) <= 1 + 13


def test_one_query_for_many_heads_is_the_attention_of_copied_keys():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, heads, n, 8, generator=generator) for heads, n in ((6, 1), (2, 5), (2, 5)))
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1], [0, 0, 0, 1, 1]], dtype=torch.bool)[:, None, None]
    copied = [tensor.repeat_interleave(3, dim=1) for tensor in (key, value)]
    expected = scaled_dot_product_attention(query, *copied, attn_mask=mask, scale=0.3).transpose(1, 2)
    output, _ = grouped_attention_forward(torch.nn.Module(), query, key, value, mask, scaling=0.3)
    torch.testing.assert_close(output, expected)


def test_the_attention_of_the_model_is_its_own_again_afterwards():
    model = tiny_model()

    def fails_inside():
        with grouped_attention(model):
            assert model.config._attn_implementation == decoding.NAME
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails_inside()
    assert model.config._attn_implementation == "sdpa"


def test_models_that_remember_otherwise_are_told_apart():
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, state_size=4)
    assert not can_decode(MambaForCausalLM(config))


def test_the_benchmark_compares_texts_and_processor_time(tmp_path):
    from benchmarks import generation, results

    tiny_causal_lm.tiny_model().save_pretrained(tmp_path / "tiny")
    tiny_causal_lm.tiny_tokenizer().save_pretrained(tmp_path / "tiny")
    options = ["--model", str(tmp_path / "tiny"), "--device", "cpu", "--dry-run", "--results", str(tmp_path)]
    assert generation.main(options) == 0
    rows = results.rows_of(torch.device("cpu"), "generation", tmp_path)
    assert [(row["provider"], row["rows"], row["dtype"]) for row in rows] == [
        ("slamkern", 48, "float32"), ("slamkern", 16, "float32"), ("generate", 16, "float32"),
        ("generate", 1, "float32"), ("slamkern", 48, "bfloat16"), ("slamkern", 16, "bfloat16"),
    ]  # fmt: skip
    assert all(row["differ"] == 0 for row in rows[:3])
    assert all(row["x generate 16"] > 0 and row["x generate 1"] > 0 for row in rows)
