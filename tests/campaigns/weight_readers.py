"""Readers of statistics, selections and trained weights for the campaigns, and good examples; see ``readers``."""

import json
import shutil
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from campaigns.reader_files import CUT, checked, described, parts, put, tensors
from support.tiny_causal_lm import tiny_model

from slamkern.errors import SlamkernError
from slamkern.files import load_tensors
from slamkern.probe.stats import ActivationStats
from slamkern.selection.exchange import read_lape_mask
from slamkern.selection.layers import LayerSelection, select_layers
from slamkern.selection.trainable import apply_selection
from slamkern.training.checkpoint import restore_checkpoint, save_checkpoint
from slamkern.training.delta import read_change, revert_layers
from slamkern.training.frozen import frozen_digests, trained_parts
from slamkern.training.optimizer import MasterAdamW


def stats(data: bytes, folder: Path) -> None:
    found = ActivationStats.load(tensors(folder / "stats.safetensors", data))
    found.merge(found)
    select_layers(found, 1, bootstrap=2)


def selection(data: bytes, folder: Path) -> None:
    found = LayerSelection.load(checked(folder / "selection.json", data))
    apply_selection(tiny_model(), found)


def mask(data: bytes, folder: Path) -> None:
    read_lape_mask(put(folder / "mask", data), ["de"], mask_languages=["th", "de"])


@cache
def trained() -> tuple[Any, MasterAdamW, dict[str, str]]:
    model = tiny_model()
    apply_selection(model, LayerSelection((0,)))
    optimizer = MasterAdamW((n, p) for n, p in model.named_parameters() if p.requires_grad)
    for parameter in optimizer.parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(0.1)
    return model, optimizer, frozen_digests(model, trained_parts(model))


@cache
def untrained() -> Any:
    return tiny_model()


def checkpoint(data: bytes, folder: Path) -> None:
    state, delta = parts(data, 2)
    model, optimizer, frozen = trained()
    tensors(folder / "checkpoint-3" / "training-state.safetensors", state)
    tensors(folder / "checkpoint-3" / "delta.safetensors", delta)
    with torch.random.fork_rng():
        restore_checkpoint(folder / "checkpoint-3", model, optimizer, fingerprint="run", frozen=frozen)


def checkpoint_examples(run: Path) -> list[bytes]:
    model, optimizer, frozen = trained()
    made = save_checkpoint(
        model, optimizer, run / "made", step=3, fingerprint="run", selection=LayerSelection((0,)), frozen=frozen
    )
    return [described(made / "training-state.safetensors") + CUT + described(made / "delta.safetensors")]


def delta(data: bytes, folder: Path) -> None:
    path = tensors(folder / "delta" / "delta.safetensors", data)
    shutil.rmtree(folder / "out", ignore_errors=True)
    with suppress(SlamkernError):
        revert_layers(path.parent, [0], folder / "out")
    read_change(untrained(), [(path.parent, 1.0)])


def raw_tensors(data: bytes, folder: Path) -> None:
    load_tensors(put(folder / "raw.safetensors", data), "tensor")


def stats_examples(run: Path) -> list[bytes]:
    """Without groups of questions, and with one group that is the whole."""
    values = json.loads(described(run / "stats.safetensors"))
    plain = {name: entry for name, entry in values["tensors"].items() if not name.startswith("group_")}
    group = {
        f"group_{name}": [dtype, [1, *plain[name][1]], plain[name][2]]
        for name, dtype in (("count", "int64"), ("mean", "float32"), ("active", "int32"))
    }
    return [json.dumps({**values, "tensors": tensors}).encode() for tensors in (plain, plain | group)]


def mask_example(run: Path) -> list[bytes]:
    torch.save([[torch.tensor([3, 1]), torch.tensor([7])], [torch.tensor([1]), torch.tensor([2])]], run / "mask")
    return [(run / "mask").read_bytes()]
