"""The training profile as a caller asks for it: options with defaults for the device, rows for a table, the verdict.

Shared by ``slamkern bench train`` and by the benchmarks of the repository, which also store the rows.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from slamkern.bench.scaling import axes_for, scaling
from slamkern.bench.step_profile import TOLERANCE, Progress, Row, largest_difference, profile
from slamkern.bench.variants import VARIANTS, Settings
from slamkern.bench.workload import SHAPES, HalfBytes, any_tokenizer, checkpoint_builder, real_pairs, shape_builder
from slamkern.errors import SlamkernError
from slamkern.pipeline.loading import resolve_dtype

COLUMNS = (
    "variant", "tokens_per_second", "against_slamkern", "peak_gb", "padding_share", "flops_vs_minimum", "utilization",
    "useful_utilization", "loss_last",
)  # fmt: skip
SCALING_COLUMNS = (
    "property", "value", "variant", "tokens_per_second", "against_slamkern", "peak_gb", "useful_utilization"
)  # fmt: skip


@dataclass(frozen=True)
class TrainOptions:
    """shape: of a random model, or model: a checkpoint; pairs: of a step; settings: how the steps are taken."""

    device: torch.device
    dtype: torch.dtype
    shape: str
    model: str | None
    data: str | None
    tokenizer: str | None
    pairs: int
    steps: int
    settings: Settings

    @classmethod
    def for_device(
        cls, device: torch.device, *, dry: bool = False, trained_layers: int | None = None, **given: Any
    ) -> "TrainOptions":
        """Defaults of the device, replaced by what is given and not None, for ``Settings`` too.

        trained_layers: how many of the lowest. CUDA: the global batch of 512 in padded batches of 64. CPU: one such
        batch, of which 4 at a time take 5 GB with SmolLM2's vocabulary (logits and their gradients, in float32), and
        packed rows that stay nearer to the caches (2048 tokens: 5 % faster than 4096).
        """
        cuda = device.type == "cuda"
        defaults: dict[str, Any] = {
            "dtype": resolve_dtype("auto", device),
            "shape": "Llama-2-7B" if cuda else "SmolLM2-135M",
            "model": None,
            "data": None,
            "tokenizer": None,
            "pairs": 512 if cuda else 64,
            "steps": 4,
        }
        settings: dict[str, Any] = {
            "layers": range(trained_layers or (2 if dry else 6)),
            "padded_batch_size": 64,
            "micro_batch_size": 64 if cuda else 4,
            "packed_tokens": 4096 if cuda else 2048,
            "variants": tuple(VARIANTS),
            "repeats": 1,
        }
        if dry:
            defaults |= {"shape": "tiny", "data": "corpus:20", "pairs": 4, "steps": 2}
            settings |= {"padded_batch_size": 4}
        for name, value in given.items():
            if name not in defaults and name not in settings:
                raise SlamkernError(f"unknown option {name!r}; known: {', '.join([*defaults, *settings])}")
            if value is not None:
                (defaults if name in defaults else settings)[name] = value
        return cls(device, **defaults, settings=Settings(**settings))


def profile_rows(
    options: TrainOptions, *, seconds: float = math.inf, progress: Progress = lambda _: None
) -> Iterator[list[Row]]:
    """One row a variant with the circumstances in each, again and again as more is measured; the last is the result."""
    if options.model is not None:
        build, tokenizer = checkpoint_builder(options.model, options.device, options.dtype)
        vocabulary = build().config.vocab_size
    else:
        build = shape_builder(options.shape, options.device, options.dtype)
        tokenizer = HalfBytes() if options.shape == "tiny" else any_tokenizer(options.tokenizer)
        vocabulary = SHAPES[options.shape][0]
    work = real_pairs(options.data, tokenizer, vocabulary, steps=options.steps, pairs=options.pairs)
    progress(f"translation pairs: {work.source}; tokenizer: {work.tokenizer}")
    settings = options.settings
    circumstances = {
        "model": options.model or options.shape,
        "dtype": str(options.dtype).removeprefix("torch."),
        "data": work.source,
        "tokenizer": work.tokenizer,
        "pairs": options.pairs,
        "padded_batch_size": settings.padded_batch_size,
        "micro_batch_size": settings.micro_batch_size,
        "packed_tokens": settings.packed_tokens,
        "steps": options.steps,
        "repeats": settings.repeats,
        "trained_layers": len(settings.layers),
        "real_tokens": sum(len(example.input_ids) for step in work.steps for example in step),
    }
    for rows in profile(build, work, settings, seconds=seconds, progress=progress):
        yield [_shown(row) | circumstances for row in rows]


def scaling_rows(
    device: torch.device, *, dry: bool = False, progress: Progress = lambda _: None
) -> Iterator[list[Row]]:
    """The rows of the scaling table, a point of it at a time."""
    for rows in scaling(device, resolve_dtype("auto", device), axes_for(device, dry=dry), progress=progress):
        yield [_shown(row) for row in rows]


def curve_check(rows: Sequence[Mapping[str, Any]]) -> tuple[str, bool]:
    """A line about the loss curves of the exact variants, and whether they differ by more than rounding."""
    difference, between = largest_difference(rows)
    dtype = next((getattr(torch, row["dtype"]) for row in rows), torch.float32)
    allowed = TOLERANCE[dtype]
    return (
        f"loss curves of exact variants: largest relative difference {difference:.2g} ({between}), allowed {allowed:g}",
        difference > allowed,
    )


def measured(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """The rows that have numbers, and a line for each that has none."""
    lines = [f"no number of {row['variant']}: {row['absent']}" for row in rows if "absent" in row]
    return [row for row in rows if "absent" not in row], list(dict.fromkeys(lines))


def _shown(row: Row) -> Row:
    """The row with what tables print beside what it holds."""
    if "absent" in row:
        return row
    losses = row["losses"]
    return row | {
        "peak_gb": row["peak_memory_bytes"] / 1e9,
        "loss_first": losses[0],
        "loss_last": losses[-1],
    }
