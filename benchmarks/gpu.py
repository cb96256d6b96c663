"""Everything that is measured, in one command, each stage in a process of its own with its own time limit.

    python -m benchmarks.gpu [--only STAGE ...] [--minutes M] [--device cpu|cuda] [--dry-run]

=========  ==================================================================================================
build      csrc, with the compilers that are here
ceilings   copy bandwidth and GEMM rate of this device
tests      the tests of ops and kernels on the device, and all tests marked ``cuda``
sanitize   every kernel under compute-sanitizer
kernels    microbenchmarks of the ops
probe      probing speed of SmolLM2-135M
train      the training profile
fp8        whether frozen weights in FP8 train as well
goals      goals against what was measured
=========  ==================================================================================================

Time that a stage leaves over goes to the later ones; a stage that overruns is ended, and keeps the rows it has written.
All rows go to ``benchmarks/results/<device>.json``. The last thing printed is a short table; exit status 1 if any stage
failed.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import results
from benchmarks.results import Row
from benchmarks.stage import add_options, default_folder, show

ROOT = Path(__file__).resolve().parents[1]
# Shares of the time limit: what each stage took, roughly, of a run that measured everything.
SHARES = {
    "build": 2.0,
    "ceilings": 0.5,
    "tests": 2.0,
    "sanitize": 1.5,
    "kernels": 3.0,
    "probe": 1.5,
    "train": 3.0,
    "fp8": 1.5,
    "goals": 1.0,
}
COMMANDS = ("build", "tests")  # the others are modules of this package
_TAIL = 15  # lines of a failed stage's output that are shown


@dataclass(frozen=True)
class Plan:
    """What to run: options that every stage gets, and the environment of its process."""

    device: str
    dry: bool
    folder: Path
    threads: int

    def command(self, stage: str, minutes: float) -> list[str] | None:
        """The command line of a stage, or None where the stage does not exist yet."""
        python = [sys.executable, "-m"]
        if stage == "build":
            return [sys.executable, "setup.py", "build_ext", "--inplace"]
        if stage == "tests":
            return [*python, "pytest", "-q", "--no-header", "-p", "no:cacheprovider", *self._tests()]
        if importlib.util.find_spec(f"benchmarks.{stage}") is None:
            return None
        options = ["--device", self.device, "--minutes", f"{minutes:.2f}", "--results", str(self.folder)]
        options += ["--threads", str(self.threads)] if self.threads else []
        return [*python, f"benchmarks.{stage}", *options, *(["--dry-run"] if self.dry else [])]

    def _tests(self) -> list[str]:
        files = {f"tests/test_{name}.py" for name in ("ops", "autograd", "patch", "whole_models")}
        for pattern in ("test_kernels_*.py", "test_native*.py", "test_*_cuda.py"):
            files |= {str(path.relative_to(ROOT)) for path in (ROOT / "tests").glob(pattern)}
        # Marked tests of other files are named one by one: -m would leave out the unmarked ones of these.
        marked = {
            str(path.relative_to(ROOT))
            for path in (ROOT / "tests").glob("test_*.py")
            if "mark.cuda" in path.read_text(encoding="utf-8")
        }
        return [*(["--collect-only"] if self.dry else []), *sorted(files | marked)]


def run_stage(plan: Plan, stage: str, minutes: float) -> Row:
    """Run one stage and return how it went: a row for the last table."""
    command = plan.command(stage, minutes)
    if command is None:
        return {"stage": stage, "status": "skipped", "seconds": 0.0, "note": f"there is no benchmarks/{stage}.py yet"}
    print(f"\n== {stage}: {' '.join(command)}", flush=True)
    started = time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}  # bars would fill the logs
    # Half a minute more than the stage itself aims at, for imports and its last measurement.
    limit = 60 * minutes + 30
    log = plan.folder / f"{stage}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            status = "ok" if process.wait(timeout=limit) == 0 else f"failed ({process.returncode})"
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = f"ended after {limit:.0f} s"
        except BaseException:
            process.kill()
            raise
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    print("\n".join(lines if status == "ok" and stage not in COMMANDS else lines[-_TAIL:]), flush=True)
    note = next((line for line in reversed(lines) if line.strip()), "") if stage in COMMANDS else ""
    return {"stage": stage, "status": status, "seconds": time.monotonic() - started, "note": note.strip("= ")[:90]}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=tuple(SHARES), metavar="STAGE", help=f"of {' '.join(SHARES)}")
    add_options(parser, minutes=9.0)
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: torch sees no CUDA device; use --device cpu", file=sys.stderr)
        return 2
    device = torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    folder = (options.results or default_folder(options.dry_run)).resolve()
    plan = Plan(options.device, options.dry_run, folder, options.threads)
    stages = [stage for stage in SHARES if options.only is None or stage in options.only]
    started = time.monotonic()
    deadline = started + 60 * options.minutes
    rows: list[Row] = []
    for index, stage in enumerate(stages):
        share = SHARES[stage] / sum(SHARES[later] for later in stages[index:])
        minutes = max(0.1, (deadline - time.monotonic()) / 60 * share)
        rows.append(run_stage(plan, stage, minutes))
        seconds = time.monotonic() - started
        command = f"python -m benchmarks.gpu --only {' '.join(stages)}"
        results.write_stage(device, "run", rows, command=command, seconds=seconds, folder=folder)
    show(str(results.path_of(device, folder)), rows, ("stage", "status", "seconds", "note"))
    return 0 if all(row["status"] in ("ok", "skipped") for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
