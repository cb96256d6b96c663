"""SLAM inside ``transformers.Trainer`` and TRL's ``SFTTrainer``: a callback that trains a selection and nothing else.

    trainer = SFTTrainer(model, ..., callbacks=[SlamCallback(selection)])

Freezing comes before the optimizer is made. A delta (the trained tensors and the selection) lies beside each of the
trainer's checkpoints and, at the end, in its output folder: ``slamkern.load_delta`` puts it into a fresh model.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from slamkern.digests import combined_digest
from slamkern.errors import SlamkernError
from slamkern.integrations.check import check_packing, says_it_packs
from slamkern.integrations.pace import Pace
from slamkern.selection.layers import LayerSelection
from slamkern.selection.trainable import apply_selection, total_parameters, trained_parameters
from slamkern.training.checkpoint import save_delta
from slamkern.training.frozen import frozen_digests, trained_parts
from slamkern.training.sharding import is_sharded

_log = logging.getLogger(__name__)
DELTA_FOLDER = "slamkern"  # in a checkpoint of the trainer
STATE = "slamkern"  # in its trainer_state.json: the one file of a resumed checkpoint that a callback is shown


class SlamCallback(TrainerCallback):
    """Trains ``projections`` of the layers of ``selection``; pass it to the trainer when that is made.

    Logs ``tokens_per_second`` (real tokens of all processes, over the time without evaluations and saves) and
    ``trained_share`` of the parameters beside the loss; they are in ``trainer.state.log_history`` too. A selection of
    single neurons needs a patched model.
    Refuses, in one line: a model with adapters, freeze flags or frozen weights that changed, a resumed checkpoint of
    another selection or without one, and a first batch whose packed sequences see each other.
    """

    def __init__(self, selection: LayerSelection, projections: tuple[str, ...] = ("up", "down")) -> None:
        self.selection, self.projections = selection, projections
        self._names: frozenset[str] = frozenset()
        self._share = 0.0
        self._frozen: dict[str, str] = {}
        self._packs = False
        self._pace = Pace()
        self._hook: Any = None

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        model = kwargs["model"]
        if hasattr(model, "peft_config"):
            raise SlamkernError(
                f"{type(model).__name__} has PEFT's adapters, and SlamCallback trains the model's own weights;"
                " leave it out, and give PEFT slamkern.integrations.lora.lora_config(model, selection)"
            )
        apply_selection(model, self.selection, self.projections)
        trained = trained_parameters(model)
        self._names = frozenset(trained)
        self._share = sum(map(Tensor.numel, trained.values())) / total_parameters(model)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model, optimizer = kwargs["model"], kwargs.get("optimizer")
        if not self._names:
            raise SlamkernError("give SlamCallback to the trainer when it is made: callbacks=[SlamCallback(selection)]")
        self._check(model)
        trained = {id(parameter) for parameter in trained_parameters(model).values()}
        if narrow := next((p.dtype for p in trained_parameters(model).values() if p.element_size() < 4), None):
            _log.warning(
                "the trained tensors are %s and a Trainer keeps no float32 masters: updates of less than half a"
                " rounding are lost; load the model in float32 (bf16=True still computes in bfloat16)",
                str(narrow).removeprefix("torch."),
            )
        groups = getattr(optimizer, "param_groups", [])
        if groups and {id(parameter) for group in groups for parameter in group["params"]} != trained:
            raise SlamkernError("the optimizer was made before SlamCallback froze the model; let the trainer make it")
        self._frozen = frozen_digests(model, trained_parts(model))
        here = self._described()
        if state.global_step:
            _compare(state.stateful_callbacks.get(STATE), here)
        state.stateful_callbacks[STATE] = here  # goes into the trainer_state.json of each checkpoint
        self._packs = says_it_packs(args)
        if self._hook is not None:  # of a training that ended with an error
            self._hook.remove()
        self._pace.start()
        self._hook = model.register_forward_pre_hook(self._first_batch, with_kwargs=True)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._pace.go_on()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if (control.should_evaluate or control.should_save) and args.device.type != "cpu":
            torch.accelerator.synchronize()  # what the step has queued is training, too
        self._pace.step_ended()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._pace.apart()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._pace.apart()
        self._check(kwargs["model"])
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}" / DELTA_FOLDER
        self._save(kwargs["model"], folder, state, self._frozen)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model = kwargs["model"]
        self._hook.remove()
        self._check(model)
        now = frozen_digests(model, trained_parts(model))
        if changed := sorted(name for name in now if now[name] != self._frozen.get(name)):
            raise SlamkernError(f"{len(changed)} frozen tensors changed during the training, the first {changed[0]}")
        self._save(model, Path(args.output_dir) / DELTA_FOLDER, state, now)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs = kwargs["logs"]
        if "loss" not in logs:  # of an evaluation, or the summary at the end
            return
        found = {"tokens_per_second": round(self._pace.take(), 1), "trained_share": round(self._share, 6)}
        logs.update(found)
        state.log_history[-1].update(found)

    def _first_batch(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the first forward of the training: from here on tokens are counted."""
        if not model.training or not kwargs:
            return
        self._hook.remove()
        check_packing(model, kwargs, packs=self._packs)
        self._pace.start()
        self._hook = model.register_forward_pre_hook(self._count, with_kwargs=True)
        self._count(model, args, kwargs)

    def _count(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if model.training and "input_ids" in kwargs:
            mask = kwargs.get("attention_mask")
            self._pace.count(kwargs["input_ids"].numel() if mask is None else mask.sum())

    def _save(self, model: Any, folder: Path, state: TrainerState, frozen: dict[str, str]) -> None:
        # Parts of a weight are gathered from all processes; the main one writes.
        if state.is_world_process_zero or is_sharded(model):
            save_delta(model, folder, self.selection, frozen=frozen)

    def _check(self, model: Any) -> None:
        now = frozenset(trained_parameters(model))
        if now != self._names:
            changed = sorted(now ^ self._names)
            raise SlamkernError(
                f"{len(changed)} parameters changed their freeze flags since the selection was applied, the first"
                f" {changed[0]}; freeze nothing and thaw nothing beside SlamCallback"
            )

    def _described(self) -> dict[str, Any]:
        """What a run that resumes must agree in, as JSON gives it back."""
        selection = self.selection.to_dict()
        return {
            "layers": selection["layers"],
            "neurons": selection["neurons"],
            "trained": sorted(self._names),
            "frozen": combined_digest(self._frozen),
        }


def _compare(before: dict[str, Any] | None, here: dict[str, Any]) -> None:
    """The checkpoint that the trainer went on from, and whose weights it has loaded, must be one of this selection."""
    if before is None:
        raise SlamkernError("the resumed checkpoint was saved without SlamCallback or by an older slamkern; begin anew")
    if before["layers"] != here["layers"]:
        raise SlamkernError(
            f"the resumed checkpoint trained layers {before['layers']}, this selection has {here['layers']}"
        )
    if before["neurons"] != here["neurons"]:
        raise SlamkernError(f"the resumed checkpoint trained other neurons of layers {before['layers']}")
    if odd := sorted({*before["trained"]} ^ {*here["trained"]}):
        raise SlamkernError(f"the resumed checkpoint and this run train different tensors, the first {odd[0]}")
    if before["frozen"] != here["frozen"]:
        raise SlamkernError(
            "the frozen weights are not those that the resumed checkpoint trained with; load the model in its dtype"
        )
