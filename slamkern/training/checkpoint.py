"""What a training run writes: the trained tensors alone (a delta), and everything needed to go on exactly.

A delta is ``delta.safetensors`` (state_dict name -> tensor, in the dtype of the model; metadata: slamkern version,
model signature, base model) beside the ``selection.json`` it was trained with. Frozen weights are not in it. Where
single neurons were trained, ``<name>@neurons`` has their rows (or columns) and ``<name>@neurons.rows`` which they are.

A checkpoint is a folder ``checkpoint-<step>`` with a delta and ``training-state.safetensors``: AdamW's moments, float32
masters; metadata: step and run fingerprint. It is written under another name and renamed when complete, so a folder of
that name is always whole; the last two stay. Data and random numbers need no state: they follow from the step.
"""

import logging
import re
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from slamkern import distributed
from slamkern.errors import DamagedFileError, SlamkernError
from slamkern.files import TEMPORARY, atomic_folder, save_tensors
from slamkern.modules.finite import check_finite
from slamkern.modules.sharded import part_of
from slamkern.probe.stats import model_signature
from slamkern.schemas.training import DELTA, FORMAT, STATE, read_delta, read_state
from slamkern.selection.layers import LayerSelection
from slamkern.selection.trainable import trainable_tensors, trained_parameters
from slamkern.training.frozen import AXES, changed_weight, frozen_digests, other_base, trained_parts
from slamkern.training.names import plain_model, plain_names, renamed
from slamkern.training.optimizer import MasterAdamW
from slamkern.training.sharding import collect, is_sharded
from slamkern.version import __version__

log = logging.getLogger(__name__)

SELECTION = "selection.json"
KEPT = 2
NAMES = ("rows", "columns")  # of the neurons, in the first and second dimension of a weight


def save_delta(
    model: nn.Module,
    folder: str | Path,
    selection: LayerSelection | None = None,
    *,
    frozen: Mapping[str, str] | None = None,
) -> Path:
    """Write the tensors that require a gradient, and the selection where there is one; returns the delta's path.

    Names are those of the plain model, however ``model`` is wrapped; adapters that are frozen count as no part of it.
    frozen: the digests of the base model where they are known already (see ``frozen_digests``, ``trained_digests``);
    else those of the model's other weights. Each file is whole or absent, the delta last. Every process calls this for
    a sharded model; the main one writes.
    SlamkernError when nothing requires a gradient, or a value is not finite.
    """
    folder = Path(folder)
    if not (trained := trained_parameters(model)):
        raise SlamkernError("no parameter requires a gradient, so there is no delta; call apply_selection first")
    tensors, frozen = collect(trained), dict(frozen or frozen_digests(model, trained_parts(model)))
    names, config = plain_names(model), plain_model(model).config
    if not tensors:  # not the main process of a sharded model
        return folder / DELTA
    check_finite(tensors, "nothing was saved; lower learning_rate, or train in bfloat16 or float32")
    if selection is not None:
        selection.save(folder / SELECTION)
    metadata = {
        "slamkern_version": __version__,
        "format": FORMAT,
        "signature": model_signature(config),
        "base_model": str(getattr(config, "_name_or_path", "")),
        "frozen_weights": renamed({name: frozen[name] for name in frozen if name.partition("@")[0] in names}, names),
    }
    # Up and down name the same neurons; a safetensors file holds no shared storage.
    single = [entry for entry in trainable_tensors(model) if entry.neurons is not None]
    which = {f"{t.name}.{NAMES[AXES[t.projection]]}": t.neurons.clone() for t in single}  # type: ignore[union-attr]
    save_tensors(folder / DELTA, renamed(tensors | which, names), metadata)
    return folder / DELTA


