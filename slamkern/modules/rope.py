"""Rotary position embedding of a decoder's attention: found where it is called, run in one pass over queries and keys.

transformers writes it once a model file, as the module function ``apply_rotary_pos_emb(q, k, cos, sin)`` that the
forward of the attention class looks up: multiply, concatenate, multiply, add, of q and of k. Here one attention
*instance* gets a class whose forward is the same code with one other name in its globals, so nobody else's attention
changes. What else that file's globals hold is seen as it was when the model was patched.

A function is recognised by running it on random float32 and bfloat16 probes: what differs from the rotation of halves
(interleaved pairs, other arguments) stays as it is. Nothing is saved for the backward but ``cos`` and ``sin``, which
all layers share.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from slamkern.modules.surgery import Extended, extend, restore
from slamkern.ops import norm_rope_fp8, reference

NAME = "apply_rotary_pos_emb"
_PARAMETERS = ["q", "k", "cos", "sin", "unsqueeze_dim"]


@dataclass(frozen=True)
class Rotation:
    """What an ``apply_rotary_pos_emb`` does beside turning halves of heads.

    partial: leaves what cos is too short for. promotes: returns the wider dtype of q and cos, not that of q.
    """

    partial: bool
    promotes: bool


@dataclass(frozen=True)
class RotaryFinding:
    """An attention module that turns queries and keys: how, or the reason why it is left alone."""

    path: str
    module: nn.Module
    rotation: Rotation | None
    reason: str | None


@dataclass(frozen=True)
class RotaryOptions:
    """What is not a tensor: the dtype of the results, and the backend of the op."""

    dtype: torch.dtype
    backend: str


class Rotary(torch.autograd.Function):
    """q, k: (batch, heads, tokens, width) of one dtype; cos, sin: (batch or 1, tokens, rotated), without gradients."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, options: RotaryOptions
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        ctx.dtype, ctx.backend = q.dtype, options.backend
        return norm_rope_fp8.eager_rotary(q, k, cos, sin, False, options.dtype, options.backend)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_q: Tensor, grad_k: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        dq, dk = norm_rope_fp8.eager_rotary(grad_q, grad_k, cos, sin, True, ctx.dtype, ctx.backend)
        return dq, dk, None, None, None


class FusedRotary(Extended):
    """Base of the mixins of attention modules; each of them has its own forward, made by :func:`_mixin`."""

    slamkern_rotation: Rotation
    slamkern_rotary_backend: str


def fuse_rotary(module: nn.Module, rotation: Rotation, backend: str = "auto") -> None:
    """Extend the class of this one attention module with a forward that calls the fused rotation."""
    own = _forward(module)
    assert own is not None
    mixin = _mixin(own, own.__globals__[NAME], rotation, backend)
    extend(module, mixin, slamkern_rotation=rotation, slamkern_rotary_backend=backend)


def unfuse_rotary(module: FusedRotary) -> None:
    """Give the instance its own class back, as it was before :func:`fuse_rotary`."""
    restore(module, "slamkern_rotation", "slamkern_rotary_backend")


@functools.cache  # one class for all layers, so that what was compiled for one serves the next
def _mixin(own: FunctionType, rotate: Callable[..., Any], rotation: Rotation, backend: str) -> type[FusedRotary]:
    names = {**own.__globals__, NAME: _fused(rotate, rotation, backend)}
    # torch.compile looks globals up in the module of that name, where they are not these.
    del names["__name__"]
    forward = FunctionType(own.__code__, names, own.__name__, own.__defaults__, own.__closure__)
    forward.__kwdefaults__ = own.__kwdefaults__
    forward.__dict__.update(own.__dict__)
    forward.__qualname__, forward.__module__ = own.__qualname__, own.__module__
    forward.__doc__, forward.__annotations__ = own.__doc__, own.__annotations__
    return type("FusedRotary", (FusedRotary,), {"forward": forward, "__module__": __name__})


def _fused(rotate: Callable[..., Any], rotation: Rotation, backend: str) -> Callable[..., tuple[Tensor, Tensor]]:
    def apply_rotary_pos_emb(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
    ) -> tuple[Tensor, Tensor]:
        if not _was_probed(q, k, cos, sin, unsqueeze_dim, rotation):
            return rotate(q, k, cos, sin, unsqueeze_dim)
        dtype = torch.promote_types(q.dtype, cos.dtype) if rotation.promotes else q.dtype
        options = RotaryOptions(dtype, backend)
        if unsqueeze_dim == 1:
            return Rotary.apply(q, k, cos, sin, options)
        q, k = Rotary.apply(q.transpose(1, 2), k.transpose(1, 2), cos, sin, options)
        return q.transpose(1, 2), k.transpose(1, 2)

    return apply_rotary_pos_emb


