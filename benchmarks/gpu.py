"""Everything that is measured, in one command, each stage in a process of its own with its own time limit.

    python -m benchmarks.gpu [--only STAGE ...] [--minutes M] [--device cpu|cuda] [--dry-run]

=========  ===========================================================================================
headline   a training step of 7B: slamkern, the authors' recipe, Liger-Kernel and FP8, three times in turns
ceilings   copy bandwidth and sustained GEMM rate of this device
build      csrc, with the compilers that are here
tests      the tests of ops, kernels and modules on the device, and all tests marked ``cuda``
kernels    microbenchmarks of the ops
sanitize   every kernel under compute-sanitizer
memory     a step of 7B within 24 GB, and in FP8 within 16 GB, against the arithmetic
graphs     micro-batches and probe batches as CUDA graphs
fp8        whether frozen weights in FP8 train as well
probe      probing speed of SmolLM2-135M
layers     scores of the layers of SmolLM2-135M
train      the training profile
scaling    how a training step scales
goals      goals against what has been measured, at the end of every call that has time for it
=========  ===========================================================================================

The headline comes first: a borrowed GPU may be gone after it. A stage is ended at its limit and keeps the rows it has
written, and it only starts where the whole of its limit is left of ``--minutes``: a run never takes longer than that.
What did not start is named with the command that runs it: ``--minutes 9.5`` and that command, again and again, measure
everything in calls of at most ten minutes (``schedule`` computes them). Rows go to benchmarks/results/<device>.json.
Exit status 1 if any stage failed.
"""

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch

from benchmarks import results
from benchmarks.results import Row
from benchmarks.stage import add_options, default_folder, show

ROOT = Path(__file__).resolve().parents[1]
# Minutes after which a stage is ended, imports and all.
LIMITS: Mapping[str, float] = MappingProxyType(
    {
        # Three calls of ten minutes get as far as the goals.
        "headline": 6.5,
        "ceilings": 1.0,
        "build": 1.5,
        "tests": 4.0,
        "kernels": 5.0,
        "sanitize": 4.5,
        "memory": 2.0,
        "graphs": 2.0,
        "fp8": 3.0,
        "probe": 3.0,
        "layers": 2.0,
        "train": 8.5,
        "scaling": 8.5,
        "goals": 0.75,
    }
)
COMMANDS = ("build", "tests")  # the others are modules of this package
MODULES = {"train": ("train", "--scaling", "no"), "scaling": ("train", "--scaling", "only")}
_RESERVE = 0.5  # minutes of a limit that a stage does not plan with: imports, and its last measurement
_TAIL = 15  # lines of a failed stage's output that are shown


def schedule(minutes: float, stages: Sequence[str] = tuple(LIMITS)) -> list[list[str]]:
    """The stages of every call of so many minutes if each stage takes all of its limit."""
    calls: list[list[str]] = []
    left = list(stages)
    while left:
        remaining, call = minutes, []
        for stage in list(left):
            if LIMITS[stage] <= remaining:
                remaining -= LIMITS[stage]
                call.append(stage)
                left.remove(stage)
        if not call:
            raise ValueError(f"stage {left[0]} may take {LIMITS[left[0]]} minutes, more than the {minutes:g} of a call")
        calls.append(call)
    return calls


