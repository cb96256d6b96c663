"""The numbers that matter most, in the least time: slamkern, the authors' recipe, Liger-Kernel, FP8; the shape of 7B.

A quarter of the global batch in three steps, of which the first is counted; the variants take them one after
another, and all of that three times, so that a clock that drifts shows as spread and not as a difference. After the
first time round (a minute and a half on an H100, by estimate) every variant has a number.

    python -m benchmarks.headline [--data D]

The pairs are real ones; on a GPU where there are none it measures nothing, unless ``--data corpus:`` asks for the
embedded corpus.
"""

import argparse
import sys
from collections.abc import Sequence

import torch

from benchmarks.stage import Stage, show
from slamkern.bench.tables import TrainOptions, curve_check, measured, profile_rows
from slamkern.bench.workload import PAIRS, shared_data

VARIANTS = ("slamkern", "authors", "liger_freeze", "slamkern_fp8")
COLUMNS = (
    "variant", "tokens_per_second", "tokens_per_second_low", "tokens_per_second_high", "against_slamkern",
    "against_slamkern_low", "against_slamkern_high", "peak_gb", "useful_utilization", "timed_steps",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--data")
    own, rest = parser.parse_known_args(argv)
    stage = Stage("headline", __doc__.splitlines()[0], rest)
    if stage.device.type == "cuda" and not stage.dry and own.data is None and shared_data(PAIRS) is None:
        print(
            f"error: no shared/data/{PAIRS} in the checkout or beside it; --data D for other pairs, of them"
            " --data corpus: for the embedded corpus",
            file=sys.stderr,
        )
        return 2
    torch.manual_seed(0)
    pairs = None if stage.dry or stage.device.type == "cpu" else 128
    options = TrainOptions.for_device(
        stage.device,
        dry=stage.dry,
        data=own.data,
        pairs=pairs,
        steps=2 if stage.dry else 3,
        repeats=3,
        variants=VARIANTS,
    )
    for rows in profile_rows(options, seconds=stage.seconds_left, progress=lambda line: print(line, file=sys.stderr)):
        stage.rows = rows
        stage.save()
    numbers, absences = measured(stage.rows)
    show(f"training step of {options.model or options.shape} on {stage.device}", numbers, COLUMNS)
    message, failed = curve_check(stage.rows)
    print("\n".join([*absences, message]))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
