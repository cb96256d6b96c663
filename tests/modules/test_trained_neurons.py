"""Training single neurons: gradients of those rows and columns, and everything else stays bit-identical."""

import copy

import pytest
import torch
from support.tiny_models import tiny_model
from torch.utils.flop_counter import FlopCounterMode

import slamkern
from slamkern.selection.layers import LayerSelection
from slamkern.selection.trainable import trained_parameters

CHOSEN = {1: (3, 17, 40), 3: (0, 47)}


def selected(model, neurons=None, **options):
    neurons = neurons or CHOSEN
    selection = LayerSelection(tuple(neurons), num_layers=4, neurons=neurons)
    return slamkern.apply_selection(model, selection, **options)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("projections", [("up", "down"), ("up",), ("down",)])
def test_gradients_are_rows_and_columns_of_the_whole(recompute, projections, input_ids):
    whole, sparse = tiny_model(), slamkern.patch_model(tiny_model(), recompute=recompute)
    chosen = selected(sparse, projections=projections)
    assert [(t.layer, t.projection) for t in chosen] == [(layer, p) for layer in CHOSEN for p in projections]
    for model in (whole, sparse):
        model(input_ids=input_ids, labels=input_ids).loss.backward()
    leaves = {id(trainable.parameter) for trainable in chosen}
    assert all(parameter.grad is None for parameter in sparse.parameters() if id(parameter) not in leaves)
    for trainable in chosen:
        full = whole.get_parameter(trainable.name.removesuffix("@neurons")).grad
        rows = list(CHOSEN[trainable.layer])
        expected = full[rows] if trainable.projection == "up" else full[:, rows]
        torch.testing.assert_close(trainable.parameter.grad, expected, rtol=1e-4, atol=1e-7)


def test_the_lowest_layer_saves_only_its_trained_neurons(llama, input_ids):
    slamkern.patch_model(llama)
    selected(llama, {0: (1, 2)})
    sizes = []

    def pack(tensor):
        sizes.append(tuple(tensor.shape))
        return tensor

    block = llama.model.layers[0].mlp
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        block(torch.randn(7, 32))
    assert sizes.count((7, 2)) == 2 and (7, 48) not in sizes


def test_a_step_changes_exactly_the_chosen_rows_and_columns(llama, input_ids):
    slamkern.patch_model(llama)
    before = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    chosen = selected(llama)
    optimizer = torch.optim.AdamW(trained_parameters(llama).values(), lr=1e-2)
    for _ in range(2):
        llama(input_ids=input_ids, labels=input_ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    # The last step is in the state_dict although no forward has run since.
    after = llama.state_dict()
    assert list(after) == list(before)
    for name, tensor in after.items():
        changed = tensor != before[name]
        rows = [t for t in chosen if t.name.removesuffix("@neurons") == name]
        expected = torch.zeros_like(changed)
        for trainable in rows:
            index = list(CHOSEN[trainable.layer])
            view = expected if trainable.projection == "up" else expected.T
            view[index] = True
            value = tensor[index] if trainable.projection == "up" else tensor[:, index]
            assert torch.equal(value, trainable.parameter)
        assert torch.equal(changed, expected), name
    # Undone, the model computes what it computed with its trained neurons.
    with torch.no_grad():
        trained = llama(input_ids=input_ids).logits
        torch.testing.assert_close(slamkern.unpatch_model(llama)(input_ids=input_ids).logits, trained)


def test_only_the_chosen_neurons_have_optimizer_state(llama):
    slamkern.patch_model(llama)
    selected(llama)
    assert sum(p.numel() for p in trained_parameters(llama).values()) == 2 * 32 * 5
    slamkern.apply_selection(llama, [0])
    assert all("@neurons" not in name for name in trained_parameters(llama))


def test_a_copy_trains_its_own_neurons(llama, input_ids):
    slamkern.patch_model(llama)
    selected(llama)
    twin = copy.deepcopy(llama)
    with torch.no_grad():
        for parameter in trained_parameters(twin).values():
            parameter.add_(1.0)
        assert not torch.equal(twin(input_ids=input_ids).logits, llama(input_ids=input_ids).logits)
    untouched = tiny_model().state_dict()
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in llama.state_dict().items())


