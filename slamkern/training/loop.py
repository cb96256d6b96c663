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
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from slamkern import distributed
from slamkern.data.packing import Example
from slamkern.data.pairs import Pair
from slamkern.data.tokenization import render_sample
from slamkern.digests import state_digest
from slamkern.errors import SlamkernError
from slamkern.modules.packed_attention import packed_attention
from slamkern.progress import progress_bar
from slamkern.run_folder import RunFolder
from slamkern.selection.layers import LayerSelection
from slamkern.selection.trainable import trained_parameters
from slamkern.training.accumulate import Accumulator, cuda_devices, peak_memory, reset_peak_memory
from slamkern.training.batches import StepPlan, deal, mean_loss, positions, step_seed, supervised_tokens, tokenize
from slamkern.training.checkpoint import (
    list_checkpoints,
    load_delta,
    restore_newest,
    save_checkpoint,
    save_delta,
)
from slamkern.training.checks import check_model
from slamkern.training.config import TrainConfig, TrainResult
from slamkern.training.fp8 import frozen_in_fp8
from slamkern.training.frozen import frozen_digests, trained_parts
from slamkern.training.interrupt import GracefulInterrupt
from slamkern.training.loss import describe_head, read_head
from slamkern.training.memory_budget import parse_bytes, within_budget
from slamkern.training.optimizer import MasterAdamW, learning_rate
from slamkern.training.run_log import KIND, RESULTS, RunLog, claim_run, restore_freeze, run_settings
from slamkern.training.sharding import shard

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
    with ExitStack() as stack:
        folder = None if out is None else stack.enter_context(RunFolder(out, KIND, results=RESULTS))
        if folder is not None and resume and folder.began and "trained" in folder.settings:
            restore_freeze(model, folder.settings["trained"], folder.path)
        check_model(model, selection, config)
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        examples = tokenize(pairs, tokenizer, config, context=context)
        unseen = tokenize(held_out, tokenizer, config, context=context) if held_out else None
        lengths = examples.lengths.tolist()
        steps = StepPlan(lengths, config)
        frozen = frozen_digests(model, trained_parts(model))
        settings = run_settings(model, examples, unseen, asdict(config), frozen)
        notes = {
            "base_model": str(getattr(model.config, "_name_or_path", "")),
            "examples": len(examples),
            "steps": len(steps),
        }
        if distributed.world_size() > 1:
            distributed.require_equal({**settings, "trained_weights": state_digest(trained_parameters(model))})
        run = RunLog(None, settings) if folder is None else claim_run(folder, settings, notes, resume=resume)
        run.write_samples([render_sample(example, tokenizer) for example in examples[:3]])
        if out is not None and run.finished:
            log.info("%s is finished; loading its result", out)
            load_delta(model, out, frozen=frozen)
            run.go_back_to(len(steps))
            return TrainResult.of(model, run.rows, run.held_out, out)

        if config.fsdp:
            shard(model)
        stack.enter_context(torch.random.fork_rng(devices=cuda_devices(model)))
        stack.callback(model.train, model.training)
        model.train()
        if config.packing:
            stack.enter_context(packed_attention(model))
        if config.gradient_checkpointing and not model.is_gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            stack.callback(model.gradient_checkpointing_disable)

        if config.frozen_precision == "fp8":
            # Copies for the backward only where memory is no concern.
            log.info(stack.enter_context(frozen_in_fp8(model, keep_transposed=config.memory_budget is None)))
        head = read_head(model)
        log.info(describe_head(head))
        offload = config.optimizer_offload
        if config.memory_budget is not None:
            budget = within_budget(
                model,
                max(sum(lengths[index] for index in batch) for step in steps for batch in step),
                parse_bytes(config.memory_budget),
                length=max(lengths),
                accumulation=config.gradient_accumulation_steps,
                head=head,
                offload=offload,
            )
            offload = stack.enter_context(budget).offload
        optimizer = MasterAdamW(
            trained_parameters(model).items(),
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
            offload=offload,
        )
        start = 0
        if out is not None and distributed.on_main(lambda: bool(list_checkpoints(out))):
            start = restore_newest(out, model, optimizer, fingerprint=run.fingerprint, frozen=frozen)
            log.info("resuming after step %d of %d", start, len(steps))
        run.go_back_to(start)
        show = config.report_to == "tensorboard" and distributed.is_main()
        board = stack.enter_context(run.tensorboard()) if show else None

        def held_out_loss(pairs: Sequence[Example]) -> float:
            return mean_loss(model, pairs, head=head, packing=config.packing, tokens_per_batch=config.tokens_per_batch)

        if unseen and start == 0:
            run.note_held_out("before", held_out_loss(unseen))

        reset_peak_memory(model)
        bar = stack.enter_context(
            progress_bar(total=len(steps), initial=start, desc="train", unit="step", show=progress)
        )
        accumulator = Accumulator(model, head, optimizer, config)
        stack.callback(accumulator.close)
        stop = stack.enter_context(GracefulInterrupt())
        saved = time.monotonic()
        for done in range(start, len(steps)):
            started = time.perf_counter()
            torch.manual_seed(step_seed(config.seed, done, distributed.rank()))
            batches = [[examples[index] for index in batch] for batch in steps[done]]
            supervised = sum(supervised_tokens(batch) for batch in batches)
            shares = deal(batches, distributed.world_size(), config.tokens_per_batch, even=config.fsdp)
            mine = shares[distributed.rank()]
            rate = learning_rate(done, len(steps), config.learning_rate, config.warmup_steps, config.lr_scheduler_type)
            total = accumulator.backward(mine, supervised)
            if mine and (missing := optimizer.without_gradient()):
                raise SlamkernError(f"the loss does not depend on {missing[0]}, so it cannot be trained; freeze it")
            distributed.sum_([total] if config.fsdp else [*optimizer.gradients(), total])  # fsdp: in the backward
            loss = float(total)  # device sync, once a step
            norm = optimizer.clip(config.max_grad_norm)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise SlamkernError(
                    f"step {done + 1}: loss {loss}, gradient norm {norm}; stopped before the weights changed"
                    f" (last checkpoint: {run.latest_checkpoint() or 'none'}). Lower learning_rate,"
                    f" now {rate:g}, or look for NaN in the model's weights"
                )
            optimizer.step(rate)

            due = config.save_steps is not None and (done + 1) % config.save_steps == 0
            due |= config.save_minutes > 0 and time.monotonic() - saved >= 60 * config.save_minutes
            save_now, stopping, memory = distributed.largest(due, stop.requested, peak_memory(model))
            tokens = sum(len(example.input_ids) for batch in batches for example in batch)
            computed = sum(positions(part, config) for own in shares for part in own)
            row = {
                "step": done + 1,
                "loss": loss,
                "lr": rate,
                "grad_norm": norm,
                "tokens": tokens,
                "supervised_tokens": supervised,
                "tokens_per_second": tokens / (time.perf_counter() - started),
                "peak_memory_bytes": int(memory),
                "padding_share": 1 - tokens / computed,
            }
            run.append(row)
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()
            if (done + 1) % config.logging_steps == 0 or done + 1 == len(steps):
                log.info("step %d/%d loss %.4f, %.0f tokens/s", done + 1, len(steps), loss, row["tokens_per_second"])
                if board is not None:
                    for name in ("loss", "lr", "grad_norm", "tokens_per_second"):
                        board.add_scalar(name, row[name], done + 1)
            if out is not None and (save_now or stopping):
                saved = time.monotonic()
                run.sync()
                save_checkpoint(
                    model, optimizer, out,
                    step=done + 1, fingerprint=run.fingerprint, selection=selection, frozen=frozen,
                )  # fmt: skip
            if stopping:
                where = (
                    f"saved in {out}; go on with resume=True"
                    if out is not None
                    else "without output_dir, nothing is saved"
                )
                raise stop.error(f"stopped after step {done + 1} of {len(steps)}: {where}")
        accumulator.close()
        if unseen:
            run.note_held_out("after", held_out_loss(unseen))
        if out is not None:
            run.sync()
            if distributed.is_main() or config.fsdp:
                save_delta(model, out, selection, frozen=frozen)
            distributed.wait()
    return TrainResult.of(model, run.rows, run.held_out, out)
