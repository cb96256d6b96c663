"""Packed attention by name, where a model that has it is called with something else."""

import pytest
import torch

from slamkern.errors import SlamkernError
from slamkern.integrations.packed_attention import register


def test_rows_and_caches_are_refused_with_what_does_them(llama, input_ids):
    expected = llama.generate(input_ids, max_new_tokens=4, do_sample=False)
    llama.set_attn_implementation(register())
    padded = torch.ones_like(input_ids)
    padded[0, :3] = 0
    advice = r'set_attn_implementation\("sdpa"\)'
    for call in (
        lambda: llama(input_ids=input_ids),
        lambda: llama(input_ids=input_ids, attention_mask=padded),
        lambda: llama.generate(input_ids[:1], max_new_tokens=4),
    ):
        with pytest.raises(SlamkernError, match=advice):
            call()
    llama.set_attn_implementation("sdpa")
    assert torch.equal(llama.generate(input_ids, max_new_tokens=4, do_sample=False), expected)
