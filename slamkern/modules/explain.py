"""explain: what slamkern found in a model, what of it is fused, what not and why, and what is trainable."""

import re
from dataclasses import dataclass

from torch import nn

from slamkern.modules.ffn import FFN, Fused
from slamkern.modules.ffn_match import find_ffns
from slamkern.modules.fused_loss import describe_loss
from slamkern.modules.match import Match
from slamkern.modules.rmsnorm import FusedNorm, Norm, find_norms


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
    """The rows of :func:`explain`, FFNs in order of depth; prints a line an FFN, a group of norms, and the loss."""

    norms: tuple[Match[Norm], ...] = ()
    loss: str | None = None

    def __str__(self) -> str:
        # Norms that differ in their layer alone share a line.
        groups: dict[str, int] = {}
        for norm in self.norms:
            line = f"{re.sub(r'[.][0-9]+[.]', '.*.', norm.path)}: {_describe(norm)}"
            groups[line] = groups.get(line, 0) + 1
        norms = [f"{line}, {count} of them" if count > 1 else line for line, count in groups.items()]
        found = "\n".join([*map(str, self), *norms]) or "no FFN found"
        return found if self.loss is None else f"{found}\n{self.loss}"


def explain(model: nn.Module) -> ExplanationTable:
    """Per FFN: found, fused or why not, and which of its projections are trainable. Changes nothing.

    The table's ``norms`` have the same of every norm: the module, what it computes or why it is left alone; its
    ``loss`` is a sentence about the loss of the model, where it has an output head.
    """
    table = ExplanationTable(map(_explanation, find_ffns(model)))
    table.norms = tuple(find_norms(model))
    table.loss = describe_loss(model)
    return table


def _explanation(match: Match[FFN]) -> Explanation:
    ffn = match.part
    children = match.block.named_children()
    trainable = tuple(name for name, child in children if any(p.requires_grad for p in child.parameters()))
    return Explanation(
        path=match.path,
        layer=ffn.layer if ffn else None,
        kind=ffn.kind if ffn else None,
        activation=ffn.activation if ffn else None,
        neurons=ffn.neurons if ffn else None,
        fused=isinstance(match.module, Fused) and match.reason is None and match.module.fits(),
        trainable=trainable,
        reason=match.reason,
    )


def _describe(norm: Match[Norm]) -> str:
    if norm.part is None or norm.reason is not None:
        return f"not fused: {norm.reason}"
    state = "fused" if isinstance(norm.module, FusedNorm) and norm.module.fits() else "can be fused"
    return f"{state} (RMS norm, {norm.part.style})"
