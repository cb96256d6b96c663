"""Small models of any family with weights wide enough to show mistakes of attention, and sequences for them."""

import torch
import transformers
from transformers import AutoModelForCausalLM

from slamkern.data.packing import IGNORE, Example

LLAMA = dict(
    vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip


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
