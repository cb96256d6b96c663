"""Greedy generation: equal to a plain argmax loop, whatever the batching; stops; leaves the model as it was."""

import logging
import warnings

import pytest
import torch
from support.tiny_causal_lm import tiny_model, tiny_tokenizer

from slamkern.errors import SlamkernError
from slamkern.evaluation.generation import generate, plan_batches

PROMPTS = ["How many?", "Wie viele Äpfel sind es, wenn es fünf sind?", "a", "How many apples are there? " * 3, "ไทย"]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def model():
    return tiny_model()


def texts(model, tokenizer, prompts=PROMPTS, **options):
    texts = generate(model, tokenizer, prompts, **{"max_new_tokens": 12, **options})
    return {index: text for index, text, _ in texts}


def argmax_loop(model, tokenizer, prompt, steps):
    """One row, no cache, no padding: what greedy decoding means."""
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    new = []
    with torch.no_grad():
        for _ in range(steps):
            new.append(int(model(torch.tensor([ids + new])).logits[0, -1].argmax()))
            if new[-1] == tokenizer.eos_token_id:
                break
    return new


def test_every_batching_gives_the_texts_of_an_argmax_loop(model, tokenizer):
    expected = {
        i: tokenizer.decode(argmax_loop(model, tokenizer, prompt, 12), skip_special_tokens=True)
        for i, prompt in enumerate(PROMPTS)
    }
    assert len(set(expected.values())) == len(PROMPTS)  # else the test could not tell rows apart
    for options in ({"batch_size": 1}, {"batch_size": 2}, {"batch_tokens": 100}, {}):
        assert texts(model, tokenizer, **options) == expected


def test_rows_of_a_batch_are_sorted_longest_first_within_the_budget():
    lengths = [3, 9, 4, 9, 1, 20]
    batches = plan_batches(lengths, batch_tokens=18)
    assert batches == [[5], [1, 3], [2, 0, 4]]  # the 20 is over the budget and runs alone
    assert plan_batches(lengths, 10**6, batch_size=4) == [[5, 1, 3, 2], [0, 4]]
    assert plan_batches([], 10) == []


def test_end_of_sequence_ids_of_the_generation_config_end_a_text_and_nothing_else_of_it_counts(model, tokenizer):
    tokens = argmax_loop(model, tokenizer, PROMPTS[0], 12)
    end = next(i for i in range(2, 12) if tokens[i] not in tokens[:i])
    config = model.generation_config
    config.eos_token_id = [1, tokens[end]]
    config.do_sample, config.temperature, config.repetition_penalty, config.max_length = True, 5.0, 1.8, 7
    assert texts(model, tokenizer)[0] == tokenizer.decode(tokens[:end])
    assert model.generation_config is config and config.repetition_penalty == 1.8


def test_a_stop_string_cuts_the_text_and_ends_the_batch(model, tokenizer):
    full = texts(model, tokenizer, PROMPTS[:1], max_new_tokens=40)[0]
    stop = full[5:8]
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    assert texts(model, tokenizer, PROMPTS[:1], max_new_tokens=40, stop=[stop, "never"])[0] == full[: full.find(stop)]
    assert len(calls) < 20


def test_a_stop_string_that_the_prompt_began_does_not_count(model, tokenizer):
    text = texts(model, tokenizer, ["x"])[0]
    assert texts(model, tokenizer, ["x"], stop=["x" + text[:1]])[0] == text


def test_modes_gradients_and_warnings_are_left_alone(model, tokenizer, caplog):
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        for _ in generate(model, tokenizer, PROMPTS, max_new_tokens=2, batch_size=1):
            assert torch.is_grad_enabled() and [module.training for module in model.modules()] == modes
    assert not caplog.records


def test_a_prompt_without_room_is_refused_by_name_before_any_work(model, tokenizer):
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(SlamkernError, match=r"prompt mgsm-7 has \d+ tokens and max_new_tokens is 12.*context is 512"):
        texts(model, tokenizer, ["a", "b" * 600], names=["mgsm-6", "mgsm-7"])
    with pytest.raises(SlamkernError, match="prompt #1 has no tokens"):
        texts(model, tokenizer, ["a", ""])


@pytest.mark.parametrize("options", [{"max_new_tokens": 0}, {"batch_tokens": 0}, {"batch_size": 0}, {"stop": [""]}])
def test_options_that_make_no_sense_are_refused(model, tokenizer, options):
    with pytest.raises(SlamkernError):
        texts(model, tokenizer, **options)


def test_a_model_without_keys_and_values_goes_through_its_own_generate(tokenizer):
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, state_size=4, tie_word_embeddings=False
    )
    model = MambaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in (model.backbone.embeddings.weight, model.lm_head.weight):
            torch.nn.init.normal_(weight)
    expected = {
        i: tokenizer.decode(argmax_loop(model, tokenizer, prompt, 12), skip_special_tokens=True)
        for i, prompt in enumerate(PROMPTS)
    }
    assert len(set(expected.values())) == len(PROMPTS) - 1  # the last tokens of the first two are one question mark
    assert texts(model, tokenizer, batch_size=1) == expected
    cut = expected[0][3:6]
    assert texts(model, tokenizer, PROMPTS[:1], stop=[cut]) == {0: expected[0][: expected[0].find(cut)]}
