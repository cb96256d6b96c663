"""ctypes binding of the compiled ops of csrc: the same functions with the same signatures as reference.py.

``slamkern/_native.so`` runs on CPU tensors, with torch's own number of threads; ``slamkern/_native_cuda.so`` on CUDA
tensors, on torch's current stream, where Triton is not or nothing may be compiled at run time. Both are built
with the package where a compiler is found, neither knows torch.
float32, bfloat16 and float16; matrices are (tokens, neurons) with contiguous neurons and any distance between rows.
csrc has the ops of an FFN alone; norms, FP8 and an FFN of ReLU squared are those of plain torch here.

Not here: the choice of backend and autograd (glu.py).
"""

import ctypes
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from slamkern.errors import SlamkernError
from slamkern.kernels import ACTIVATIONS, OBSERVABLES
from slamkern.ops import reference
from slamkern.ops.moments import StatsTensors, merge_moments_
from slamkern.ops.reference import quantize_rows, rms_norm, rms_norm_backward

__all__ = [
    "instruction_set",
    "plan_rows",
    "quantize_rows",
    "rms_norm",
    "rms_norm_backward",
    "swiglu",
    "swiglu_backward",
    "swiglu_stats",
    "unavailable_reason",
]

_ABI = 1  # SLAMKERN_ABI in csrc/slamkern.h
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_ACTIVATIONS = {name: number for number, name in enumerate(ACTIVATIONS) if name != "relu2"}
_OBSERVABLES = {name: number for number, name in enumerate(OBSERVABLES)}
_FILES = {"cpu": "_native.so", "cuda": "_native_cuda.so"}
_NEEDS = {"cpu": "a C++17 compiler", "cuda": "nvcc"}

_P, _L, _I = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_SIGNATURES = {
    "slamkern_abi": ([], _I),
    "slamkern_isa": ([], ctypes.c_char_p),
    "slamkern_swiglu": ([_P, _L] * 3 + [_L, _L, _I, _I, _I, _P], _I),
    "slamkern_stats_workspace": ([_L, _L, _L], _L),
    "slamkern_swiglu_stats": ([_P, _L] * 3 + [_P, _L, _L, _L, _I, _I, _I] + [_P] * 5 + [_I, _P], _I),
    "slamkern_swiglu_backward": ([_P, _L] * 3 + [_P, _P, _P, _L, _L, _I, _I, _I, _P], _I),
}
_CUDA_SIGNATURES = {"slamkern_stats_plan": ([_P, _L, _L, _P, _P, _P], _I)}


@functools.cache
def load(path: Path) -> ctypes.CDLL | str:
    """The library at ``path`` with its signatures declared, or why it cannot be used."""
    if not path.exists():
        needs = _NEEDS["cuda" if path.name == _FILES["cuda"] else "cpu"]
        return f"{path.name} was not built: {needs} was missing when slamkern was installed; install it, then slamkern"
    try:
        library = ctypes.CDLL(str(path))
        declared = _SIGNATURES | (_CUDA_SIGNATURES if path.name == _FILES["cuda"] else {})
        for name, (arguments, result) in declared.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, result
    except (OSError, AttributeError) as error:
        return f"{path.name} cannot be loaded: {error}"
    if (abi := library.slamkern_abi()) != _ABI:
        return f"{path.name} is of another version (ABI {abi}, expected {_ABI}): reinstall slamkern"
    return library


def unavailable_reason(device_type: str = "cpu") -> str | None:
    """None where the compiled ops can run on ``device_type`` ("cpu", "cuda"), else the reason in one line."""
    if device_type not in _FILES:
        return f"csrc has no code for {device_type!r} devices"
    if device_type == "cuda" and not torch.cuda.is_available():
        return "torch sees no CUDA device"
    library = load(Path(__file__).parents[1] / _FILES[device_type])
    return library if isinstance(library, str) else None


def instruction_set(device_type: str = "cpu") -> str:
    """What the library runs here: "avx512", "avx2", "baseline" or "cuda"."""
    return str(_library(device_type).slamkern_isa().decode())


@functools.cache
def _library(device_type: str) -> ctypes.CDLL:
    if reason := unavailable_reason(device_type):
        raise SlamkernError(f"backend 'native' cannot run on {device_type}: {reason}")
    library = load(Path(__file__).parents[1] / _FILES[device_type])
    assert not isinstance(library, str)
    return library


def _dtype(gate: Tensor) -> int:
    code = _DTYPES.get(gate.dtype)
    if code is None:
        raise SlamkernError(f"backend 'native' computes float32, bfloat16 and float16, not {gate.dtype}")
    return code


def _rows(matrix: Tensor | None) -> tuple[int | None, int]:
    """Address and row stride, after making sure that what C will read is there."""
    if matrix is None:
        return None, 0
    stride, step = matrix.stride()
    if step != 1 and matrix.shape[1] > 1:
        raise SlamkernError(f"neurons lie {step} elements apart; backend 'native' reads contiguous rows")
    return matrix.data_ptr(), stride


def _run(gate: Tensor, function: Callable[..., int], *arguments: object) -> None:
    if gate.is_cuda:
        _launch(gate.device, function, *arguments, 0)
    else:
        function(*arguments, torch.get_num_threads(), None)


