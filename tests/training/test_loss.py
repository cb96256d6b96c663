import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import slamkern
from slamkern.data.packing import Example, collate, padded_batch
from slamkern.errors import SlamkernError
from slamkern.modules.packed_attention import packed_attention
from slamkern.ops.linear_cross_entropy import linear_cross_entropy
from slamkern.training.loss import packed_loss, padded_loss, read_head

EXAMPLES = [
    Example((3, 5, 7, 9, 11), (-100, -100, 7, 9, 11)),
    Example((2, 4), (-100, 4)),
    Example(tuple(range(20, 33)), (*[-100] * 6, *range(26, 33))),
]


def tiny(kind: str = "Llama", **changes):
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    sizes |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = getattr(transformers, f"{kind}Config")(**sizes, **changes)
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    # Random heads give logits near 0, where a softcap does nothing; these reach several units.
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(40)
    return model.requires_grad_(False)


def per_sequence_loss(model):
    """Sum of the loss of each sequence alone, through the model's own logits."""
    total = torch.zeros(())
    for example in EXAMPLES:
        logits = model(torch.tensor([example.input_ids]), use_cache=False).logits[0, :-1].float()
        total = total + F.cross_entropy(logits, torch.tensor(example.labels[1:]), reduction="sum")
    return total


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("Llama", {}),
        ("Gemma2", {"head_dim": 8, "final_logit_softcapping": 2.0}),
        ("Granite", {"logits_scaling": 8.0}),
        ("Cohere", {"logit_scale": 0.25}),
        ("Llama", {"tie_word_embeddings": True}),
    ],
)
def test_model_losses_equal_the_per_sequence_loss_of_the_model_itself(kind, changes):
    model = tiny(kind, **changes)
    trained = model.get_decoder().layers[0].mlp.up_proj.weight.requires_grad_(True)
    assert read_head(model) is not None
    expected = per_sequence_loss(model)
    gradient = torch.autograd.grad(expected, trained)[0]
    losses = {
        "packed": packed_loss(model, collate(EXAMPLES)),
        "padded": padded_loss(model, padded_batch(EXAMPLES, pad_id=0)),
        "packed, model's own head": packed_loss(model, collate(EXAMPLES), head=None),
        "padded, model's own head": padded_loss(model, padded_batch(EXAMPLES, pad_id=0), head=None),
    }
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5, msg=name)
        torch.testing.assert_close(torch.autograd.grad(loss, trained)[0], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_a_head_that_does_more_than_the_config_says_is_left_to_the_model():
    model = tiny()
    model.lm_head.register_forward_hook(lambda module, args, output: output * 1.01)
    assert read_head(model) is None
    torch.testing.assert_close(packed_loss(model, collate(EXAMPLES)), per_sequence_loss(model), rtol=1e-5, atol=1e-5)


def test_a_trained_head_receives_its_gradient():
    model = tiny()
    model.lm_head.requires_grad_(True)
    packed_loss(model, collate(EXAMPLES)).backward()
    gradient = model.lm_head.weight.grad.clone()
    model.lm_head.weight.grad = None
    per_sequence_loss(model).backward()
    torch.testing.assert_close(gradient, model.lm_head.weight.grad, rtol=1e-4, atol=1e-5)


def test_read_head_restores_the_mode_and_draws_no_random_numbers():
    model = tiny(attention_dropout=0.5).train()
    before = torch.get_rng_state()
    with packed_attention(model):
        assert isinstance(read_head(model).weight, nn.Parameter)
    assert model.training and torch.equal(before, torch.get_rng_state())


def test_recomputation_outside_packed_attention_is_refused():
    model = tiny()
    model.gradient_checkpointing_enable()
    with pytest.raises(SlamkernError, match="packed_attention"):
        packed_loss(model, collate(EXAMPLES))


class NoStall(TorchDispatchMode):
    """Refuses what would make the host wait for a GPU."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten.nonzero, torch.ops.aten._local_scalar_dense):
            raise AssertionError(f"{function} stalls the device")
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("own_head", [False, True])
def test_a_packed_micro_batch_never_waits_for_the_device(own_head):
    model = tiny()
    trained = model.get_decoder().layers[0].mlp.up_proj.weight.requires_grad_(True)
    head = None if own_head else read_head(slamkern.patch_model(model))
    batch = collate(EXAMPLES)
    with packed_attention(model):
        with NoStall():
            packed_loss(model, batch, head=head).backward()
        assert trained.grad.any()
        with NoStall(), pytest.raises(AssertionError, match="stalls"):
            linear_cross_entropy(torch.randn(2, 4), torch.randn(5, 4), torch.tensor([0, 1]))
