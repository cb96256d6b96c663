"""patch_model(loss=True): a model's own loss and gradients without logits, or refused by name."""

import copy
import io

import pytest
import torch
from support.tiny_models import FAMILIES, tiny_model
from torch.utils.flop_counter import FlopCounterMode

import slamkern
from slamkern.errors import SlamkernError
from slamkern.modules.fused_loss import FusedLoss


def labels_of(input_ids):
    labels = input_ids.clone()
    labels[:, :4] = -100
    return labels


def loss_and_gradients(model, **inputs):
    model.zero_grad()
    output = model(**inputs)
    output.loss.backward()
    return output, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(model, stock, **inputs):
    output, gradients = loss_and_gradients(model, **inputs)
    expected, theirs = loss_and_gradients(stock, **inputs)
    assert output.logits is None and type(output) is type(expected)
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == theirs.keys()
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    for name, gradient in theirs.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-5 * largest, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_its_own_loss_and_all_its_gradients(family, input_ids):
    options = {"final_logit_softcapping": 2.0} if family == "gemma2" else {}
    stock = tiny_model(family, **options).train()
    model = slamkern.patch_model(copy.deepcopy(stock), loss=True)
    assert_same(model, stock, input_ids=input_ids, labels=labels_of(input_ids))


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_a_frozen_head_costs_no_product_for_its_weight(tied, frozen, input_ids):
    stock = tiny_model(tie_word_embeddings=tied).requires_grad_(False).train()
    slamkern.apply_selection(stock, [1])
    stock.lm_head.weight.requires_grad_(not frozen)
    model = slamkern.patch_model(copy.deepcopy(stock), loss=True)
    labels = labels_of(input_ids)
    assert_same(model, stock, input_ids=input_ids, labels=labels)
    assert (model.lm_head.weight.grad is None) is frozen
    # What the head costs above the decoder: two products of the supervised rows, three with a gradient of its weight.
    with FlopCounterMode(display=False) as counter:
        model(input_ids=input_ids, labels=labels).loss.backward()
    with FlopCounterMode(display=False) as decoder:
        model.model(input_ids=input_ids).last_hidden_state.sum().backward()
    rows = int((labels[:, 1:] != -100).sum())
    one = 2 * rows * model.lm_head.weight.numel()
    assert counter.get_total_flops() - decoder.get_total_flops() == (2 if frozen else 3) * one


@pytest.mark.parametrize(
    "options",
    [
        {"num_items_in_batch": 31},
        {"num_items_in_batch": torch.tensor(31)},
        {"ignore_index": 5},
        {"shift": True},
        {"attention_mask": True, "output_hidden_states": True, "use_cache": True},
    ],
    ids=["items", "items-tensor", "ignore_index", "shift_labels", "outputs"],
)
def test_the_contract_of_transformers_losses(options, input_ids):
    stock = tiny_model("qwen2").train()
    model = slamkern.patch_model(copy.deepcopy(stock), loss=True)
    labels = labels_of(input_ids)
    options = dict(options)
    if "ignore_index" in options:
        labels[labels == -100] = 5
    if options.pop("shift", False):
        options["shift_labels"] = labels.roll(-1, 1)
    if options.get("attention_mask"):
        options["attention_mask"] = torch.ones_like(input_ids)
        options["attention_mask"][0, -3:] = 0
        labels[0, -3:] = -100
    assert_same(model, stock, input_ids=input_ids, labels=labels, **options)
    ours, theirs = (each(input_ids=input_ids, labels=labels, **options) for each in (model, stock))
    assert [name for name in theirs if name != "logits"] == list(ours)
    by_position = model(input_ids, options.get("attention_mask"), labels=labels, return_dict=False)
    assert isinstance(by_position, tuple) and by_position[0].shape == ()


def test_logits_in_evaluation_without_labels_and_on_request(input_ids):
    stock = tiny_model()
    model = slamkern.patch_model(copy.deepcopy(stock), loss=True)
    inputs = {"input_ids": input_ids, "labels": labels_of(input_ids)}
    expected = stock(**inputs)
    assert torch.equal(expected.logits, stock(input_ids=input_ids).logits)
    torch.testing.assert_close(model(**inputs).logits, expected.logits)
    assert model(**inputs, skip_logits=True).logits is None
    torch.testing.assert_close(model(**inputs, skip_logits=True).loss, expected.loss)
    model.train()
    torch.testing.assert_close(model(**inputs, skip_logits=False).logits, expected.logits)
    torch.testing.assert_close(model(input_ids=input_ids).logits, expected.logits)
    with pytest.raises(SlamkernError, match="skip_logits=True leaves nothing to return without labels"):
        model(input_ids=input_ids, skip_logits=True)
    ids = model.eval().generate(input_ids[:1, :4], max_new_tokens=4, do_sample=False)
    assert torch.equal(ids, stock.generate(input_ids[:1, :4], max_new_tokens=4, do_sample=False))