@torch.no_grad()
def load_delta(model: nn.Module, folder: str | Path, *, frozen: Mapping[str, str] | None = None) -> list[str]:
    """Copy the tensors of a delta (its folder or the file) into the model it was trained on; returns their names in it.

    frozen: the digests of the model's other weights where they are known already. All is checked before the first
    tensor is copied. SlamkernError, naming the file, for one that is truncated, changed or foreign, for a delta of
    another model or of other weights of this one, and for a tensor of another name, shape or dtype, or with values that
    are not finite. Freeze flags are not touched.
    """
    path, stored, metadata = read_delta(folder)
    signature = model_signature(plain_model(model).config)
    if metadata.signature != signature:
        trained_on = f"{metadata.base_model or 'a model'} ({metadata.signature})"
        raise SlamkernError(f"{path} was trained on {trained_on}, this model is {signature}; load that base model")
    own = {plain: name for name, plain in plain_names(model).items()}
    tensors = renamed(stored, own)
    names = [name for name in tensors if not name.endswith(tuple(f"@neurons.{axis}" for axis in NAMES))]
    places = {name: _place(model, name, tensors, path) for name in names}
    for name, here in places.items():
        tensor = tensors[name]
        if here.shape != tensor.shape:
            raise SlamkernError(f"{path}: {name} is {tuple(tensor.shape)}, the model's is {tuple(here.shape)}")
        if here.dtype != tensor.dtype:
            wanted = str(tensor.dtype).removeprefix("torch.")
            raise SlamkernError(f"{path}: {name} is {wanted}, the model's is {here.dtype}; load the model as {wanted}")
    check_finite(tensors, f"{path} cannot be used")
    parts = {name.removesuffix("@neurons"): _neurons(name, tensors) for name in names}
    now = frozen or frozen_digests(model, parts)
    if changed := changed_weight(renamed(metadata.frozen_weights, own), now, parts):
        raise other_base(path, metadata, changed)
    for name, here in places.items():
        here.copy_(part_of(tensors[name], here))
    return list(places)


def _neurons(name: str, tensors: Mapping[str, Tensor]) -> tuple[int, Tensor] | None:
    """(dimension, indices) of the neurons that a tensor of a delta stands for; None for a whole weight."""
    found = [(axis, tensors[f"{name}.{word}"]) for axis, word in enumerate(NAMES) if f"{name}.{word}" in tensors]
    return found[0] if found else None


class _Part:
    """Some rows or columns of a weight, as a place to copy to."""

    def __init__(self, weight: Tensor, index: Tensor, axis: int) -> None:
        self.weight, self.index, self.axis, self.dtype = weight, index.to(weight.device), axis, weight.dtype
        self.shape = torch.Size(len(index) if dim == axis else size for dim, size in enumerate(weight.shape))

    def copy_(self, values: Tensor) -> None:
        self.weight.index_copy_(self.axis, self.index, values.to(self.weight.device))


