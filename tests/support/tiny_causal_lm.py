"""A random Llama and a byte-level tokenizer, small enough that a test may generate with them hundreds of times."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>", "<pad>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["How many apples are there? Wie viele Äpfel sind es?"] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def tiny_model(seed: int = 0, **overrides: Any) -> LlamaForCausalLM:
    """Weights are drawn wide, so that the most probable token is never a near tie that rounding could turn."""
    values = dict(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.4,
        bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**values | overrides)).eval()


def save_folder(folder: Path, model: PreTrainedModel | None = None) -> Path:
    """Write ``model`` (None: the tiny one) and the tokenizer as transformers does; returns the folder."""
    (model or tiny_model()).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def ending_model() -> LlamaForCausalLM:
    """The same model with its end token more probable: most of its replies end within 40 tokens, not all."""
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[1] *= 2
    return model
