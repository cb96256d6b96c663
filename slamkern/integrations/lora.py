"""LoRA and selections: adapters on selected FFNs, a delta as an adapter of low rank, and an adapter as a delta.

    config = lora_config(model, selection, r=16)          # PEFT's LoraConfig for these layers and projections
    lost = delta_to_lora(model, "aligned", "adapter", 64)  # the share of the change that rank 64 leaves out
    lora_to_delta(model, "adapter", "folded")              # what load_delta takes

A change D of a weight is split by its singular values, D = U S V^T, and its R largest make the adapter: B = U sqrt(S),
A = sqrt(S) V^T, the best approximation of rank R (Eckart-Young). The share left out is |D - BA|^2 / |D|^2 (Frobenius).
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from slamkern.errors import SlamkernError
from slamkern.files import atomic_folder
from slamkern.modules.ffn_match import by_layer, find_ffns
from slamkern.reading import read_json
from slamkern.selection.layers import LayerSelection
from slamkern.selection.trainable import PROJECTIONS
from slamkern.training.checkpoint import save_delta
from slamkern.training.delta import read_change
from slamkern.training.names import plain_model

TASK = "CAUSAL_LM"


def lora_config(
    model: nn.Module,
    selection: LayerSelection | Sequence[int],
    projections: Sequence[str] = ("up", "down"),
    **options: Any,
) -> Any:
    """A ``peft.LoraConfig`` for ``projections`` of the selected layers, these modules and no others.

    options: of LoraConfig (``r``, ``lora_alpha`` ...). ``up`` of a fused gate_up weight is that weight, gate and all.
    SlamkernError for a layer or projection that the model does not have.
    """
    ffns = by_layer(find_ffns(plain_model(model)))
    layers = sorted(set(selection.layers if isinstance(selection, LayerSelection) else selection))
    if missing := [layer for layer in layers if layer not in ffns]:
        raise SlamkernError(f"no FFN that slamkern knows in layers {missing}; there is one in {sorted(ffns)}")
    targets = []
    for layer in layers:
        match = ffns[layer]
        for projection in projections:
            name = getattr(match.part, projection, None) if projection in PROJECTIONS else None
            if name is None:
                raise SlamkernError(f"{match.path} has no projection {projection!r}; known: {' '.join(PROJECTIONS)}")
            targets.append(f"{match.path}.{name}")
    return _peft().LoraConfig(target_modules=targets, task_type=TASK, **options)


@torch.no_grad()
def delta_to_lora(model: nn.Module, delta: str | Path, folder: str | Path, rank: int) -> float:
    """Write a delta as a LoRA adapter of this rank; returns the share of the change that it leaves out, 0 to 1.

    model: with the base weights, which it keeps. PEFT loads the adapter without slamkern. SlamkernError as
    `read_change` raises it, for a folder that exists, and for a rank below 1.
    """
    check_adapter(folder, rank)
    change = read_change(model, [(delta, 1.0)])
    tensors: dict[str, Tensor] = {}
    left = whole = 0.0
    transposed = False
    for name, difference in change.difference.items():
        path = name.removesuffix(".weight")
        if hasattr(model.get_submodule(path), "nf"):  # transformers' Conv1D keeps (in, out)
            difference, transposed = difference.T, True
        u, s, v = torch.linalg.svd(difference, full_matrices=False)
        root = s[:rank].sqrt()
        # A rank above that of the matrix is filled with zeros: every module of an adapter has the same.
        a, b = torch.zeros(rank, v.shape[1]), torch.zeros(u.shape[0], rank)
        a[: len(root)], b[:, : len(root)] = root[:, None] * v[:rank], u[:, :rank] * root
        tensors |= {f"base_model.model.{path}.lora_{part}.weight": x for part, x in (("A", a), ("B", b))}
        left, whole = left + float(s[rank:].square().sum()), whole + float(s.square().sum())
    config = _peft().LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(name.removesuffix(".weight") for name in change.difference),
        task_type=TASK,
        fan_in_fan_out=transposed,
        base_model_name_or_path=str(getattr(model.config, "_name_or_path", "")),
        inference_mode=True,
    )
    with atomic_folder(Path(folder)) as temporary:
        config.save_pretrained(temporary)
        save_file(tensors, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
    return left / whole if whole else 0.0


@torch.no_grad()
def lora_to_delta(model: nn.Module, adapter: str | Path, folder: str | Path) -> Path:
    """Write what a PEFT adapter of any kind that can be merged changes in ``model`` as a delta; returns its path.

    model: with the base weights, which it keeps; memory for a second one is needed meanwhile. adapter: a folder with
    adapter_config.json and adapter_model.safetensors. SlamkernError where PEFT cannot load it, where its weights are
    pickled, lacking, or of layers that the model does not have, and where it changes nothing.
    """
    check_folding(adapter, folder)
    peft = _peft()
    twin = copy.deepcopy(model)
    try:
        config = peft.PeftConfig.from_pretrained(str(adapter))
        config.inference_mode = True
        adapted = peft.PeftModel(twin, config)
        renamed = getattr(twin, "_checkpoint_conversion_mapping", {})
        found = adapted.load_adapter(str(adapter), "default", key_mapping=renamed)
        merged = adapted.merge_and_unload()
    except Exception as error:  # of any kind: PEFT and safetensors check little of what they are given
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise SlamkernError(f"{adapter} cannot be merged into this model: {reason}") from error
    for problem, names in (
        ("lacks weights of its configuration", found.missing_keys),
        ("holds weights that this model has no place for", found.unexpected_keys),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise SlamkernError(f"{adapter} {problem}: {', '.join(sorted(names)[:3])}{more}")
    base = dict(model.named_parameters())
    for name, parameter in merged.named_parameters():
        parameter.requires_grad_(not torch.equal(parameter, base[name]))
    return save_delta(merged, folder)


def check_adapter(folder: str | Path, rank: int) -> None:
    """What :func:`delta_to_lora` refuses before it needs a model."""
    if rank < 1:
        raise SlamkernError(f"the rank is {rank}; expected at least 1")
    _refuse_existing(folder)
    _peft()


def check_folding(adapter: str | Path, folder: str | Path) -> None:
    """What :func:`lora_to_delta` refuses before it needs a model."""
    _check_files(Path(adapter))
    _refuse_existing(folder)
    _peft()


def _check_files(folder: Path) -> None:
    """SlamkernError where PEFT would unpickle or wait for what is in the folder, or look for it on the hub."""
    if not (folder / "adapter_config.json").is_file():
        raise SlamkernError(f"{folder} holds no adapter_config.json; give the folder of a PEFT adapter")
    config = read_json(folder / "adapter_config.json")
    if not isinstance(config, dict):
        raise SlamkernError(f"{folder / 'adapter_config.json'} is {config!r:.80}; expected an object")
    weights, pickled = folder / "adapter_model.safetensors", folder / "adapter_model.bin"
    if not weights.exists() and pickled.exists():
        raise SlamkernError(f"the weights of {pickled} are pickled; save the adapter as safetensors")
    if not weights.is_file():
        raise SlamkernError(f"{weights} is no regular file" if weights.exists() else f"no file {weights}")


def _refuse_existing(folder: str | Path) -> None:
    if Path(folder).exists():
        raise SlamkernError(f"{folder} exists; choose another folder")


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise SlamkernError("LoRA needs the package peft: pip install peft") from error
    return peft