@dataclass(frozen=True)
class Plan:
    """What to run: options that every stage gets, and the environment of its process."""

    device: str
    dry: bool
    folder: Path
    threads: int

    def command(self, stage: str) -> list[str]:
        """The command line of a stage."""
        python = [sys.executable, "-m"]
        if stage == "build":
            place = ["--build-lib", str(self.folder / "build")] if self.dry else ["--inplace"]
            return [sys.executable, "setup.py", "build_ext", *place]
        if stage == "tests":
            return [*python, "pytest", "-q", "--no-header", "-p", "no:cacheprovider", *self._tests()]
        module, *own = MODULES.get(stage, (stage,))
        minutes = f"{LIMITS[stage] - _RESERVE:g}"
        options = [*own, "--device", self.device, "--minutes", minutes, "--results", str(self.folder)]
        options += ["--threads", str(self.threads)] if self.threads else []
        return [*python, f"benchmarks.{module}", *options, *(["--dry-run"] if self.dry else [])]

    def _tests(self) -> list[str]:
        files = {
            path for folder in ("ops", "kernels", "modules") for path in (ROOT / "tests" / folder).glob("test_*.py")
        }
        # Marked tests of other files are named one by one: -m would leave out the unmarked ones of these.
        files |= {path for path in (ROOT / "tests").rglob("test_*.py") if "mark.cuda" in path.read_text("utf-8")}
        # Those that compile for other GPUs need none.
        files.discard(ROOT / "tests" / "kernels" / "test_compile.py")
        spread = ["-n", "8"] if importlib.util.find_spec("xdist") and self.device == "cuda" else []
        names = sorted(str(path.relative_to(ROOT)) for path in files)
        return [*(["--collect-only"] if self.dry else spread), *names]


def run_stage(plan: Plan, stage: str, limit: float) -> Row:
    """Run one stage for at most ``limit`` minutes and return how it went: a row for the last table."""
    command = plan.command(stage)
    print(f"\n== {stage}: {' '.join(command)}", flush=True)
    started = time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}  # bars would fill the logs
    log = plan.folder / f"{stage}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as output:
        # A group of its own: what it has started (workers of pytest, the sanitizer) would go on on the GPU.
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, process_group=0
        )
        try:
            status = "ok" if process.wait(timeout=60 * limit) == 0 else f"failed ({process.returncode})"
        except subprocess.TimeoutExpired:
            _end(process)
            status = f"ended after {60 * limit:.0f} s"
        except BaseException:
            _end(process)
            raise
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    print("\n".join(lines if status == "ok" and stage not in COMMANDS else lines[-_TAIL:]), flush=True)
    note = next((line for line in reversed(lines) if line.strip()), "") if stage in COMMANDS else ""
    return {"stage": stage, "status": status, "seconds": time.monotonic() - started, "note": note.strip("= ")[:90]}


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill a stage with every process it has started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=tuple(LIMITS), metavar="STAGE", help=f"of {' '.join(LIMITS)}")
    add_options(parser, minutes=sum(LIMITS.values()))
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: torch sees no CUDA device; use --device cpu", file=sys.stderr)
        return 2
    device = torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    folder = (options.results or default_folder(options.dry_run)).resolve()
    plan = Plan(options.device, options.dry_run, folder, options.threads)
    stages = [stage for stage in LIMITS if options.only is None or stage in options.only]
    started = time.monotonic()
    deadline = started + 60 * options.minutes
    rows: list[Row] = []
    waiting: list[str] = []
    for stage in stages:
        if time.monotonic() + 60 * LIMITS[stage] > deadline:
            waiting.append(stage)
            continue
        rows.append(run_stage(plan, stage, LIMITS[stage]))
        # Stages of earlier calls keep their rows.
        others = [row for row in results.rows_of(device, "run", folder) if row["stage"] != stage]
        command = f"python -m benchmarks.gpu --only {' '.join(stages)}"
        seconds = time.monotonic() - started
        results.write_stage(device, "run", [*others, rows[-1]], command=command, seconds=seconds, folder=folder)
    show(str(results.path_of(device, folder)), rows, ("stage", "status", "seconds", "note"))
    if waiting:
        longest = max(LIMITS[stage] for stage in waiting)
        print(f"no time was left for {len(waiting)} stages, of up to {longest:g} minutes each; they are run by")
        minutes = max(options.minutes, longest + LIMITS["goals"])
        again = [*waiting, *(["goals"] if "goals" not in waiting else [])]  # of all that has been measured by then
        print(f"python -m benchmarks.gpu --minutes {minutes:g} --only {' '.join(again)}")
    return 0 if all(row["status"] == "ok" for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