def _launch(device: torch.device, function: Callable[..., int], *arguments: object) -> None:
    with torch.cuda.device(device):
        error = function(*arguments, torch.cuda.current_stream().cuda_stream)
    if error:
        raise RuntimeError(f"CUDA error {error} while launching a kernel of slamkern/{_FILES['cuda']}")


def swiglu(gate: Tensor, up: Tensor | None, activation: str) -> Tensor:
    """``hidden = act_fn(gate) * up`` (``act_fn(gate)`` where ``up`` is None); all (tokens, neurons)."""
    if activation not in _ACTIVATIONS:
        return reference.swiglu(gate, up, activation)
    dtype, (tokens, neurons) = _dtype(gate), gate.shape
    hidden = gate.new_empty(gate.shape)  # contiguous, which empty_like of a slice is not
    function = _library(gate.device.type).slamkern_swiglu
    outputs = (hidden.data_ptr(), neurons)
    _run(gate, function, *_rows(gate), *_rows(up), *outputs, tokens, neurons, dtype, _ACTIVATIONS[activation])
    return hidden


def plan_rows(language_ids: Tensor, num_languages: int, neurons: int, device: torch.device) -> tuple[Tensor, ...]:
    """What :func:`swiglu_stats` of a batch needs to know of its ids, once for all layers; nothing on a CPU.

    On CUDA the count (languages,) int64, and the workspace with the tokens in the order of their language.
    """
    if device.type != "cuda":
        return ()
    library, tokens = _library(device.type), language_ids.shape[0]
    ids = language_ids.to(device, torch.int32).contiguous()
    count = torch.empty(num_languages, dtype=torch.int64, device=device)
    bytes_needed = library.slamkern_stats_workspace(tokens, neurons, num_languages)
    workspace = torch.empty(bytes_needed, dtype=torch.uint8, device=device)
    arguments = (ids.data_ptr(), tokens, num_languages, count.data_ptr(), workspace.data_ptr())
    _launch(device, library.slamkern_stats_plan, *arguments)
    return count, workspace


def swiglu_stats(
    gate: Tensor,
    up: Tensor | None,
    language_ids: Tensor,
    num_languages: int,
    activation: str,
    observe: str,
    into: StatsTensors | None = None,
    plan: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``hidden`` and the moments of the observed tensor: (hidden, count, mean, m2, active) as in reference.py.

    plan: :func:`plan_rows` of ``language_ids``; working memory in it is overwritten. Bitwise the same from run to run
    and for every number of threads.
    """
    if activation not in _ACTIVATIONS:
        return reference.swiglu_stats(gate, up, language_ids, num_languages, activation, observe, into, plan)
    dtype, (tokens, neurons), device = _dtype(gate), gate.shape, gate.device
    if language_ids.dtype != torch.int32 or language_ids.shape != (tokens,):
        raise SlamkernError(
            f"language_ids is {tuple(language_ids.shape)} {language_ids.dtype}; expected ({tokens},) int32"
        )
    library, ids = _library(device.type), language_ids.contiguous()
    hidden = gate.new_empty(gate.shape)  # contiguous, which empty_like of a slice is not
    # Outputs of an op may not share storage, so mean and m2 are two allocations.
    shape = (num_languages, neurons)
    mean, m2 = (torch.empty(shape, dtype=torch.float64, device=device) for _ in range(2))
    active = torch.empty(shape, dtype=torch.int64, device=device)
    if plan:
        count, workspace = plan
    else:
        count = torch.empty(num_languages, dtype=torch.int64, device=device)
        bytes_needed = library.slamkern_stats_workspace(tokens, neurons, num_languages)
        workspace = torch.empty(bytes_needed, dtype=torch.uint8, device=device)
    _run(
        gate,
        library.slamkern_swiglu_stats,
        *_rows(gate),
        *_rows(up),
        hidden.data_ptr(),
        neurons,
        None if plan else ids.data_ptr(),
        tokens,
        neurons,
        num_languages,
        dtype,
        _ACTIVATIONS[activation],
        _OBSERVABLES[observe],
        count.data_ptr(),
        mean.data_ptr(),
        m2.data_ptr(),
        active.data_ptr(),
        workspace.data_ptr(),
    )
    moments = (count, mean, m2, active)
    return hidden, *(moments if into is None else merge_moments_(into, moments))


def swiglu_backward(
    grad_hidden: Tensor, gate: Tensor, up: Tensor | None, activation: str, need_hidden: bool, need_gate: bool = True
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """``grad_gate`` unless declined, ``grad_up`` (None without ``up``) and, on request, ``hidden`` again; all fresh."""
    if activation not in _ACTIVATIONS:
        return reference.swiglu_backward(grad_hidden, gate, up, activation, need_hidden, need_gate)
    dtype, (tokens, neurons) = _dtype(gate), gate.shape
    grad_gate, grad_up, hidden = (
        gate.new_empty(gate.shape) if needed else None for needed in (need_gate, up is not None, need_hidden)
    )
    _run(
        gate,
        _library(gate.device.type).slamkern_swiglu_backward,
        *_rows(grad_hidden),
        *_rows(gate),
        *_rows(up),
        *(None if output is None else output.data_ptr() for output in (grad_gate, grad_up, hidden)),
        tokens,
        neurons,
        dtype,
        _ACTIVATIONS[activation],
    )
    return grad_gate, grad_up, hidden
