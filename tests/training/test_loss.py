import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import slamkern
from slamkern.data.packing import Example, collate, padded_batch
from slamkern.errors import SlamkernError
from slamkern.modules.packed_attention import packed_attention
from slamkern.training.loss import frozen_head_cross_entropy, packed_loss, padded_loss, read_head

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


def stock(hidden, weight, labels, bias=None, scale=1.0, softcap=None):
    logits = F.linear(hidden, weight, bias).to(torch.promote_types(hidden.dtype, torch.float32)) * scale
    logits = logits if softcap is None else torch.tanh(logits / softcap) * softcap
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum")


@pytest.mark.parametrize("options", [{}, {"softcap": 3.0}, {"scale": 0.25, "softcap": 2.0}, {"bias": True}])
@pytest.mark.parametrize("chunk", [5, 1024])  # ragged last chunk, one chunk
def test_loss_and_gradient_equal_cross_entropy(options, chunk):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(2, 17, 32, generator=generator, requires_grad=True)
    weight = torch.randn(128, 32, generator=generator)
    labels = torch.randint(128, (2, 17), generator=generator)
    labels[torch.rand(2, 17, generator=generator) < 0.4] = -100
    if "bias" in options:
        options = {"bias": torch.randn(128, generator=generator)}
    loss = frozen_head_cross_entropy(hidden, weight, labels, chunk=chunk, **options)
    expected = stock(hidden, weight, labels, **options)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss * 0.37, hidden)[0], torch.autograd.grad(expected * 0.37, hidden)[0]
    )


def test_gradcheck_in_double():
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(6, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    labels = torch.tensor([1, -100, 8, 0, -100, 3])
    assert torch.autograd.gradcheck(
        lambda h: frozen_head_cross_entropy(h, weight, labels, softcap=2.0, chunk=2), hidden
    )


def test_bfloat16_error_within_twice_the_stock_error():
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(64, 32, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(128, 32, generator=generator).bfloat16()
    labels = torch.randint(128, (64,), generator=generator)
    wide = hidden.detach().double().requires_grad_()
    truth = stock(wide, weight.double(), labels)
    ours, theirs = frozen_head_cross_entropy(hidden, weight, labels), stock(hidden, weight, labels)
    eps = torch.finfo(torch.bfloat16).eps
    assert abs(ours - truth) <= 2 * abs(theirs - truth) + 1e-6 * truth
    (true_grad,) = torch.autograd.grad(truth, wide)
    error = [(torch.autograd.grad(loss, hidden)[0] - true_grad).norm() for loss in (ours, theirs)]
    assert error[0] <= 2 * error[1] + eps * true_grad.norm()


def test_nothing_supervised_is_zero_with_a_graph():
    hidden = torch.randn(4, 8, requires_grad=True)
    loss = frozen_head_cross_entropy(hidden, torch.randn(16, 8), torch.full((4,), -100))
    loss.backward()
    assert loss.item() == 0 and not hidden.grad.any()


def test_no_logits_tensor_of_all_rows_is_saved():
    saved = []
    hidden = torch.randn(50, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        frozen_head_cross_entropy(hidden, torch.randn(1000, 8), torch.arange(50))
    assert sum(saved) == hidden.numel()


def test_trained_head_is_refused():
    with pytest.raises(SlamkernError, match="requires a gradient"):
        frozen_head_cross_entropy(torch.randn(2, 4), torch.randn(5, 4, requires_grad=True), torch.tensor([0, 1]))


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
            frozen_head_cross_entropy(torch.randn(2, 4), torch.randn(5, 4), torch.tensor([0, 1]))
