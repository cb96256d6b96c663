"""torch.compile around each decoder layer of a model for as long as it trains.

Layer by layer, so that layers of one kind share their programs and compiling takes as long for 32 of them as for two;
with dynamic shapes, because packed rows differ in length. Losses and gradients are those of the layers themselves.

Two things stay outside of the programs: packed attention where it goes sequence by sequence, and FFNs that compute gate
and up again in the backward. A compiler sees the same product twice there and keeps the first.
"""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from slamkern.errors import SlamkernError
from slamkern.modules.ffn import Fused
from slamkern.modules.fp8_linear import quantised_modules
from slamkern.modules.patch import fused_ffns

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Programs of a layer: above, at and below the lowest trained one, trained or not, the last FFN on some rows, with and
# without gradients, in training and evaluation. torch's own limit of 8 would leave some of them uncompiled.
_PROGRAMS = 64


@contextmanager
def compiled_layers(model: "PreTrainedModel") -> Iterator[None]:
    """Within the block the decoder layers of ``model`` run compiled; what was compiled is kept for the next block.

    Programs are made at the first forward and backward (a minute or so). SlamkernError: single neurons are trained,
    statistics are recorded, weights are in FP8, a layer is compiled already, or torch.compile finds no compiler.
    """
    layers = _layers(model)
    for ffn in fused_ffns(model):
        if ffn.trained is not None:
            raise SlamkernError(f"{ffn.path} trains single neurons, which cannot be compiled; set compile=False")
        if ffn.recording is not None:
            raise SlamkernError(f"{ffn.path} records statistics, which cannot be compiled; set compile=False")
    if quantised_modules(model):
        raise SlamkernError("frozen weights are in FP8, which cannot be compiled; set compile=False")
    if any(layer._compiled_call_impl is not None for layer in layers):
        raise SlamkernError("the layers of this model are compiled already; set compile=False")
    if reason := why_not(model.device):
        raise SlamkernError(f"{reason}; set compile=False")
    with ExitStack() as stack:
        stack.enter_context(torch._dynamo.config.patch(recompile_limit=_PROGRAMS))
        # Programs on disk know an op by its name and would outlive a change of its arguments or shapes.
        tag = f"{torch.compiler.config.cache_key_tag} slamkern {_digest()}"
        stack.enter_context(torch.compiler.config.patch(cache_key_tag=tag))  # type: ignore[attr-defined]
        for module in model.modules():
            if isinstance(module, Fused) and module.slamkern_ffn.recompute:
                module.forward = torch.compiler.disable(module.forward)
                stack.callback(delattr, module, "forward")
        for layer in layers:
            layer.compile(dynamic=True)
            stack.callback(setattr, layer, "_compiled_call_impl", None)
        yield


def _digest() -> str:
    """A hash of this package's source, the registrations of its ops among it."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].glob("**/*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _layers(model: "PreTrainedModel") -> list[nn.Module]:
    count = model.config.get_text_config().num_hidden_layers
    stacks = [m for m in model.get_decoder().modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not stacks:
        raise SlamkernError(f"{type(model).__name__} has no list of {count} decoder layers to compile")
    return [layer for stack in stacks for layer in stack]


def why_not(device: torch.device) -> str | None:
    """None where torch.compile works on ``device``, else the reason; tried out, on a program of one addition.

    A missing compiler would otherwise show in the middle of the first step, as an error of many lines.
    """
    try:
        torch.compile(_increment)(torch.zeros(2, device=device))
    except Exception as error:  # whatever a toolchain may do wrong
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return f"torch.compile does not work on {device}: {reason}"
    return None


def _increment(x: torch.Tensor) -> torch.Tensor:
    return x + 1
