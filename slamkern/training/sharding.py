"""The decoder layers of a model, sharded over the processes of a job (FSDP2): for models that fit no single GPU.

Each process keeps a part of every weight of the layers, in the dtype of the model, and gathers a layer's weights while
it computes it; gradients of trained weights are summed and split on the way back. So masters and moments of a trained
weight are parts too. Embeddings, the last norm and the output head stay whole in every process: they are 1.5 % of a
70B model. Accelerate shards on GPUs alone, whole modules and with an optimizer of its own; this is torch's
``fully_shard`` on what training needs. A model stays sharded.

Whatever gathers a weight has to be called by every process, in the same order (:func:`collect`).
"""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from slamkern import distributed
from slamkern.errors import SlamkernError
from slamkern.modules.sharded import is_part, whole
from slamkern.selection.trainable import trained_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def shard(model: "PreTrainedModel") -> None:
    """Shard the decoder layers of ``model``, once its trained weights are chosen, on the GPUs where there are some.

    SlamkernError for what is trained outside the layers, and a decoder without a list of them.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    decoder = model.get_decoder()
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise SlamkernError(f"fsdp shards decoder layers, and {type(decoder).__name__} has no list of them")
    inside = {id(parameter) for parameter in layers.parameters()}
    if odd := [name for name, parameter in trained_parameters(model).items() if id(parameter) not in inside]:
        raise SlamkernError(f"fsdp trains whole weights of decoder layers; train {odd[0]} without it")
    if is_sharded(model):
        raise SlamkernError("the model is sharded already; load it anew")
    outside = {parameter for parameter in model.parameters() if id(parameter) not in inside}
    device = torch.device("cuda", distributed.local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(decoder, mesh=mesh, ignored_params=outside)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # A sum: losses are divided by the tokens of all processes.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    for tensor in (*outside, *model.buffers()):
        tensor.data = tensor.data.to(device)
    # What it warns of, an in-place change of the decoder's output, nobody makes.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module", module="torch")


def is_sharded(model: nn.Module) -> bool:
    """Whether a weight of the model is in parts."""
    return any(map(is_part, model.parameters()))


def collect(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, whole; sharded ones in host memory, and in the main process alone."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if full is tensor:
            found[name] = tensor
        elif distributed.is_main():
            found[name] = full.detach().cpu()
    return found
