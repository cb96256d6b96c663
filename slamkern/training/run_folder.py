"""The output folder of one training run: whose it is, what has been logged, where to go on.

``run.json``       what the run is: config, data hash, model, trained names. Its hash is the run's fingerprint.
``samples.txt``    three training examples as the model sees them.
``metrics.jsonl``  one line a step. ``held_out.json``  held-out loss before and after, where it was asked for.
``checkpoint-N/``  see ``checkpoint``.
``delta.safetensors``  the result; its presence means that the run is finished.

A folder belongs to one run from its first step on. Another run is refused, and so is a start from scratch over it.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from slamkern.data.packing import Example
from slamkern.errors import SlamkernError
from slamkern.files import write_json, write_text
from slamkern.probe.stats import model_signature
from slamkern.selection.trainable import trained_parameters
from slamkern.training.checkpoint import DELTA, list_checkpoints
from slamkern.version import __version__

log = logging.getLogger(__name__)

# What makes two runs the same run; the rest of run.json is for the reader. With the words of the refusal.
COMPARED = {
    "config": "configuration",
    "model": "model type or shape",
    "trained": "trained tensors",
    "data": "training data",
    "held_out": "held-out data",
    "frozen_weights": "frozen weights",
}
# These change what is written and shown, or what is computed twice, not the result.
WITHOUT_EFFECT = ("logging_steps", "memory_budget", "output_dir", "report_to", "save_steps")


@dataclass
class RunFolder:
    """A folder claimed by this run, or path None: the same log, kept in memory only.

    ``identity`` is run.json; ``rows`` are the lines of metrics.jsonl; ``held_out`` is held_out.json.
    """

    path: Path | None
    identity: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    held_out: dict[str, float] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        text = json.dumps({key: self.identity[key] for key in COMPARED}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def finished(self) -> bool:
        return self.path is not None and (self.path / DELTA).exists()

    def latest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint."""
        found = list_checkpoints(self.path) if self.path is not None else []
        return found[-1] if found else None

    def go_back_to(self, step: int) -> None:
        """Read back the log of the first ``step`` steps and drop what was logged after them."""
        if self.path is None:
            return
        path = self.path / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines()[:step] if path.exists() else []
        try:
            self.rows = [json.loads(line) for line in lines]
            if step and (self.path / "held_out.json").exists():
                self.held_out = json.loads((self.path / "held_out.json").read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise SlamkernError(f"the logs in {self.path} are damaged ({error}); the run cannot be resumed") from error
        if [row["step"] for row in self.rows] != list(range(1, step + 1)):
            raise SlamkernError(f"{path} does not hold the steps 1 to {step}; the run cannot be resumed")
        if step:
            write_text(path, "".join(line + "\n" for line in lines))
        else:
            path.unlink(missing_ok=True)

    def append(self, row: dict[str, Any]) -> None:
        """Log one step."""
        self.rows.append(row)
        if self.path is None:
            return
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row, allow_nan=False) + "\n")

    def sync(self) -> None:
        """Put the log on disk: it must not be behind a checkpoint. Not in every step, where it costs milliseconds."""
        if self.path is not None and self.rows:
            with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as lines:
                os.fsync(lines.fileno())

    def note_held_out(self, when: str, loss: float) -> None:
        """Keep the held-out loss ``before`` or ``after`` training."""
        self.held_out[when] = loss
        if self.path is not None:
            write_json(self.path / "held_out.json", self.held_out)

    def write_samples(self, samples: Sequence[str]) -> None:
        """Show and keep a few training examples as the model sees them."""
        text = "\n\n".join(samples)
        log.info("the first training examples:\n%s", text)
        if self.path is not None:
            write_text(self.path / "samples.txt", text + "\n")

    def tensorboard(self) -> Any:
        """A TensorBoard writer (a context manager) that goes on after the steps logged so far."""
        if self.path is None:
            raise SlamkernError("report_to tensorboard needs output_dir, the folder to write its events to")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise SlamkernError(
                "report_to tensorboard needs its package: pip install 'slamkern[tensorboard]'"
            ) from error
        return SummaryWriter(str(self.path / "tensorboard"), purge_step=len(self.rows) + 1)


