"""What a cell trains, made trainable: whole models, adapters, FFNs, attention; and adapters folded in at the end."""

from typing import Any

import torch
from torch import nn

from slamkern.bakeoff.config import Cell
from slamkern.errors import SlamkernError
from slamkern.modules.ffn_match import by_layer, find_ffns
from slamkern.modules.patch import patch_model
from slamkern.selection.layers import LayerSelection
from slamkern.selection.trainable import apply_selection


def make_trainable(model: Any, cell: Cell, selection: LayerSelection, seed: int) -> LayerSelection | None:
    """Let what the cell names require a gradient, this and no more; returns what `train` saves as the selection.

    FFNs are fused, except under LoRA, whose modules stand in their place.
    """
    if cell.train == "lora":
        _add_lora(model, cell.rank, seed)
        return None
    patch_model(model)
    if cell.train == "full":
        model.requires_grad_(True)
        return None
    if cell.train == "ffn":
        apply_selection(model, selection, cell.projections)
        return selection
    model.requires_grad_(False)
    for layer in selection.layers:
        for parameter in attention_weights(model, layer):
            parameter.requires_grad_(True)
    return None


def attention_weights(model: nn.Module, layer: int) -> list[nn.Parameter]:
    """The matrices of a decoder layer that are not in its FFN."""
    ffn = by_layer(find_ffns(model))[layer].path
    parent = model.get_submodule(ffn.rpartition(".")[0])
    inside = {id(parameter) for parameter in model.get_submodule(ffn).parameters()}
    found = [p for p in parent.parameters() if p.dim() == 2 and id(p) not in inside]
    if not found:
        raise SlamkernError(f"layer {layer} has no matrices beside its FFN {ffn}")
    return found


def _add_lora(model: Any, rank: int, seed: int) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise SlamkernError("a cell with train: lora needs peft: pip install 'slamkern[bench]'") from None
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"), model)


@torch.no_grad()
def fold_adapters(model: nn.Module) -> None:
    """Add every LoRA update to the weight it is of, and put the plain module back in its place."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, module.get_base_layer())


@torch.no_grad()
def scale_change(base: nn.Module, trained: nn.Module, scale: float) -> None:
    """Give ``trained`` the weights ``W0 + scale * (W - W0)``, where W0 are those of ``base``."""
    state = base.state_dict()
    seen: set[int] = set()
    for name, weight in trained.state_dict().items():
        before = state[name]
        if weight.is_floating_point() and weight.data_ptr() not in seen and not torch.equal(weight, before):
            seen.add(weight.data_ptr())  # a tied weight changes once
            weight.copy_(before.double() + scale * (weight.double() - before.double()))


@torch.no_grad()
def weight_distance(base: nn.Module, trained: nn.Module) -> dict[str, Any]:
    """How far training moved: ``|W - W0| / |W0|`` (Frobenius) over the weights that changed, and over all of them."""
    moved = changed = total = 0.0
    names = 0
    state = trained.state_dict()
    seen: set[int] = set()
    for name, before in base.state_dict().items():
        if not before.is_floating_point() or before.data_ptr() in seen:  # a tied weight counts once
            continue
        seen.add(before.data_ptr())
        squared = _squared_norm(before)
        total += squared
        if not torch.equal(before, state[name]):
            names += 1
            changed += squared
            moved += _squared_norm(state[name].float() - before.float())
    relative = {"changed": (moved / changed) ** 0.5 if changed else 0.0, "all": (moved / total) ** 0.5}
    return {"tensors": names, "relative": relative["changed"], "relative_to_model": relative["all"]}


def _squared_norm(tensor: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.float(), dtype=torch.float64)) ** 2
