"""Tiny models of many families, and where the real data is when it is there."""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

_LLAMA_LIKE = dict(
    vocab_size=96,
    hidden_size=32,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
    max_position_embeddings=128,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
_NEOX_LIKE = dict(vocab_size=96, hidden_size=32, num_hidden_layers=4, num_attention_heads=4)
_TOKENS = dict(bos_token_id=1, eos_token_id=2)

# family -> (config class, arguments, kind of FFN, activation); dropout off so that two forwards can be compared
FAMILIES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "llama": ("LlamaConfig", _LLAMA_LIKE, "gated", "silu"),
    "llama-bias": ("LlamaConfig", _LLAMA_LIKE | {"mlp_bias": True}, "gated", "silu"),
    "mistral": ("MistralConfig", _LLAMA_LIKE, "gated", "silu"),
    "qwen2": ("Qwen2Config", _LLAMA_LIKE, "gated", "silu"),
    "qwen3": ("Qwen3Config", _LLAMA_LIKE | {"head_dim": 8}, "gated", "silu"),
    "gemma2": ("Gemma2Config", _LLAMA_LIKE | {"head_dim": 8}, "gated", "gelu_tanh"),
    "gemma3": ("Gemma3TextConfig", _LLAMA_LIKE | {"head_dim": 8}, "gated", "gelu_tanh"),
    "olmo2": ("Olmo2Config", _LLAMA_LIKE, "gated", "silu"),
    "smollm3": ("SmolLM3Config", _LLAMA_LIKE, "gated", "silu"),
    # Granite multiplies embeddings, residuals and logits, all outside its FFN.
    "granite": ("GraniteConfig", _LLAMA_LIKE | {"residual_multiplier": 0.5, "logits_scaling": 2.0}, "gated", "silu"),
    "phi3": ("Phi3Config", _LLAMA_LIKE | {"resid_pdrop": 0.0}, "gate_up", "silu"),
    "gpt_neox": ("GPTNeoXConfig", _NEOX_LIKE | {"intermediate_size": 48} | _TOKENS, "plain", "gelu"),
    "gpt2": (
        "GPT2Config",
        {"vocab_size": 96, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128, "resid_pdrop": 0.0}
        | {"embd_pdrop": 0.0, "attn_pdrop": 0.0}
        | _TOKENS,
        "plain",
        "gelu_tanh",
    ),
    "opt": (
        "OPTConfig",
        _NEOX_LIKE
        | {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0, "max_position_embeddings": 128}
        | _TOKENS,
        "plain",
        "relu",
    ),
    "falcon": ("FalconConfig", _NEOX_LIKE | {"ffn_hidden_size": 48} | _TOKENS, "plain", "gelu"),
}


def tiny_model(family: str = "llama", seed: int = 0, **overrides: Any) -> Any:
    """A random causal language model of a family: 4 layers, width 32, 48 neurons (128 in GPT-2), float32, eval mode."""
    name, arguments, _, _ = FAMILIES[family]
    torch.manual_seed(seed)
    config = getattr(transformers, name)(**arguments | overrides)
    model = AutoModelForCausalLM.from_config(config).eval()
    # The default initialization is so small that an FFN hardly shows in the logits.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.2)
    return model
