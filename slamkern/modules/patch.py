"""patch_model and its undoing: FFNs and RMS norms of a decoder run fused, and its loss on request; all else stays.

Only the class of the FFN blocks (or, without a gate, of their activation modules) and of the norms is extended,
instance by instance; with ``loss=True`` that of the model, too, under its own name.
The model's forward otherwise, its parameters and their names stay, so saving, trainers, adapters, checkpointing and
``torch.compile`` go on as before.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from slamkern.errors import SlamkernError
from slamkern.modules.ffn import FFN, Fused, fuse, unfuse
from slamkern.modules.ffn_match import by_layer, find_ffns
from slamkern.modules.fused_loss import FusedLoss, Loss, fuse_loss, language_model, match_loss, unfuse_loss
from slamkern.modules.match import Match
from slamkern.modules.rmsnorm import FusedNorm, find_norms, fuse_norm, unfuse_norm
from slamkern.modules.surgery import Extended
from slamkern.ops.dispatch import resolve

_log = logging.getLogger(__name__)
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Kind:
    """One kind of fused module: its mixin, and how to fuse an instance and undo it."""

    mixin: type[Extended]
    fuse: Callable[[nn.Module, Any], None]
    unfuse: Callable[[Any], None]


FFNS = Kind(Fused, fuse, unfuse)
NORMS = Kind(FusedNorm, fuse_norm, unfuse_norm)
LOSS = Kind(FusedLoss, fuse_loss, unfuse_loss)


def patch_model(
    model: Model,
    *,
    strict: bool = True,
    backend: str = "auto",
    recompute: bool = False,
    norms: bool = True,
    loss: bool = False,
    shared_experts: bool = False,
) -> Model:
    """Fuse FFNs and RMS norms of ``model`` in place; return it.

    Patching twice changes nothing but what has become something else in between (another activation, another epsilon).

    Args:
        strict: refuse the model if any FFN of its decoder cannot be fused; otherwise leave those alone, log them,
            and list them in :func:`explain`.
        backend: ``"auto"``, ``"triton"``, ``"native"`` or ``"reference"``.
        recompute: save only the input of each gated FFN for the backward, and compute gate and up again there.
        norms: fuse the RMS norms too; a norm that is none of the known ones is left alone and listed in explain.
        loss: fuse the loss with the output head, for trainers that call the model with ``labels``: in training mode
            it returns the same loss and ``logits=None`` (see `fused_loss`). Refused where it would be another loss,
            also with ``strict=False``. ``slamkern.train`` needs no such thing; TRL's SFTTrainer puts a fused loss of
            its own over the model's, which :func:`explain` then names.
        shared_experts: of a mixture of experts take the expert that every token passes for the FFN of its layer; the
            routed ones are left alone, so this needs ``strict=False``.

    Raises SlamkernError naming the module and what would work. The model is then as it was.
    """
    if not isinstance(model, nn.Module):
        raise SlamkernError(f"patch_model takes a torch module, not {type(model).__name__}")
    matches = find_ffns(model, shared_experts=shared_experts)
    usable = [match for match in matches if match.reason is None]
    _refuse(model, [match for match in matches if match.reason is not None], bool(usable), strict)
    by_layer(usable)
    causal = language_model(model)
    found_loss = _loss_of(model, causal) if loss else None
    for match in usable:
        resolve(backend, next(match.block.parameters()).device.type)
    for match in matches:
        _patch(FFNS, match, backend)
    for match in usable:
        match.part.recompute = recompute  # type: ignore[union-attr]
    for found in find_norms(model):
        if norms and usable:
            _patch(NORMS, found, backend)
        elif isinstance(found.module, FusedNorm):
            unfuse_norm(found.module)
    if found_loss is not None and not isinstance(causal, FusedLoss):
        LOSS.fuse(causal, found_loss)
    elif found_loss is None and isinstance(causal, FusedLoss):
        LOSS.unfuse(causal)
    return model


def _loss_of(model: nn.Module, causal: Any) -> Loss:
    found = "it is no transformers model with an output head" if causal is None else match_loss(causal)
    if isinstance(found, str):
        raise SlamkernError(f"the loss of {type(causal or model).__name__} cannot be fused: {found}")
    return found


def _patch(kind: Kind, match: Match[Any], backend: str) -> None:
    if match.part is None and isinstance(match.module, kind.mixin):  # no longer what it was when it was fused
        kind.unfuse(match.module)
    if match.reason is None and match.part is not None:
        kind.fuse(match.module, match.part)
        match.part.backend = backend


def _refuse(model: nn.Module, refused: list[Match[FFN]], usable: bool, strict: bool) -> None:
    name = type(model).__name__
    if strict and refused:
        first = refused[0]
        raise SlamkernError(
            f"{name}: {first.path or 'the model'} cannot be fused: {first.reason}"
            f" ({len(refused)} such modules); strict=False leaves them alone"
        )
    if not usable:
        message = f"{name}: no FFN found; one is down(act(gate(x)) * up(x)) or down(act(up(x)))"
        if strict:
            raise SlamkernError(message)
        _log.warning("%s", "nothing is patched" if refused else f"{message}; nothing is patched")
    for match in refused:
        _log.warning("%s is left alone: %s", match.path, match.reason)


def unpatch_model(model: Model) -> Model:
    """Undo :func:`patch_model` in place and return the model; an unpatched model is left as it is.

    A class that others have derived from a fused one since (FSDP2's, a parametrization's) stays, without our part.
    """
    for module in model.modules():
        for kind in (FFNS, NORMS, LOSS):
            if isinstance(module, kind.mixin):
                kind.unfuse(module)
    return model


@contextmanager
def patched(
    model: Model,
    *,
    strict: bool = True,
    backend: str = "auto",
    recompute: bool = False,
    norms: bool = True,
    loss: bool = False,
    shared_experts: bool = False,
) -> Iterator[Model]:
    """``patch_model`` for the length of a ``with`` block; a model that was patched before stays patched."""
    if any(isinstance(module, Fused | FusedNorm) for module in model.modules()):
        yield model
        return
    try:
        yield patch_model(
            model, strict=strict, backend=backend, recompute=recompute, norms=norms, loss=loss,
            shared_experts=shared_experts,
        )  # fmt: skip
    finally:
        unpatch_model(model)


def fused_ffns(model: nn.Module) -> list[FFN]:
    """The fused FFNs of a patched model in order of layer; empty for an unpatched one."""
    ffns = [module.slamkern_ffn for module in model.modules() if isinstance(module, Fused)]
    return sorted(ffns, key=lambda ffn: ffn.layer)