def _was_probed(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int, rotation: Rotation) -> bool:
    """Whether a call is of the kind that :func:`_recognise` looked at; the module's own function does any other."""
    if not (q.dim() == k.dim() == 4 and cos.dim() == 3 and unsqueeze_dim in (1, 2)):
        return False
    tokens, rotated = q.shape[3 - unsqueeze_dim], cos.shape[2]
    return (
        q.dtype == k.dtype
        and cos.dtype == sin.dtype
        and q.device == k.device == cos.device == sin.device
        and k.shape[0] == q.shape[0]
        and k.shape[3 - unsqueeze_dim] == tokens
        and k.shape[3] == q.shape[3]
        and cos.shape == sin.shape
        and cos.shape[0] in (1, q.shape[0])
        and cos.shape[1] == tokens
        and rotated % 2 == 0
        and (rotated == q.shape[3] or (rotation.partial and rotated < q.shape[3]))
        and not (cos.requires_grad or sin.requires_grad)
    )


def find_rotaries(decoder: nn.Module, prefix: str = "") -> list[RotaryFinding]:
    """Every module of a decoder at path ``prefix`` whose forward calls its file's ``apply_rotary_pos_emb``."""
    findings = []
    for relative, module in decoder.named_modules():
        path = f"{prefix}.{relative}".strip(".")
        if isinstance(module, FusedRotary):
            findings.append(RotaryFinding(path, module, module.slamkern_rotation, None))
            continue
        code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
        if code is None or NAME not in code.co_names:
            continue
        forward = _forward(module)
        rotate = None if forward is None else forward.__globals__.get(NAME)
        rotation = None if rotate is None else _recognise(rotate)
        reason = None
        if forward is None:
            reason = f"the forward of {type(module).__name__} is wrapped"
        elif rotation is None:
            reason = f"{NAME} of {forward.__module__} does not rotate halves of q and k"
        findings.append(RotaryFinding(path, module, rotation, reason))
    return findings


def _forward(module: nn.Module) -> FunctionType | None:
    """The plain function that is the forward of a module; None where something is wrapped around it."""
    forward = type(module).forward
    plain = isinstance(forward, FunctionType) and not hasattr(forward, "__wrapped__")
    return forward if plain and "forward" not in module.__dict__ else None  # type: ignore[return-value]


@functools.cache
@torch.no_grad()
def _recognise(rotate: Callable[..., Any]) -> Rotation | None:
    """What ``rotate`` does, if it rotates halves of q and k (batch, heads, tokens, width)."""
    try:
        parameters = inspect.signature(rotate).parameters
    except (TypeError, ValueError):
        return None
    if list(parameters) != _PARAMETERS or parameters["unsqueeze_dim"].default != 1:
        return None
    single, half = torch.float32, torch.bfloat16
    if not all(_agrees(rotate, dtype, dtype, dtype, rotated=8) for dtype in (single, half)):
        return None
    promotes = _agrees(rotate, half, single, single, rotated=8)
    if not promotes and not _agrees(rotate, half, single, half, rotated=8):
        return None
    return Rotation(_agrees(rotate, single, single, single, rotated=4), promotes)


def _agrees(
    rotate: Callable[..., Any], dtype: torch.dtype, table: torch.dtype, result: torch.dtype, rotated: int
) -> bool:
    """Whether heads of width 8 in ``dtype`` and cos, sin in ``table`` give the rotation, as ``result``."""
    generator = torch.Generator().manual_seed(0)
    # Halves of cos and sin differ here, though they never do in a model: which is read where must agree too.
    shapes = ((2, 3, 5, 8), (2, 1, 5, 8), (2, 5, rotated), (2, 5, rotated))
    q, k, cos, sin = (torch.randn(shape, generator=generator, device="cpu") for shape in shapes)
    q, k, cos, sin = q.to(dtype), k.to(dtype), cos.to(table), sin.to(table)
    expected = reference.rotary(q.double(), k.double(), cos.double(), sin.double(), False, torch.float64)
    # Three roundings, of products of normal numbers of up to 4.
    tolerance = 16 * torch.finfo(dtype).eps
    for unsqueeze_dim in (1, 2):
        inputs = (q, k) if unsqueeze_dim == 1 else (q.transpose(1, 2), k.transpose(1, 2))
        try:
            actual = rotate(*inputs, cos, sin, unsqueeze_dim)
        except Exception:  # other shapes, another device, another meaning: not one of ours
            return False
        if not isinstance(actual, tuple) or len(actual) != 2:
            return False
        for y, truth in zip(actual, expected, strict=True):
            if not isinstance(y, Tensor) or y.dtype != result:
                return False
            y = y if unsqueeze_dim == 1 else y.transpose(1, 2)
            if y.shape != truth.shape or not torch.allclose(y.double(), truth, rtol=tolerance, atol=tolerance):
                return False
    return True
