"""Held-out translation loss, chrF and English retention against the plain Hugging Face forward and sacrebleu."""

import math
import sys

import pytest
import sacrebleu
import torch
import torch.nn.functional as F
from support.tiny_causal_lm import tiny_model, tiny_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

from slamkern.data.pairs import Pair
from slamkern.data.prompts import Prompt
from slamkern.data.tokenization import tokenize_pairs
from slamkern.errors import SlamkernError
from slamkern.evaluation.generation import generate
from slamkern.evaluation.translation import english_retention, translation_quality

PAIRS = [
    Pair("Wie viele Äpfel sind es?", "How many apples are there?", "de"),
    Pair("Wie viele?", "How many?", "de"),
    Pair("ไทย", "Thai", "th"),
    Pair("Es sind fünf Äpfel und drei.", "There are five apples and three.", "de"),
]
PROMPT = Prompt("short", "{instruction}=")


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def reference_loss(model, rows):
    """Mean over all supervised tokens of (input ids, labels) rows, one row at a time, by the model's own logits."""
    total, tokens = 0.0, 0
    for input_ids, labels in rows:
        with torch.no_grad():
            logits = model(torch.tensor([input_ids])).logits[0, :-1].double()
        targets = torch.tensor(labels[1:])
        total += float(F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum"))
        tokens += int((targets != -100).sum())
    return total / tokens


@pytest.mark.parametrize("batch_tokens", [1, 300, 10**6])
def test_translation_loss_is_the_token_mean_whatever_the_batching(model, tokenizer, batch_tokens):
    quality = translation_quality(model, tokenizer, PAIRS, PROMPT, generate_limit=0, batch_tokens=batch_tokens)
    assert list(quality) == ["de", "th"]
    for code, values in quality.items():
        pairs = [pair for pair in PAIRS if pair.source_language == code]
        examples = tokenize_pairs(pairs, tokenizer, PROMPT)
        expected = reference_loss(model, [(list(e.input_ids), list(e.labels)) for e in examples])
        assert values == {"loss": pytest.approx(expected, rel=1e-5)}


def test_chrf_is_that_of_sacrebleu_over_the_first_pairs_of_each_language(model, tokenizer):
    # A random model writes noise; targets taken from its own outputs give scores worth comparing.
    prompts = [PROMPT.translation(pair)[0] for pair in PAIRS]
    outputs = {index: text for index, text, _ in generate(model, tokenizer, prompts, max_new_tokens=20)}
    pairs = [
        Pair(pair.source, outputs[i][i * 2 :].strip() + " and", pair.source_language) for i, pair in enumerate(PAIRS)
    ]
    quality = translation_quality(model, tokenizer, pairs, PROMPT, generate_limit=2, max_new_tokens=20)
    expected = sacrebleu.corpus_chrf(
        [outputs[0].strip(), outputs[1].strip()], [[pairs[0].target, pairs[1].target]]
    ).score
    assert 30 < expected < 100
    assert quality["de"]["chrf"] == expected

    # A degenerate pair neither stops the measurement nor takes the place of a usable one.
    degenerate = [Pair("x" * 2000, "x", "de"), *pairs]
    again = translation_quality(
        model, tokenizer, degenerate, PROMPT, generate_limit=2, max_new_tokens=20, max_length=400
    )
    assert again == quality


def test_english_retention_counts_every_token_that_has_a_context(model, tokenizer):
    texts = ["There are five apples.", "", "x", "How many apples are there? " * 2]
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    expected = reference_loss(model, [(row, row) for row in rows if len(row) > 1])
    assert english_retention(model, tokenizer, texts, batch_tokens=40) == pytest.approx(expected, rel=1e-5)
    cut = reference_loss(model, [(row[:3], row[:3]) for row in rows if len(row) > 1])
    assert english_retention(model, tokenizer, texts, max_length=3) == pytest.approx(cut, rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_is_longer_than_the_models_context_is_not_measured(tokenizer, caplog, family):
    model = tiny_model(max_position_embeddings=100)
    if family == "gpt2":
        sizes = dict(vocab_size=300, n_positions=100, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1)
        model = GPT2LMHeadModel(GPT2Config(**sizes)).eval()
    long = Pair("Wie viele " * 20, "How many " * 20, "de")
    measured = translation_quality(model, tokenizer, [*PAIRS, long], PROMPT, generate_limit=0)
    assert measured == translation_quality(model, tokenizer, PAIRS, PROMPT, generate_limit=0)
    assert "dropped 1 pairs in de that are longer than 100 tokens" in caplog.text
    text = "There are five apples. " * 12
    assert english_retention(model, tokenizer, [text]) == english_retention(model, tokenizer, [text], max_length=100)


def test_the_model_keeps_its_mode_and_its_gradients(model, tokenizer):
    model.train()
    english_retention(model, tokenizer, ["There are five apples."])
    assert model.training and all(p.grad is None and p.requires_grad for p in model.parameters())
    model.eval()


def test_a_model_that_knows_nothing_loses_the_logarithm_of_its_vocabulary(tokenizer):
    model = tiny_model()
    torch.nn.init.zeros_(model.lm_head.weight)
    assert english_retention(model, tokenizer, ["There are apples."]) == pytest.approx(math.log(300), rel=1e-6)


def test_what_cannot_be_measured_is_refused(model, tokenizer, monkeypatch):
    with pytest.raises(SlamkernError, match="no held-out pairs"):
        translation_quality(model, tokenizer, [], PROMPT)
    with pytest.raises(SlamkernError, match="none of the 2 texts has two tokens"):
        english_retention(model, tokenizer, ["", "x"])
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(SlamkernError, match="pip install sacrebleu"):
        translation_quality(model, tokenizer, PAIRS, PROMPT)
