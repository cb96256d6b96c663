"""Who computes an op: torch as one writes it, torch.compile, Liger-Kernel, and slamkern's backends; for whole FFNs
also Liger's LigerMLP and Transformer Engine's LayerNormMLP.

Every builder takes a provider's name and returns a function of tensors, or raises :class:`Absent` with the reason why
this provider cannot compute that here; the tables show the reason instead of a time. ``gate``, ``up``: (tokens,
neurons); ``x``: (tokens, hidden); ``w_gate``, ``w_up``: (neurons, hidden); ``w_down``: (hidden, neurons).
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slamkern import ops
from slamkern.modules import ffn_autograd
from slamkern.modules.rmsnorm import Norm, RMSNorm
from slamkern.ops.dispatch import backends, plan_rows
from slamkern.ops.glu import eager_swiglu_record
from slamkern.ops.moments import Moments

TORCH, COMPILE, LIGER = "torch", "torch.compile", "liger"
BACKENDS = ("reference", "native", "triton")
PROVIDERS = (TORCH, COMPILE, LIGER, *(f"slamkern {backend}" for backend in BACKENDS))
LIGER_MLP, ENGINE = "liger mlp", "transformer engine"  # of whole FFNs alone
# Products in the backward of a frozen FFN beyond the three of the gradient of its input: LigerMLP (0.8.5) computes the
# gradients of all three weights whether they are asked for or not; Transformer Engine asks (module/layernorm_mlp.py).
WASTED_PRODUCTS = {LIGER_MLP: 3}
# The package whose kernels a provider must launch on a GPU.
KERNELS = {LIGER: "liger_kernel", LIGER_MLP: "liger_kernel", "slamkern triton": "slamkern.kernels"}
EPS = 1e-5


class Absent(Exception):
    """Why a provider has no number here."""


def _backend(provider: str, device: torch.device) -> str:
    """The slamkern backend that a provider names."""
    backend = provider.removeprefix("slamkern ")
    reason = backends(device.type)[backend]
    if reason is not None:
        raise Absent(reason)
    return backend


def _require(package: str, name: str, device: torch.device) -> None:
    """Absent with the reason why another's kernels cannot run here, if so."""
    if device.type != "cuda":
        raise Absent(f"{name} needs a CUDA device")
    if importlib.util.find_spec(package) is None:
        raise Absent(f"{package} is not installed")


