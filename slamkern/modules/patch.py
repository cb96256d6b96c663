"""patch_model and its undoing: FFNs and RMS norms of a decoder run fused, nothing else changes.

Only the class of the FFN blocks (or, without a gate, of their activation modules) and of the norms is extended,
instance by instance.
The model's class, its forward, its parameters and their names stay, so saving, trainers, adapters, checkpointing and
``torch.compile`` go on as before.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from slamkern.errors import SlamkernError
from slamkern.modules.ffn import FFN, Fused, fuse, unfuse
from slamkern.modules.ffn_match import Finding, decoder_of, find_ffns
from slamkern.modules.rmsnorm import FusedNorm, NormFinding, find_norms, fuse_norm, unfuse_norm
from slamkern.ops.dispatch import resolve

_log = logging.getLogger(__name__)
Model = TypeVar("Model", bound=nn.Module)


def patch_model(
    model: Model,
    *,
    strict: bool = True,
    backend: str = "auto",
    recompute: bool = False,
    norms: bool = True,
) -> Model:
    """Fuse FFNs and RMS norms of ``model`` in place; return it; patching twice changes nothing.

    Args:
        strict: refuse the model if any FFN of its decoder cannot be fused; otherwise leave those alone, log them,
            and list them in :func:`explain`.
        backend: ``"auto"``, ``"triton"``, ``"native"`` or ``"reference"``.
        recompute: save only the input of each gated FFN for the backward, and compute gate and up again there.
        norms: fuse the RMS norms too; a norm that is none of the known ones is left alone and listed in explain.

    Raises SlamkernError naming the module and what would work. The model is then as it was.
    """
    if not isinstance(model, nn.Module):
        raise SlamkernError(f"patch_model takes a torch module, not {type(model).__name__}")
    findings = find_ffns(model)
    refused = [finding for finding in findings if finding.reason is not None]
    usable = [finding for finding in findings if finding.reason is None]
    if strict and refused:
        first = refused[0]
        raise SlamkernError(
            f"{type(model).__name__}: {first.path or 'the model'} cannot be fused: {first.reason}"
            f" ({len(refused)} such modules); strict=False leaves them alone"
        )
    if not usable:
        message = f"{type(model).__name__}: no FFN found; one is down(act(gate(x)) * up(x)) or down(act(up(x)))"
        if strict:
            raise SlamkernError(message)
        _log.warning("%s; nothing is patched", message)
    _check_layers(model, usable)
    for finding in usable:
        device = next(finding.module.parameters(), next(model.parameters())).device
        resolve(backend, device.type)
    for finding in refused:
        _log.warning("%s is left alone: %s", finding.path, finding.reason)
    for finding in usable:
        ffn: FFN = finding.ffn  # type: ignore[assignment]
        if not isinstance(finding.module, Fused):
            fuse(finding.module, ffn)
        ffn.backend, ffn.recompute = backend, recompute
    prefix, decoder = decoder_of(model)
    _patch_norms(find_norms(decoder, prefix), norms and bool(usable), backend)
    return model


def _patch_norms(findings: list[NormFinding], wanted: bool, backend: str) -> None:
    for found in findings:
        if isinstance(found.module, FusedNorm) and not wanted:
            unfuse_norm(found.module)
        elif wanted and found.norm is not None:
            if not isinstance(found.module, FusedNorm):
                fuse_norm(found.module, found.norm)
            found.norm.backend = backend


def _check_layers(model: nn.Module, findings: list[Finding]) -> None:
    seen: dict[int, str] = {}
    modules: dict[int, str] = {}
    for finding in findings:
        layer = finding.ffn.layer  # type: ignore[union-attr]
        if layer in seen:
            raise SlamkernError(f"layer {layer} has two FFNs: {seen[layer]} and {finding.path}; expected one a layer")
        if id(finding.module) in modules:
            raise SlamkernError(
                f"{modules[id(finding.module)]} and {finding.path} share one module; expected their own"
            )
        seen[layer] = modules[id(finding.module)] = finding.path


def unpatch_model(model: Model) -> Model:
    """Undo :func:`patch_model` in place and return the model; an unpatched model is left as it is."""
    for module in model.modules():
        if isinstance(module, Fused):
            unfuse(module)
        elif isinstance(module, FusedNorm):
            unfuse_norm(module)
    return model


@contextmanager
def patched(
    model: Model,
    *,
    strict: bool = True,
    backend: str = "auto",
    recompute: bool = False,
    norms: bool = True,
) -> Iterator[Model]:
    """``patch_model`` for the length of a ``with`` block; a model that was patched before stays patched."""
    if any(isinstance(module, Fused | FusedNorm) for module in model.modules()):
        yield model
        return
    try:
        yield patch_model(model, strict=strict, backend=backend, recompute=recompute, norms=norms)
    finally:
        unpatch_model(model)


def fused_ffns(model: nn.Module) -> list[FFN]:
    """The fused FFNs of a patched model in order of layer; empty for an unpatched one."""
    ffns = [module.slamkern_ffn for module in model.modules() if isinstance(module, Fused)]
    return sorted(ffns, key=lambda ffn: ffn.layer)


@dataclass(frozen=True)
class Explanation:
    """One row of :func:`explain`: a module that is, or looks like, an FFN."""

    path: str
    layer: int | None
    kind: str | None
    activation: str | None
    neurons: int | None
    fused: bool
    trainable: tuple[str, ...]
    reason: str | None

    def __str__(self) -> str:
        if self.reason is not None:
            return f"{self.path}: not fused: {self.reason}"
        state = "fused" if self.fused else "can be fused"
        trained = ", ".join(self.trainable) or "frozen"
        return f"{self.path}: {state} ({self.kind}, {self.activation}, {self.neurons} neurons), {trained}"


class ExplanationTable(tuple[Explanation, ...]):
    """The rows of :func:`explain`, FFNs in order of depth; prints a line an FFN and a line a group of the others."""

    norms: tuple[NormFinding, ...] = ()

    def __str__(self) -> str:
        rows: list[_Row] = []
        for norm in self.norms:
            what = None if norm.norm is None else f"RMS norm, {norm.norm.style}"
            rows.append((norm, isinstance(norm.module, FusedNorm), what))
        return "\n".join([*map(str, self), *_grouped(rows)]) or "no FFN found"


_Row = tuple[NormFinding, bool, str | None]  # a finding, whether it is fused, and what it computes


def _grouped(rows: list[_Row]) -> list[str]:
    """One line for all findings that differ in their layer alone."""
    groups: dict[str, int] = {}
    for finding, fused, what in rows:
        state = "fused" if fused else "can be fused"
        text = f"not fused: {finding.reason}" if what is None else f"{state} ({what})"
        line = f"{re.sub(r'[.][0-9]+[.]', '.*.', finding.path)}: {text}"
        groups[line] = groups.get(line, 0) + 1
    return [f"{line}, {count} of them" if count > 1 else line for line, count in groups.items()]


def explain(model: nn.Module) -> ExplanationTable:
    """Per FFN: found, fused or why not, and which of its projections are trainable. Changes nothing.

    The table's ``norms`` have the same of every norm: the module, what it computes or why it is left alone.
    """
    rows = []
    for finding in find_ffns(model):
        ffn = finding.ffn
        block = model.get_submodule(finding.path)
        trainable = tuple(
            name for name, child in block.named_children() if any(p.requires_grad for p in child.parameters())
        )
        rows.append(
            Explanation(
                path=finding.path,
                layer=ffn.layer if ffn else None,
                kind=ffn.kind if ffn else None,
                activation=ffn.activation if ffn else None,
                neurons=ffn.neurons if ffn else None,
                fused=isinstance(finding.module, Fused),
                trainable=trainable,
                reason=finding.reason,
            )
        )
    table = ExplanationTable(rows)
    prefix, decoder = decoder_of(model)
    table.norms = tuple(find_norms(decoder, prefix))
    return table
