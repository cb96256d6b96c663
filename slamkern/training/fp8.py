"""The frozen Linears of a model's layers in FP8 for a while, and the originals back afterwards, bit by bit.

Quantized, once, are the weights that no gradient is wanted for: of attention in every layer, and of the FFN in every
layer but those that train the weight itself. Embeddings, norms, the output head and everything that is trained stay as
they are, and so does what is no ordinary Linear (see :func:`find`). On CUDA the originals move to host memory
meanwhile: that is what saves memory, and why a state_dict still has them.
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slamkern.errors import SlamkernError
from slamkern.modules.ffn import is_plain
from slamkern.modules.ffn_match import find_ffns
from slamkern.modules.fp8_linear import MULTIPLE, FP8Linear, FP8Weight
from slamkern.modules.match import decoder_of
from slamkern.modules.surgery import extend, restore
from slamkern.selection.trainable import trained_parameters

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finding:
    """A Linear of a decoder layer: its path, the module, and the reason why it stays as it is, or None."""

    path: str
    module: nn.Linear
    reason: str | None


@dataclass(frozen=True)
class Quantized:
    """What is in FP8: how many weights of how many elements, bytes in FP8 and before, and what stays as it is.

    bytes_transposed: of ``bytes``, those of the copies for the backward.
    """

    weights: int
    elements: int
    bytes: int
    bytes_transposed: int
    bytes_before: int
    emulated: bool
    skipped: tuple[Finding, ...]

    def __str__(self) -> str:
        """One line for the log."""
        text = (
            f"FP8: {self.weights} frozen weights ({self.elements / 1e6:,.1f} M values) in {self.bytes / 1e6:,.1f} MB"
            f" ({self.bytes_transposed / 1e6:,.1f} MB of them transposed for the backward)"
            f" instead of {self.bytes_before / 1e6:,.1f} MB"
        )
        if self.emulated:
            text += ", multiplied in float32: this device has no FP8 products"
        groups = Counter((re.sub(r"[.][0-9]+[.]", ".*.", found.path), found.reason) for found in self.skipped)
        return "; ".join([text, *(f"{count} x {path} stay: {why}" for (path, why), count in groups.items())])


def unavailable_reason(device: torch.device) -> str | None:
    """Why FP8 products do not run on a CUDA device; None where they do, and on a CPU, which emulates them."""
    if device.type == "cpu":
        return None
    if device.type != "cuda":
        return f"FP8 runs on CUDA devices, not on {device.type}"
    capability = torch.cuda.get_device_capability(device)
    if capability >= (8, 9):
        return None
    name, number = torch.cuda.get_device_name(device), ".".join(map(str, capability))
    return f"FP8 needs a GPU of compute capability 8.9 or newer (Ada, Hopper); {name} has {number}"


def find(model: nn.Module) -> list[Finding]:
    """Every ``nn.Linear`` in the numbered layers of the model's decoder, in order."""
    prefix, decoder = decoder_of(model)
    first = next(model.parameters())
    ffns = find_ffns(model)
    unknown = tuple(f"{ffn.path}." for ffn in ffns if ffn.part is None)
    single = tuple(f"{ffn.path}." for ffn in ffns if ffn.part is not None and ffn.part.trained is not None)
    findings = []
    for relative, module in decoder.named_modules():
        path = f"{prefix}.{relative}".strip(".")
        if not isinstance(module, nn.Linear) or _layer(path) < 0:
            continue
        reason = None
        if any(parameter.requires_grad for parameter in module.parameters()):
            reason = "trained"
        elif path.startswith(single):
            reason = "in an FFN that trains single neurons"
        elif path.startswith(unknown):
            reason = "in an FFN that slamkern does not know"
        elif not is_plain(module) or path.endswith(".base_layer"):
            reason = "no plain Linear (a subclass, a hook, an adapter)"
        elif module.in_features % MULTIPLE or module.out_features % MULTIPLE:
            reason = f"{module.out_features} x {module.in_features} are not multiples of {MULTIPLE}"
        elif module.weight is first:
            reason = "the first parameter, which tells where the model is"
        findings.append(Finding(path, module, reason))
    return findings