def _liger(device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    _require("liger_kernel", "Liger-Kernel", device)
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    return LigerSiLUMulFunction.apply


@functools.cache
def _compiled(function: Callable[..., Any], device_type: str) -> Callable[..., Any]:
    # CUDA: code for each shape, as in a training loop of fixed batches. On a CPU one compilation, a minute of a C++
    # compiler, has to serve all shapes; its loops are the same.
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(function, dynamic=device_type == "cpu")


def _silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def _hand_written_statistics(gate: Tensor, up: Tensor, ids: Tensor, languages: int) -> tuple[Tensor, ...]:
    """What one writes in a hook: sums, sums of squares and counts per language of ``silu(gate)``, by ``index_add``."""
    activated = F.silu(gate)
    wide = activated.float()
    zeros = wide.new_zeros(languages, wide.shape[1])
    sums = (zeros.index_add(0, ids, value) for value in (wide, wide * wide, (wide > 0).float()))
    return activated * up, *sums


def swiglu(provider: str, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """``hidden = silu(gate) * up``, differentiable."""
    if provider == TORCH:
        return _silu_mul
    if provider == COMPILE:
        return _compiled(_silu_mul, device.type)
    if provider == LIGER:
        return _liger(device)
    return functools.partial(ops.swiglu, backend=_backend(provider, device))


def swiglu_stats(
    provider: str, ids: Tensor, languages: int, neurons: int, dtype: torch.dtype
) -> Callable[[Tensor, Tensor], Any]:
    """``hidden`` of (gate, up) and statistics per language of ``silu(gate)``; ``ids`` (tokens,) int32.

    slamkern's are as a recorder asks for them in every layer: the plan is made, and moments in use are added to.
    """
    if provider == TORCH:
        return functools.partial(_hand_written_statistics, ids=ids, languages=languages)
    if provider == COMPILE:
        return functools.partial(_compiled(_hand_written_statistics, ids.device.type), ids=ids, languages=languages)
    if provider == LIGER:
        raise Absent("Liger-Kernel has no statistics")
    backend, moments = _backend(provider, ids.device), Moments.zeros(languages, neurons, ids.device).tensors
    plan = plan_rows(backend, ids, languages, neurons, ids.device, dtype)
    return lambda gate, up: eager_swiglu_record(gate, up, ids, moments, plan, "silu", "gate", backend)


def plan_of(provider: str, ids: Tensor, languages: int, neurons: int, dtype: torch.dtype) -> Callable[[], Any]:
    """What slamkern makes of ``ids`` once a batch for all layers."""
    if not provider.startswith("slamkern "):
        raise Absent("plans nothing")
    make = functools.partial(plan_rows, _backend(provider, ids.device), ids, languages, neurons, ids.device, dtype)
    if not make():
        raise Absent("plans nothing")
    return make


def gated_linear(
    provider: str, device: torch.device, statistics: Callable[[Tensor, Tensor], Any] | None = None
) -> Callable[[Tensor, Tensor, Tensor], Any]:
    """``silu(x @ w_gate.T) * (x @ w_up.T)`` of (x, w_gate, w_up), with ``statistics`` (:func:`swiglu_stats`) if given.

    slamkern's backends are torch's two GEMMs and then the fused op.
    """
    if statistics is None and provider == COMPILE:
        return _compiled(_gated_linear, device.type)
    combine = statistics or swiglu(provider, device)
    return lambda x, w_gate, w_up: combine(F.linear(x, w_gate), F.linear(x, w_up))


def _gated_linear(x: Tensor, w_gate: Tensor, w_up: Tensor) -> Tensor:
    return _silu_mul(F.linear(x, w_gate), F.linear(x, w_up))


def frozen_ffn(provider: str, device: torch.device) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """A whole FFN with frozen weights, of (x, w_gate, w_up, w_down); its backward computes the gradient of x alone."""
    if provider.startswith("slamkern "):
        return functools.partial(_fused_ffn, options=ffn_autograd.FFNOptions("silu", _backend(provider, device)))
    if provider == COMPILE:
        return _compiled(_ffn, device.type)
    if provider == LIGER_MLP:
        _require("liger_kernel", "Liger-Kernel", device)
        from liger_kernel.ops import LigerMLPFunction

        return lambda x, *weights: LigerMLPFunction.apply(x[None], *weights)[0]
    combine = swiglu(provider, device)
    return lambda x, w_gate, w_up, w_down: F.linear(combine(F.linear(x, w_gate), F.linear(x, w_up)), w_down)


def normed_ffn(provider: str, device: torch.device, norm: Tensor, *weights: Tensor) -> Callable[[Tensor], Tensor]:
    """A whole frozen FFN behind its RMS norm (``norm``: (hidden,), frozen too), of x: what Transformer Engine fuses."""
    if provider == ENGINE:
        return _engine_ffn(device, norm, *weights)
    normalize: Callable[..., Tensor] = functools.partial(F.rms_norm, normalized_shape=norm.shape, weight=norm, eps=EPS)
    if provider == COMPILE:
        normalize = _compiled(F.rms_norm, device.type)
        return lambda x: _compiled(_ffn, device.type)(normalize(x, norm.shape, norm, EPS), *weights)
    if provider in (LIGER, LIGER_MLP):
        _require("liger_kernel", "Liger-Kernel", device)
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction

        normalize = lambda x: LigerRMSNormFunction.apply(x, norm, EPS, 0.0, "llama", False)  # noqa: E731
    elif provider.startswith("slamkern "):
        own = Norm(EPS, "llama", _backend(provider, device))
        normalize = lambda x: RMSNorm.apply(x, norm, own)  # noqa: E731
    ffn = frozen_ffn(provider, device)
    return lambda x: ffn(normalize(x), *weights)


def _engine_ffn(device: torch.device, norm: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor) -> Any:
    _require("transformer_engine", "Transformer Engine", device)
    te: Any = importlib.import_module("transformer_engine.pytorch")
    hidden, neurons = norm.shape[0], w_gate.shape[0]
    module = te.LayerNormMLP(
        hidden, neurons, eps=EPS, bias=False, normalization="RMSNorm", activation="swiglu", params_dtype=norm.dtype,
        device=device,
    )  # fmt: skip
    with torch.no_grad():
        module.layer_norm_weight.copy_(norm)
        module.fc1_weight.copy_(torch.cat((w_gate, w_up)))  # the half that the activation is of comes first
        module.fc2_weight.copy_(w_down)
    return module.requires_grad_(False)


def _ffn(x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor) -> Tensor:
    return F.linear(_gated_linear(x, w_gate, w_up), w_down)


def _fused_ffn(x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor, options: ffn_autograd.FFNOptions) -> Tensor:
    absent = (None,) * 6  # three biases, trained rows and columns, their neurons
    return ffn_autograd.GatedFFN.apply(x, w_gate, w_up, w_down, *absent, options)
