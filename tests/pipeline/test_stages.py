"""Stages by themselves: what each makes of its section, where a whole run would not show it."""

from support.tiny_causal_lm import tiny_model, tiny_tokenizer

from slamkern.data.pairs import Pair
from slamkern.pipeline.config import build_config
from slamkern.pipeline.stages import reply_losses


def test_replies_longer_than_the_models_context_are_not_measured(caplog):
    config = build_config({"train": {"prompt": "{instruction}="}})
    model, tokenizer = tiny_model(max_position_embeddings=40), tiny_tokenizer()
    pairs = [Pair(f"Wie viele {end}?", f"How many {end}?", "de", kind="question") for end in ("A", "B")]
    replies = {"How many A?": "One.", "How many B?": "One. " * 10}
    measured = reply_losses(config, model, tokenizer, pairs, replies)
    assert measured == reply_losses(config, model, tokenizer, pairs[:1], replies)
    assert "dropped 1 pairs in de that are longer than 40 tokens" in caplog.text