@contextmanager
def frozen_in_fp8(model: nn.Module, *, backend: str = "auto", keep_transposed: bool = True) -> Iterator[Quantized]:
    """Within the block the frozen Linears of the layers compute in FP8; yields what is quantized and what is not.

    Freeze the model first, and patch it first if it is to be patched. backend: of the quantization (see patch_model).
    keep_transposed: a second copy, so 2 bytes a value instead of 1, of weights above the lowest trained layer; without
    it every backward transposes them again.
    SlamkernError, with nothing changed, for a device or dtype without FP8 products and where nothing is frozen.
    """
    findings = find(model)
    chosen = [found for found in findings if found.reason is None]
    _check(findings, chosen)
    emulated = chosen[0].module.weight.device.type == "cpu"
    if emulated:
        log.warning("FP8 is emulated on this CPU: the same values, but slower than without")
    lowest = _lowest_trained_layer(model)
    originals: dict[Tensor, torch.device] = {}
    try:
        for found in chosen:
            weight = found.module.weight
            device = originals.setdefault(weight, weight.device)
            keep = keep_transposed and _layer(found.path) > lowest
            quantized = FP8Weight(weight.data.to(device), backend, keep_transposed=keep)
            extend(found.module, FP8Linear, slamkern_fp8=quantized)
            if device.type != "cpu":
                # Pinned: the copies there and back run at the rate of the bus.
                away = torch.empty(weight.shape, dtype=weight.dtype, device="cpu", pin_memory=True)
                weight.data = away.copy_(weight.data)
        yield _summary(chosen, findings, emulated)
    finally:
        for found in chosen:
            if isinstance(found.module, FP8Linear):
                restore(found.module, "slamkern_fp8")
        for weight, device in originals.items():
            weight.data = weight.data.to(device)


def _check(findings: list[Finding], chosen: list[Finding]) -> None:
    if not chosen:
        why = f"{findings[0].path}: {findings[0].reason}" if findings else "its layers have no Linear"
        raise SlamkernError(f"no frozen weight can be in FP8 ({why}); use frozen_precision 'model'")
    for found in chosen:
        weight = found.module.weight
        if isinstance(found.module, FP8Linear):
            raise SlamkernError(f"{found.path} is in FP8 already; quantize a model once")
        if reason := unavailable_reason(weight.device):
            raise SlamkernError(f"{reason}; use frozen_precision 'model'")
        if weight.device.type == "cuda" and weight.dtype != torch.bfloat16:
            raise SlamkernError(f"{found.path} is {weight.dtype}; on a GPU FP8 needs a model in bfloat16")


def _layer(path: str) -> int:
    """The number in a path, -1 outside of the layers."""
    return next((int(part) for part in path.split(".") if part.isdigit()), -1)


def _lowest_trained_layer(model: nn.Module) -> float:
    """No gradient passes a Linear below it, and hardly one in it; infinite where nothing is trained."""
    return min(map(_layer, trained_parameters(model)), default=math.inf)


def _summary(chosen: list[Finding], findings: list[Finding], emulated: bool) -> Quantized:
    weights: list[FP8Weight] = [found.module.slamkern_fp8 for found in chosen]  # type: ignore[misc]
    return Quantized(
        weights=len(chosen),
        elements=sum(weight.values.numel() for weight in weights),
        bytes=sum(tensor.nbytes for weight in weights for tensor in weight.tensors()),
        bytes_transposed=sum(weight.bytes_transposed for weight in weights),
        bytes_before=sum(found.module.weight.nbytes for found in chosen),
        emulated=emulated,
        skipped=tuple(found for found in findings if found.reason is not None),
    )
