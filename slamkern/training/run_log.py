"""The log of one training run and what makes it that run: what is logged, where to go on.

``run.json``       the record of the folder (see ``run_folder``): config, model, trained names, hashes of data and of
                   frozen weights. Their hash is the run's fingerprint.
``samples.txt``    three training examples as the model sees them.
``metrics.jsonl``  one line a step, with the hash of its values.
``held_out.json``  held-out loss before and after, where it was asked for.
``checkpoint-N/``  see ``checkpoint``.
``delta.safetensors``  the result; its presence means that the run is finished.

A folder belongs to one run from its first step on. Another run is refused, and so is a start from scratch over it.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from slamkern import distributed
from slamkern.data.token_table import TokenTable
from slamkern.digests import combined_digest
from slamkern.errors import SlamkernError
from slamkern.files import named_errors, read_checked, sealed, write_checked, write_text
from slamkern.probe.stats import model_signature
from slamkern.run_folder import RunFolder
from slamkern.schemas.training import DELTA, read_held_out, read_steps
from slamkern.selection.trainable import trained_parameters
from slamkern.training.checkpoint import list_checkpoints

log = logging.getLogger(__name__)

KIND = "training"
RESULTS = ("metrics.jsonl", "checkpoint-*", DELTA)
# These change what is written and shown, or what is computed twice, not the result.
WITHOUT_EFFECT = (
    "cuda_graphs",
    "fsdp",
    "logging_steps",
    "memory_budget",
    "output_dir",
    "on_oom",
    "report_to",
    "save_minutes",
    "save_steps",
)


@dataclass(frozen=True)
class Step:
    """What one step did, in all processes together; ``positions`` are those computed, padding included."""

    loss: float
    rate: float
    norm: float
    tokens: int
    supervised: int
    positions: int

    def row(self, number: int, seconds: float, memory: float) -> dict[str, Any]:
        """Its line of metrics.jsonl; memory: the peak so far, in bytes."""
        return {
            "step": number,
            "loss": self.loss,
            "lr": self.rate,
            "grad_norm": self.norm,
            "tokens": self.tokens,
            "supervised_tokens": self.supervised,
            "tokens_per_second": self.tokens / seconds,
            "peak_memory_bytes": int(memory),
            "padding_share": 1 - self.tokens / self.positions,
        }


@dataclass
class RunLog:
    """What one training run logs, in memory and in its folder (None: in memory only, as in all but the main process).

    ``settings`` are what makes two runs the same run; ``rows`` are the lines of metrics.jsonl; ``held_out`` is
    held_out.json.
    """

    path: Path | None
    settings: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    held_out: dict[str, float] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def finished(self) -> bool:
        return distributed.on_main(lambda: self.path is not None and (self.path / DELTA).exists())

    def latest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint."""
        found = distributed.on_main(lambda: list_checkpoints(self.path) if self.path is not None else [])
        return found[-1] if found else None

    def go_back_to(self, step: int) -> None:
        """Read back the log of the first ``step`` steps and drop what was logged after them."""
        self.rows, self.held_out = distributed.on_main(lambda: self._go_back_to(step))

    def _go_back_to(self, step: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
        if self.path is None:
            return self.rows, self.held_out
        path = self.path / "metrics.jsonl"
        rows = read_steps(path, step) if step else []
        held_out = self.held_out
        if step and (self.path / "held_out.json").exists():
            held_out = read_held_out(self.path / "held_out.json")
        if len(rows) != step:
            raise SlamkernError(f"{path} does not hold the steps 1 to {step}; the run cannot be resumed")
        if step:
            write_text(path, "".join(_line(row) for row in rows))
        else:
            path.unlink(missing_ok=True)
        return rows, held_out

    def append(self, row: dict[str, Any]) -> None:
        """Log one step."""
        self.rows.append(row)
        if self.path is None:
            return
        path = self.path / "metrics.jsonl"
        with named_errors(path), path.open("a", encoding="utf-8") as lines:
            lines.write(_line(row))

    def sync(self) -> None:
        """Put the log on disk: it must not be behind a checkpoint. Not in every step, where it costs milliseconds."""
        if self.path is not None and self.rows:
            with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as lines:
                os.fsync(lines.fileno())

    def note_held_out(self, when: str, loss: float) -> None:
        """Keep the held-out loss ``before`` or ``after`` training."""
        self.held_out[when] = loss
        if self.path is not None:
            write_checked(self.path / "held_out.json", self.held_out)

    def note_files(self, *, selection: bool) -> None:
        """Say in the record which files the finished run has beside its delta."""
        if self.path is not None:
            steps = [int(folder.name.partition("-")[2]) for folder in list_checkpoints(self.path)]
            record = self.path / "run.json"
            write_checked(record, read_checked(record) | {"checkpoints": steps, "selection": selection})

    def write_samples(self, samples: Sequence[str]) -> None:
        """Show and keep a few training examples as the model sees them."""
        text = "\n\n".join(samples)
        log.info("the first training examples:\n%s", text)
        if self.path is not None:
            write_text(self.path / "samples.txt", text + "\n")

    def tensorboard(self) -> Any:
        """A TensorBoard writer (a context manager) that goes on after the steps logged so far."""
        from torch.utils.tensorboard import SummaryWriter

        assert self.path is not None
        return SummaryWriter(str(self.path / "tensorboard"), purge_step=len(self.rows) + 1)


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(sealed(row)) + "\n"


def claim_run(folder: RunFolder, settings: Mapping[str, Any], notes: Mapping[str, Any], *, resume: bool) -> RunLog:
    """The log of a run in its folder. SlamkernError where another run is there, or any run unless resume is True."""
    if folder.began and not resume:
        raise SlamkernError(f"{folder.path} already holds a run; resume it (resume=True) or choose another folder")
    folder.claim(settings)
    folder.notes |= notes
    folder.save()
    return RunLog(folder.path if distributed.is_main() else None, folder.settings)


def run_settings(
    model: nn.Module,
    examples: TokenTable,
    held_out: TokenTable | None,
    config: Mapping[str, Any],
    frozen: Mapping[str, str],
) -> dict[str, Any]:
    """What must be equal for two runs to be the same run; call it with the freeze flags set.

    frozen: from ``frozen_digests``.
    """
    return {
        "config": {name: value for name, value in config.items() if name not in WITHOUT_EFFECT},
        "model": model_signature(model.config),
        "frozen_weights": combined_digest(frozen),
        "trained": list(trained_parameters(model)),
        "training_data": examples.digest,
        "held_out_data": None if held_out is None else held_out.digest,
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
