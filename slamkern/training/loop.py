"""The training loop: translation pairs in, the tensors that require a gradient fine-tuned, everything else untouched.

One step: the summed loss of ``gradient_accumulation_steps`` micro-batches, each a row of up to ``tokens_per_batch``
packed tokens, divided by the supervised tokens of the whole step, so that how a step is cut into micro-batches does not
matter; clipping by global norm; AdamW on float32 masters; the learning-rate schedule. Only response tokens are
supervised.

Several processes (``slamkern.distributed``) each hold the whole model and compute a share of every step; they sum the
gradients of the trained tensors once a step and make the same update: that of one process, to rounding.

Files in ``output_dir``, written by the main process: see ``run_log``. A killed run that is resumed ends bitwise where
the unbroken one ends (on a CPU, with the same number of processes).
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from slamkern import distributed
from slamkern.data.pairs import Pair
from slamkern.data.tokenization import render_sample
from slamkern.digests import state_digest
from slamkern.errors import SlamkernError
from slamkern.progress import Progress, progress_bar
from slamkern.run_folder import RunFolder
from slamkern.schemas.training import read_delta
from slamkern.selection.layers import LayerSelection
from slamkern.selection.trainable import trained_parameters
from slamkern.training.accumulate import Accumulator, peak_memory, reset_peak_memory
from slamkern.training.batches import TrainingData, deal, mean_loss, positions, step_seed, supervised_tokens
from slamkern.training.checkpoint import list_checkpoints, load_delta, restore_newest, save_checkpoint, save_delta
from slamkern.training.checks import check_model
from slamkern.training.config import TrainConfig, TrainResult
from slamkern.training.frozen import frozen_digests, trained_digests, trained_parts
from slamkern.training.interrupt import GracefulInterrupt
from slamkern.training.loss import Head
from slamkern.training.optimizer import MasterAdamW, learning_rate
from slamkern.training.preparation import prepared
from slamkern.training.run_log import KIND, RESULTS, RunLog, Step, claim_run, restore_freeze, run_settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["TrainConfig", "TrainResult", "train"]

log = logging.getLogger(__name__)


def train(
    model: "PreTrainedModel",
    tokenizer: Any,
    pairs: Sequence[Pair],
    config: TrainConfig | None = None,
    *,
    selection: LayerSelection | None = None,
    resume: bool = False,
    held_out: Sequence[Pair] | None = None,
    progress: bool = True,
) -> TrainResult:
    """Fine-tune exactly the parameters that require a gradient (see ``apply_selection``) on translating ``pairs``.

    selection: saved beside the delta; it must be the one that was applied. resume: go on in ``config.output_dir``
    where the run stopped, or start if it never began.
    held_out: pairs to measure before and after. The random state of the caller and the model's mode are kept. Every
    process of a job calls this, with the same arguments.

    SlamkernError: nothing to train, nothing to train on, a folder of another run, a loss that is not finite (before
    the weights change), or not enough memory. KeyboardInterrupt after Ctrl-C, SystemExit (143, 129) after SIGTERM and
    SIGHUP: at the end of the step, after saving a checkpoint where there is a folder.
    """
    config = config or TrainConfig()
    out = None if config.output_dir is None else Path(config.output_dir)
    if resume and out is None:
        raise SlamkernError("resume=True needs output_dir, the folder of the run to go on with")
    if config.report_to == "tensorboard" and out is None:
        raise SlamkernError("report_to tensorboard needs output_dir, the folder to write its events to")
    with ExitStack() as stack:
        folder = None if out is None else stack.enter_context(RunFolder(out, KIND, results=RESULTS))
        if folder is not None and resume and folder.began and "trained" in folder.settings:
            restore_freeze(model, folder.settings["trained"], folder.path)
        check_model(model, selection, config)
        data = TrainingData.of(model, tokenizer, pairs, held_out, config)
        trained = trained_parts(model)
        frozen = frozen_digests(model, trained)
        run = _claim(model, folder, data, config, frozen, resume=resume)
        run.write_samples([render_sample(example, tokenizer) for example in data.examples[:3]])
        if out is not None and run.finished:
            log.info("%s is finished; loading its result", out)
            load_delta(model, out, frozen=frozen)
            run.go_back_to(len(data.steps))
        else:
            base = {**frozen, **trained_digests(model, trained)}
            head, optimizer = stack.enter_context(prepared(model, data, config))
            training = _Training(model, data, config, run, out, selection, frozen, base, head, optimizer)
            training.run_to_the_end(progress=progress)
    return TrainResult.of(model, run.rows, run.held_out, out)


def _claim(
    model: "PreTrainedModel",
    folder: RunFolder | None,
    data: TrainingData,
    config: TrainConfig,
    frozen: Mapping[str, str],
    *,
    resume: bool,
) -> RunLog:
    """The log of this run, in its folder where it has one, which no other run may have begun."""
    settings = run_settings(model, data.examples, data.held_out, asdict(config), frozen)
    notes = {
        "base_model": str(getattr(model.config, "_name_or_path", "")),
        "examples": len(data.examples),
        "steps": len(data.steps),
    }
    if distributed.world_size() > 1:
        distributed.require_equal({**settings, "trained_weights": state_digest(trained_parameters(model))})
    return RunLog(None, settings) if folder is None else claim_run(folder, settings, notes, resume=resume)


@dataclass
class _Training:
    """A run at work: what its steps need."""

    model: "PreTrainedModel"
    data: TrainingData
    config: TrainConfig
    run: RunLog
    out: Path | None
    selection: LayerSelection | None
    frozen: Mapping[str, str]
    base: Mapping[str, str]
    head: Head | None
    optimizer: MasterAdamW

    def run_to_the_end(self, *, progress: bool) -> None:
        """All steps that are still to be taken, and the result."""
        start, total = self._go_back(), len(self.data.steps)
        with ExitStack() as stack:
            show = self.config.report_to == "tensorboard" and distributed.is_main()
            board = stack.enter_context(self.run.tensorboard()) if show else None
            if start == 0:
                self._measure_held_out("before")
            reset_peak_memory(self.model)
            bar = progress_bar(total=total, initial=start, desc="train", unit="step", show=progress)
            stack.enter_context(bar)
            accumulator = Accumulator(self.model, self.head, self.optimizer, self.config)
            stack.callback(accumulator.close)
            stop = stack.enter_context(GracefulInterrupt())
            saved = time.monotonic()
            for done in range(start, total):
                started = time.perf_counter()
                step = self._step(done, accumulator)
                due = self.config.save_steps is not None and (done + 1) % self.config.save_steps == 0
                due |= self.config.save_minutes > 0 and time.monotonic() - saved >= 60 * self.config.save_minutes
                save_now, stopping, memory = distributed.largest(due, stop.requested, peak_memory(self.model))
                row = step.row(done + 1, time.perf_counter() - started, memory)
                self.run.append(row)
                self._show(row, bar, board)
                if self.out is not None and (save_now or stopping):
                    saved = time.monotonic()
                    self._save(self.out, done + 1)
                if stopping:
                    where = "without output_dir, nothing is saved"
                    if self.out is not None:
                        where = f"saved in {self.out}; go on with resume=True"
                    raise stop.error(f"stopped after step {done + 1} of {total}: {where}")
            accumulator.close()
            self._measure_held_out("after")
            self._save_result()

    def _go_back(self) -> int:
        """How many steps are done: those of the newest checkpoint, from which the run goes on."""
        out, start = self.out, 0
        if out is not None and distributed.on_main(lambda: bool(list_checkpoints(out))):
            made = self.run.fingerprint
            start = restore_newest(out, self.model, self.optimizer, fingerprint=made, frozen=self.frozen)
            self.base = read_delta(out / f"checkpoint-{start}")[2].frozen_weights  # the model may hold trained ones
            log.info("resuming after step %d of %d", start, len(self.data.steps))
        self.run.go_back_to(start)
        return start

    def _measure_held_out(self, when: str) -> None:
        if self.data.held_out is None:
            return
        packing, tokens = self.config.packing, self.config.tokens_per_batch
        loss = mean_loss(self.model, self.data.held_out, head=self.head, packing=packing, tokens_per_batch=tokens)
        self.run.note_held_out(when, loss)

    def _step(self, done: int, accumulator: Accumulator) -> Step:
        """Step number ``done + 1``: gradients of this process' share, summed over all, clipped, applied."""
        config = self.config
        torch.manual_seed(step_seed(config.seed, done, distributed.rank()))
        batches = self.data.batches(done)
        supervised = sum(supervised_tokens(batch) for batch in batches)
        shares = deal(batches, distributed.world_size(), config.tokens_per_batch, even=config.fsdp)
        mine = shares[distributed.rank()]
        rate = learning_rate(
            done, len(self.data.steps), config.learning_rate, config.warmup_steps, config.lr_scheduler_type
        )
        total = accumulator.backward(mine, supervised)
        if mine and (missing := self.optimizer.without_gradient()):
            raise SlamkernError(f"the loss does not depend on {missing[0]}, so it cannot be trained; freeze it")
        distributed.sum_([total] if config.fsdp else [*self.optimizer.gradients(), total])  # fsdp: in the backward
        norms = self.optimizer.clip(config.max_grad_norm).to(total)
        loss, norm = torch.stack((total, norms)).tolist()  # the one wait for the device in a step
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise SlamkernError(
                f"step {done + 1}: loss {loss}, gradient norm {norm}; stopped before the weights changed"
                f" (last checkpoint: {self.run.latest_checkpoint() or 'none'}). Lower learning_rate,"
                f" now {rate:g}, or look for NaN in the model's weights"
            )
        self.optimizer.step(rate)
        tokens = sum(len(example.input_ids) for batch in batches for example in batch)
        computed = sum(positions(part, config) for own in shares for part in own)
        return Step(loss, rate, norm, tokens, supervised, computed)

    def _show(self, row: Mapping[str, Any], bar: Progress, board: Any) -> None:
        """A step on the progress bar, and every so often in the log and on TensorBoard."""
        bar.set_postfix(loss=f"{row['loss']:.3f}", refresh=False)
        bar.update()
        step, total = row["step"], len(self.data.steps)
        if step % self.config.logging_steps == 0 or step == total:
            log.info("step %d/%d loss %.4f, %.0f tokens/s", step, total, row["loss"], row["tokens_per_second"])
            if board is not None:
                for name in ("loss", "lr", "grad_norm", "tokens_per_second"):
                    board.add_scalar(name, row[name], step)

    def _save(self, out: Path, step: int) -> None:
        """A checkpoint, behind a log that is on disk."""
        self.run.sync()
        save_checkpoint(
            self.model, self.optimizer, out,
            step=step, fingerprint=self.run.fingerprint, selection=self.selection, frozen=self.base,
        )  # fmt: skip

    def _save_result(self) -> None:
        if self.out is None:
            return
        self.run.sync()
        self.run.note_files(selection=self.selection is not None)
        if distributed.is_main() or self.config.fsdp:
            save_delta(self.model, self.out, self.selection, frozen=self.base)
        distributed.wait()
