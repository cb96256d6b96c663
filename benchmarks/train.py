"""The training profile: every way to take a SLAM training step, over the same real pairs, and how the step scales.

    python -m benchmarks.train [--shape NAME | --model SPEC] [--data D] [--pairs N] [--padded-batch-size N]
                               [--micro-batch-size N] [--steps N] [--repeats N] [--variants A,B] [--scaling yes|no|only]

What is measured, and how, is in slamkern/bench/step_profile.py and variants.py; ``slamkern bench train`` is the same
without result files. Fails when the loss curves of exact variants differ by more than rounding.
"""

import argparse
import sys
import time
from collections.abc import Sequence

import torch

from benchmarks.results import Row
from benchmarks.stage import Stage, show
from slamkern.bench.tables import (
    COLUMNS,
    SCALING_COLUMNS,
    TrainOptions,
    curve_check,
    measured,
    profile_rows,
    scaling_rows,
)


def _own_options(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--shape")
    parser.add_argument("--model")
    parser.add_argument("--data")
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--padded-batch-size", type=int)
    parser.add_argument("--micro-batch-size", type=int)
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--variants")
    parser.add_argument("--scaling", choices=("yes", "no", "only"), default="yes")
    return parser.parse_known_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    own, rest = _own_options(argv)
    torch.manual_seed(0)
    failed = False
    started = time.monotonic()
    if own.scaling != "only":
        stage = Stage("train", __doc__.splitlines()[0], rest)
        options = TrainOptions.for_device(
            stage.device,
            dry=stage.dry,
            shape=own.shape,
            model=own.model,
            data=own.data,
            pairs=own.pairs,
            padded_batch_size=own.padded_batch_size,
            micro_batch_size=own.micro_batch_size,
            repeats=own.repeats,
            steps=own.steps,
            variants=own.variants.split(",") if own.variants else None,
        )
        for rows in profile_rows(options, seconds=stage.seconds_left, progress=_tell):
            stage.rows = rows
            stage.save()
        _show(f"training step on {stage.device}", stage.rows, COLUMNS)
        message, failed = curve_check(stage.rows)
        print(message)
    if own.scaling != "no":
        stage = Stage("scaling", "how a training step scales", rest, command="train --scaling only")
        deadline = started + stage.seconds_left
        longest, began = 0.0, time.monotonic()
        for point in scaling_rows(stage.device, dry=stage.dry, progress=_tell):
            stage.rows += point
            stage.save()
            longest, began = max(longest, time.monotonic() - began), time.monotonic()
            if began + longest > deadline:  # the next one may take as long
                print("scaling: the other points are left out, no time was left (--minutes)")
                break
        _show(f"scaling on {stage.device}", stage.rows, SCALING_COLUMNS)
    return 1 if failed else 0


def _show(title: str, rows: Sequence[Row], columns: Sequence[str]) -> None:
    numbers, absences = measured(rows)
    show(title, numbers, columns)
    print("\n".join(absences))


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