def open_run(out: Path, identity: dict[str, Any], *, resume: bool) -> RunFolder:
    """Claim ``out`` for this run. SlamkernError where it holds another run, or any run unless resume is True."""
    if out.exists() and not out.is_dir():
        raise SlamkernError(f"{out} is a file; choose a folder for the output")
    run = RunFolder(out, identity)
    began = run.finished or bool(list_checkpoints(out)) or (out / "metrics.jsonl").exists()
    for stale in out.glob(".checkpoint-*.tmp"):  # a process killed while saving
        shutil.rmtree(stale)
    if not began:
        write_json(out / "run.json", identity)
        return run
    if not resume:
        raise SlamkernError(f"{out} already holds a run; resume it (resume=True) or choose another folder")
    if not (out / "run.json").exists():
        raise SlamkernError(f"{out} holds trained weights, but not of a run that can be resumed; choose another folder")
    difference = _difference(read_identity(out), identity)
    if difference is not None:
        raise SlamkernError(f"{out} holds another run: {difference}; choose another folder or use what that run used")
    return run


def read_identity(out: Path) -> dict[str, Any]:
    """The run.json of a folder."""
    try:
        identity = json.loads((out / "run.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise SlamkernError(f"{out}/run.json is not JSON ({error}); choose another folder") from error
    if not isinstance(identity, dict) or not set(COMPARED) <= set(identity):
        raise SlamkernError(f"{out}/run.json is not of a training run; choose another folder")
    return identity


def run_identity(
    model: nn.Module, examples: Sequence[Example], held_out: Sequence[Example], config: Mapping[str, Any]
) -> dict[str, Any]:
    """What must be equal for two runs to be the same run; call it with the freeze flags set."""
    return {
        "slamkern_version": __version__,
        "model": model_signature(model.config),
        "base_model": str(getattr(model.config, "_name_or_path", "")),
        "frozen_weights": _frozen_hash(model),
        "trained": list(trained_parameters(model)),
        "data": _data_hash(examples),
        "held_out": _data_hash(held_out),
        "examples": len(examples),
        "config": {name: value for name, value in config.items() if name not in WITHOUT_EFFECT},
    }


def restore_freeze(model: nn.Module, trained: Sequence[str], out: Path) -> None:
    """Before resuming: train exactly what the run trains.

    A model that nobody froze (everything requires a gradient) gets the run's flags; one that is frozen in another way
    is refused, for one of the two must be a mistake.
    """
    parameters = dict(model.named_parameters())
    now, saved = set(trained_parameters(model)), set(trained)
    if now == saved:
        return
    if not saved <= set(parameters):
        raise SlamkernError(
            f"the run in {out} trains {min(saved - set(parameters))}, which this model does not have;"
            " apply the selection of that run"
        )
    if now != set(parameters):
        odd = min(now ^ saved)
        state = "trained" if odd in saved else "frozen"
        raise SlamkernError(f"{odd} is {state} in the run in {out} but not now; apply the selection of that run")
    log.info("freezing all but the %d tensors that the run in %s trains", len(saved), out)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in saved)


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    for key in (*old["config"], *new["config"]):
        before, now = old["config"].get(key), new["config"].get(key)
        if json.dumps(before) != json.dumps(now):  # tuples become lists in JSON
            return f"its {key} is {before}, here it is {now}"
    for key, words in COMPARED.items():
        if key != "config" and old.get(key) != new[key]:
            return f"its {words} differ from the ones given"
    return None


def _data_hash(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((example.input_ids, example.labels)).encode())
    return digest.hexdigest()[:16]


def _frozen_hash(model: nn.Module) -> str:
    """Of the first values of each frozen tensor: tells base models apart without reading gigabytes."""
    digest = hashlib.sha256()
    trained = {name.removesuffix("@neurons") for name in trained_parameters(model)}
    for name, parameter in model.named_parameters():
        if name not in trained:
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
            digest.update(repr(parameter.detach().flatten()[:64].tolist()).encode())
    return digest.hexdigest()[:16]
