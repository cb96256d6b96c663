"""Does a trainer compute what it seems to? Checked on its first batch, in any trainer.

The two silent errors of packed training: sequences of a row that see each other, and a loss that is divided by
something else than the tokens that have one.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slamkern.data.packing import IGNORE
from slamkern.errors import SlamkernError
from slamkern.modules.eval_mode import eval_mode
from slamkern.modules.fused_loss import computes_loss
from slamkern.modules.packed_attention import attends_packed, supports_packing


def check_first_batch(trainer: Any) -> None:
    """Have a ``transformers.Trainer`` (TRL's are) check the first batch that it trains on, once; call before train().

    The check costs five forwards. SlamkernError, at that batch, says in one line what is wrong: packed sequences do
    not give the logits of the same sequences alone, a label reaches across a border, or the loss is not the sum over
    the tokens with a label divided by their number in the whole step.
    """
    compute_loss = trainer.compute_loss

    def checked(model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
        if not model.training:
            return compute_loss(model, inputs, *args, **options)
        trainer.compute_loss = compute_loss
        check_packing(model, inputs, packs=says_it_packs(trainer.args))
        items = options.get("num_items_in_batch")
        accumulation = trainer.args.gradient_accumulation_steps
        # A fused loss is of training mode, unless it is asked for.
        fused = {"skip_logits": True} if computes_loss(model) else {}
        with eval_mode(model):
            loss = float(compute_loss(model, {**inputs, **fused}, num_items_in_batch=items))
        processes = trainer.accelerator.num_processes
        scale = processes if items is not None and trainer.args.average_tokens_across_devices else 1
        check_normalization(
            model, inputs, loss / scale, items=None if items is None else int(items),
            whole_step=accumulation == 1 and processes == 1,
        )  # fmt: skip
        if items is None and accumulation > 1:
            raise SlamkernError(
                f"the means of {accumulation} micro-batches are averaged, so tokens in short ones count more;"
                " the trainer must pass num_items_in_batch to the loss"
            )
        return compute_loss(model, inputs, *args, **options)

    trainer.compute_loss = checked


def says_it_packs(args: Any) -> bool:
    """Whether the arguments of a trainer (TRL's) ask for rows of several sequences."""
    return bool(getattr(args, "packing", False))


def check_packing(model: Any, batch: Mapping[str, Any], *, packs: bool = False) -> None:
    """Compare the logits of the first two sequences of a packed row with those of each of them alone.

    batch: what ``model`` is called with, one row of ``input_ids`` with ``position_ids`` that restart. Does nothing for
    a batch of several rows, or of one sequence. SlamkernError where they differ by more than rounding, where the model
    has packed attention and cannot be packed, where the first token of a later sequence has a label, and, of a trainer
    that ``packs``, for a batch without positions.
    """
    positions = batch.get("position_ids")
    if packs and positions is None:
        raise SlamkernError(
            "packing=True gave a batch without position_ids, so the sequences of a row see each other; TRL gives them"
            ' with packing_strategy="bfd"'
        )
    if positions is None or positions.dim() != 2 or positions.shape[0] != 1:
        return
    starts = (positions[0, 1:] != positions[0, :-1] + 1).nonzero().squeeze(1) + 1
    if not len(starts):
        return
    labels = batch.get("labels")
    if labels is not None and (labels[0, starts] != IGNORE).any():
        raise SlamkernError(
            "the first token of a packed sequence has a label, which the last token of the sequence before it would "
            f"have to predict; set it to {IGNORE}"
        )
    inner = getattr(model, "module", model)  # of DistributedDataParallel
    if attends_packed(inner) and (reason := supports_packing(inner)) is not None:
        raise SlamkernError(f"this model cannot be packed: {reason}; train on padded batches")
    first, end = int(starts[0]), int(starts[1]) if len(starts) > 1 else positions.shape[1]
    ids = batch["input_ids"]
    borders = torch.tensor([0, first, end], dtype=torch.int32, device=ids.device)
    longest = max(first, end - first)
    packing: dict[str, Any] = {"position_ids": positions[:, :end]}
    if "cu_seq_lens_q" in batch:
        packing |= {"cu_seq_lens_q": borders, "cu_seq_lens_k": borders}
        packing |= {"max_length_q": longest, "max_length_k": longest}
    # The other arguments as they came, an attention mask above all: it is what makes other packing wrong.
    options = {name: value for name, value in batch.items() if name in ("attention_mask", "token_type_ids")}
    options = {name: value[:, :end] for name, value in options.items() if isinstance(value, Tensor)}
    with eval_mode(model), _Precision(inner) as precision:
        packed = model(input_ids=ids[:, :end], use_cache=False, **packing, **options).logits[0].float()
        parts = [ids[:, :first], ids[:, first:end]]
        alone = torch.cat([model(input_ids=part, use_cache=False).logits[0] for part in parts]).float()
    error, size = float((packed - alone).norm()), float(alone.norm())
    # Four digits in float32, which a leak is far above; half precision has two.
    if not error <= (0.05 if precision.is_half else 1e-4) * size:
        raise SlamkernError(
            f"packed sequences differ from the same ones alone by {error / size:.2g} of their logits: they see each"
            " other or miss their positions; load the model with attn_implementation="
            "slamkern.integrations.packed_attention.register(), and give no attention_mask"
        )


def check_normalization(
    model: Any, batch: Mapping[str, Any], loss: float, *, items: int | None = None, whole_step: bool = True
) -> None:
    """Whether ``loss`` is the cross entropy summed over the tokens of ``batch`` with a label, divided as it should be.

    items: what the trainer divides by, the tokens with a label in the whole step (``num_items_in_batch``); None: those
    of this batch. whole_step: the batch is all of the step, so that ``items`` can be counted. A trainer may count the
    first token of each sequence, which has a label in some batches and no loss. SlamkernError otherwise.
    """
    labels = batch["labels"]
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "num_items_in_batch")}
    targets = labels[:, 1:].flatten()
    counted, labeled = int((targets != IGNORE).sum()), int((labels != IGNORE).sum())
    divisor = counted if items is None else items
    if items is not None and (items < counted or (whole_step and items > labeled)):
        raise SlamkernError(f"the loss is divided by {items} tokens, but {counted} of the batch have one")
    with eval_mode(model), _Precision(getattr(model, "module", model)) as precision:
        logits = model(**inputs | {"use_cache": False}).logits[:, :-1].flatten(0, 1)
        total = float(F.cross_entropy(logits.float(), targets, ignore_index=IGNORE, reduction="sum"))
    expected = total / max(1, divisor)
    if not abs(loss - expected) <= (0.02 if precision.is_half else 1e-3) * max(abs(expected), 1e-6):
        raise SlamkernError(
            f"the loss of the first batch is {loss:.6g}, but its {counted} tokens with a label have {total:.6g} in sum,"
            f" over {divisor} is {expected:.6g}: it is normalized by something else"
        )


class _Precision:
    """Whether the output head computed in half precision inside the block: its weights, or autocast over float32."""

    def __init__(self, model: Any) -> None:
        self.is_half = False
        self._head = model.get_output_embeddings()

    def __enter__(self) -> "_Precision":
        self._hook = self._head.register_forward_hook(self._see)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _see(self, module: Any, args: Any, logits: Tensor) -> None:
        self.is_half |= logits.element_size() < 4
