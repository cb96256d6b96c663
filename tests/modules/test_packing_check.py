"""The check of a model before its sequences are packed: what it finds, and that it leaves nothing behind."""

import copy

import torch
import transformers
from support.packed_models import LLAMA, build

from slamkern.modules.packed_attention import packed_attention, supports_packing


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