def _place(model: nn.Module, name: str, tensors: Mapping[str, Tensor], path: Path) -> Tensor | _Part:
    """Where the model keeps a tensor of a delta: a parameter, or the part of one that single neurons have."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    whole, at, _ = name.partition("@neurons")
    if whole not in parameters:
        raise SlamkernError(f"{path}: the model has no tensor {whole}; load the base model of the delta")
    if not at:
        return parameters[name]
    axis, index = _neurons(name, tensors) or (0, torch.tensor([-1]))
    if index.min() < 0 or index.max() >= parameters[whole].shape[axis]:
        raise SlamkernError(f"{path}: the neurons of {whole} are not named or out of range; save the delta again")
    selected = {t.name: t for t in trainable_tensors(model) if t.neurons is not None}.get(name)
    if selected is None:
        return _Part(parameters[whole], index, axis)
    if not torch.equal(selected.neurons.cpu(), index):  # type: ignore[union-attr]
        raise SlamkernError(f"{path} has other neurons of {whole} than are selected; apply its own selection")
    return selected.parameter


def save_checkpoint(
    model: nn.Module,
    optimizer: MasterAdamW,
    out: Path,
    *,
    step: int,
    fingerprint: str,
    selection: LayerSelection | None = None,
    frozen: Mapping[str, str] | None = None,
) -> Path:
    """Write ``out/checkpoint-<step>`` as a whole or not at all, then drop all but the last two; returns the folder.

    fingerprint names the run, so that no other run resumes from it. OSError when the disk is full. The main process of
    a job writes; of a sharded model, all of them call this.
    """
    final, writes = out / f"checkpoint-{step}", distributed.is_main()
    if final.is_dir() or not (writes or is_sharded(model)):
        return final
    tensors = {f"optimizer/{name}": tensor for name, tensor in collect(optimizer.state_dict()).items()}
    with atomic_folder(final) if writes else nullcontext(final) as folder:
        save_delta(model, folder, selection, frozen=frozen)
        if not writes:
            return final
        check_finite(tensors, "nothing was saved; lower learning_rate")
        metadata = {"slamkern_version": __version__, "format": STATE, "step": step, "fingerprint": fingerprint}
        save_tensors(folder / f"{STATE}.safetensors", tensors, metadata)
    _drop_old(out)
    return final


def _drop_old(out: Path) -> None:
    """Leave the last checkpoints only. Each loses its name first: one that is half gone must not look whole."""
    for old in list_checkpoints(out)[:-KEPT]:
        shutil.rmtree(old.rename(out / f".{old.name}{TEMPORARY}"))


def list_checkpoints(out: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first; each is complete, for it got its name last."""
    steps = {int(found[1]): path for path in out.glob("*") if (found := re.fullmatch(r"checkpoint-(\d+)", path.name))}
    return [steps[step] for step in sorted(steps)]


def restore_checkpoint(
    folder: Path, model: nn.Module, optimizer: MasterAdamW, *, fingerprint: str, frozen: Mapping[str, str] | None = None
) -> int:
    """Put trained weights and optimizer back; returns the number of steps done.

    SlamkernError for a damaged checkpoint, one of another run, and one of other trained tensors.
    """
    tensors, metadata = read_state(folder / f"{STATE}.safetensors")
    if metadata.fingerprint != fingerprint:
        raise SlamkernError(f"{folder} belongs to another run; choose another output folder")
    optimizer.load_state_dict({name.removeprefix("optimizer/"): tensor for name, tensor in tensors.items()})
    loaded = load_delta(model, folder, frozen=frozen)
    if set(loaded) != set(optimizer.parameters):
        odd = sorted(set(loaded) ^ set(optimizer.parameters))[0]
        raise SlamkernError(f"{folder} and this model do not train the same tensors (first difference: {odd})")
    return metadata.step


def restore_newest(
    out: Path, model: nn.Module, optimizer: MasterAdamW, *, fingerprint: str, frozen: Mapping[str, str] | None = None
) -> int:
    """:func:`restore_checkpoint` of the newest checkpoint in ``out`` that is not damaged; damaged ones are removed.

    DamagedFileError where all of them are. Every process of a job reads the one that the main process chose.
    """
    step = distributed.on_main(lambda: _restore_newest(out, model, optimizer, fingerprint, frozen))
    if not distributed.is_main():
        restore_checkpoint(out / f"checkpoint-{step}", model, optimizer, fingerprint=fingerprint, frozen=frozen)
    return step


def _restore_newest(
    out: Path, model: nn.Module, optimizer: MasterAdamW, fingerprint: str, frozen: Mapping[str, str] | None
) -> int:
    damaged: list[Path] = []
    for folder in reversed(list_checkpoints(out)):
        try:
            step = restore_checkpoint(folder, model, optimizer, fingerprint=fingerprint, frozen=frozen)
        except DamagedFileError as error:
            damaged.append(folder)
            log.warning("%s; going back to the checkpoint before", error)
            continue
        for folder in damaged:
            shutil.rmtree(folder)
        _drop_old(out)  # a run that was killed between a save and this has one too many
        return step
    raise DamagedFileError(f"no checkpoint in {out} can be read; remove them to start again")
