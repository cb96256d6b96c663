"""What a training step of a shape needs, way by way, as a table; computed, without a GPU or weights."""

from collections.abc import Sequence
from typing import Any

import torch

from slamkern.bench.workload import shape_config
from slamkern.errors import SlamkernError
from slamkern.modules.varlen_attention import shares_keys
from slamkern.training.memory_budget import parse_bytes
from slamkern.training.shape_memory import shape_footprint

COLUMNS = (
    "frozen_weights", "recompute", "optimizer", "weights_gb", "optimizer_gb", "saved_gb", "workspace_gb", "peak_gb",
    "fits",
)  # fmt: skip
Row = dict[str, Any]


def budget_lines(shape: str, tokens: int, layers: Sequence[int], budget: str) -> list[str]:
    """What ``train --memory-budget`` would do in bfloat16 and with frozen weights in FP8, or what would fit."""
    lines = []
    for precision in ("model", "fp8"):
        footprint = shape_footprint(
            shape_config(shape), layers, fp8=precision == "fp8", repeated_keys=not shares_keys()
        )
        try:
            what = footprint.describe(tokens, footprint.plan(tokens, parse_bytes(budget), offload=None))
        except SlamkernError as error:
            what = str(error)
        lines.append(f"--memory-budget {budget} --frozen-precision {precision}: {what}")
    return lines


def memory_rows(
    shape: str, tokens: int, layers: Sequence[int], *, budget: int | None = None, dtype: torch.dtype = torch.bfloat16
) -> list[Row]:
    """A row for every choice of frozen precision, recomputation of all FFNs, and place of the optimizer.

    tokens: of a micro-batch, one a step. Bytes in units of 10^9. workspace_gb is what the peak has beside the columns
    before it: intermediates of one FFN's backward, a chunk of logits, or new gradients. fits: only with a budget.
    """
    config = shape_config(shape)
    rows: list[Row] = []
    for fp8 in (False, True):
        footprint = shape_footprint(config, layers, itemsize=dtype.itemsize, fp8=fp8, repeated_keys=not shares_keys())
        for recompute in ((), tuple(footprint.recomputable)):
            for offload in (False, True):
                total = footprint.total(tokens, recompute, offload=offload)
                state = 0 if offload else footprint.state
                saved = footprint.saved_bytes(tokens, recompute)
                numbers = {"weights": footprint.weights, "optimizer": state, "saved": saved}
                numbers |= {"workspace": total - sum(numbers.values()), "peak": total}
                row: Row = {
                    "frozen_weights": "fp8" if fp8 else str(dtype).removeprefix("torch."),
                    "recompute": "every FFN" if recompute else "nothing",
                    "optimizer": "host" if offload else "device",
                }
                row |= {f"{name}_gb": value / 1e9 for name, value in numbers.items()}
                rows.append(row | ({} if budget is None else {"fits": "yes" if total <= budget else "no"}))
    return rows