def test_it_is_undone_saved_copied_and_pickled_as_the_model_it_was(input_ids, tmp_path):
    stock = tiny_model().train()
    own = type(stock)
    model = slamkern.patch_model(copy.deepcopy(stock), loss=True)
    assert type(model).__name__ == own.__name__ and isinstance(model, own)
    assert "loss fused (linear cross-entropy of a trained head" in str(slamkern.explain(model))
    model.save_pretrained(tmp_path)
    assert own.from_pretrained(tmp_path).config.architectures == [own.__name__]
    inputs = {"input_ids": input_ids, "labels": labels_of(input_ids)}
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert_same(twin, stock, **inputs)
    slamkern.patch_model(model)
    assert type(model) is own and "loss not fused: patch_model(model, loss=True)" in str(slamkern.explain(model))
    with slamkern.patched(slamkern.unpatch_model(model), loss=True):
        assert isinstance(model, FusedLoss)
    assert type(model) is own
    torch.testing.assert_close(model(**inputs).logits, stock(**inputs).logits, rtol=0, atol=0)


def test_large_logits_round_more_than_a_small_loss(llama, input_ids):
    """As of a trained model: a loss of one or two of logits of dozens, here with a common offset."""
    llama.lm_head = torch.nn.Linear(32, 96)
    torch.nn.init.constant_(llama.lm_head.bias, 1000.0)
    model = slamkern.patch_model(copy.deepcopy(llama), loss=True)
    inputs = {"input_ids": input_ids, "labels": input_ids}
    torch.testing.assert_close(model.train()(**inputs).loss, llama.train()(**inputs).loss, rtol=1e-3, atol=0)


def test_a_compiled_model_has_no_graph_break(input_ids):
    stock = tiny_model(num_hidden_layers=1).train()
    model = slamkern.patch_model(copy.deepcopy(stock), loss=True)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    inputs = {"input_ids": input_ids, "labels": labels_of(input_ids), "use_cache": False}
    ours, theirs = compiled(**inputs).loss, stock(**inputs).loss
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(*each) for each in ((ours, model.lm_head.weight), (theirs, stock.lm_head.weight))]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_what_would_be_another_loss_is_refused_by_name(llama, input_ids):
    inputs = {"input_ids": input_ids, "labels": input_ids}

    def refused(reason, change, model=None):
        model = copy.deepcopy(model or llama)
        change(model)
        before = type(model)
        with pytest.raises(SlamkernError, match=f"the loss of .* cannot be fused: .*{reason}"):
            slamkern.patch_model(model, loss=True, strict=False)
        assert type(model) is before and not any(row.fused for row in slamkern.explain(model))

    refused("its loss_function is <lambda>", lambda model: setattr(model, "loss_function", lambda *_, **__: 0))
    refused("its output head is Sequential", lambda m: setattr(m, "lm_head", torch.nn.Sequential(m.lm_head)))
    refused("has hooks", lambda model: model.lm_head.register_forward_hook(lambda m, a, output: output * 2))
    refused("its forward on this instance is .*lambda", lambda m: setattr(m, "forward", lambda **_: None))
    # The config no longer says what the module does: found by the numbers.
    refused("its logits are not those of a linear head", lambda m: setattr(m.config, "final_logit_softcapping", 1.0))
    refused("no transformers model with an output head", lambda model: None, llama.model)

    def refuses(reason, change, **more):
        model = slamkern.patch_model(copy.deepcopy(llama), loss=True).train()
        change(model)
        with pytest.raises(SlamkernError, match=reason):
            model(**inputs, **more)

    refuses("another loss_function", lambda model: setattr(model, "loss_function", lambda *_, **__: 0))
    refuses("has hooks", lambda model: model.lm_head.register_forward_hook(lambda *_: None))
    refuses("leave output_router_logits away", lambda model: None, output_router_logits=True)


def test_a_forward_put_over_it_is_told(llama):
    slamkern.patch_model(llama, loss=True)
    llama.forward = lambda **_: None
    assert "loss not fused: its forward on this instance is" in str(slamkern.explain(llama))