def test_what_cannot_be_trained_by_neuron_is_refused(llama, input_ids):
    with pytest.raises(slamkern.SlamkernError, match="patch_model first"):
        selected(llama)
    slamkern.patch_model(llama)
    cases = [
        ({1: (48,)}, {}, "layer 1 must be distinct and from 0 to 47"),
        ({1: (2, 2)}, {}, "must be distinct"),
        ({1: ()}, {}, "must be distinct"),
        ({1: (2,)}, {"projections": ("gate", "up")}, "leave 'gate' out"),
    ]
    for neurons, options, message in cases:
        with pytest.raises(slamkern.SlamkernError, match=message):
            selected(llama, neurons, **options)
    selected(llama)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(slamkern.SlamkernError, match="without hooks or autocast"),
    ):
        llama(input_ids=input_ids)
    llama.double()(input_ids=input_ids, labels=input_ids).loss.backward()  # the neurons are converted with the model
    assert {parameter.grad.dtype for parameter in trained_parameters(llama).values()} == {torch.float64}


@pytest.mark.parametrize("neurons", [None, CHOSEN], ids=["half", "neurons"])
def test_up_is_trained_in_the_half_of_a_weight_that_gate_shares(neurons, input_ids, tmp_path):
    whole, sparse = tiny_model("phi3"), slamkern.patch_model(tiny_model("phi3"))
    chosen = selected(sparse, neurons) if neurons else slamkern.apply_selection(sparse, [1, 3])
    assert [(t.layer, t.projection) for t in chosen] == [(1, "up"), (1, "down"), (3, "up"), (3, "down")]
    for model in (whole, sparse):
        model(input_ids=input_ids, labels=input_ids).loss.backward()
    before = {name: tensor.clone() for name, tensor in sparse.state_dict().items()}
    for trainable in chosen:
        full = whole.get_parameter(trainable.name.removesuffix("@neurons")).grad
        rows = [48 + n for n in (neurons[trainable.layer] if neurons else range(48))]
        columns = neurons[trainable.layer] if neurons else range(48)
        expected = full[rows] if trainable.projection == "up" else full[:, list(columns)]
        torch.testing.assert_close(trainable.parameter.grad, expected, rtol=1e-4, atol=1e-7)
    torch.optim.AdamW(trained_parameters(sparse).values(), lr=1e-2, weight_decay=0.1).step()
    after = sparse.state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {t.name.removesuffix("@neurons") for t in chosen}
    for layer in (1, 3):
        name = f"model.layers.{layer}.mlp.gate_up_proj.weight"
        assert torch.equal(after[name][:48], before[name][:48])
    slamkern.save_delta(sparse, tmp_path)
    fresh = tiny_model("phi3")
    slamkern.load_delta(fresh, tmp_path)
    assert all(torch.equal(tensor, after[name]) for name, tensor in fresh.state_dict().items())


def test_an_optimizer_of_named_parameters_trains_them_and_a_state_dict_sets_them(llama, input_ids):
    slamkern.patch_model(llama)
    chosen = selected(llama)
    named = dict(llama.named_parameters())
    assert {id(t.parameter) for t in chosen} == {id(p) for p in named.values() if p.requires_grad}
    optimizer = torch.optim.SGD([p for p in named.values() if p.requires_grad], lr=1.0)
    llama(input_ids=input_ids, labels=input_ids).loss.backward()
    optimizer.step()
    trained = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    assert set(trained) == set(tiny_model().state_dict())
    llama.load_state_dict(tiny_model().state_dict())
    weight = llama.model.layers[1].mlp.up_proj.weight
    assert torch.equal(chosen[0].parameter, weight[list(CHOSEN[1])])
    llama.load_state_dict(trained)
    assert all(torch.equal(tensor, trained[name]) for name, tensor in llama.state_dict().items())
    slamkern.unpatch_model(llama)
    assert len(dict(llama.named_parameters())) == len(dict(tiny_model().named_parameters()))


def test_their_gradients_are_products_of_the_selected_size():
    """Gathered before the product, not after it: that would cost what training the whole weight does."""
    work = {}
    for trained in (False, True):
        model = slamkern.patch_model(tiny_model())
        selected(model)
        ffn = model.model.layers[3].mlp  # not the lowest trained layer: its input has a gradient too
        if not trained:
            model.requires_grad_(False)
        x = torch.randn(40, 32, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            ffn(x).sum().backward()
        work[trained] = counter.get_total_flops()
    dense = 2 * 40 * 32 * len(CHOSEN[3]) * 2  # rows of up, columns of down
    assert dense <= work[True] - work[False] <= 1.15 * dense
