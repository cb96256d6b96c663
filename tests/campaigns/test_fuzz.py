"""Every reader of foreign bytes raises a SlamkernError of one line or reads them, whatever the bytes.

The campaign is coverage-guided and needs ``pip install -e '.[fuzz]'``: ``SLAMKERN_SECONDS=600 pytest -m campaign
tests/campaigns/test_fuzz.py``; what each reader got goes to ``results/fuzz.json``. A sample of random changes, the same
each time, is an ordinary test, with the inputs under ``findings`` that once raised something else.
"""

import importlib.util
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from campaigns.fuzz import finding, without_atheris
from campaigns.readers import READERS

from slamkern.files import write_json

SECONDS = int(os.environ.get("SLAMKERN_SECONDS", "60"))
RESULTS = Path(__file__).parent / "results" / "fuzz.json"
FOUND = Path(__file__).parent / "findings"
# How many changed examples the ordinary test tries; forking and transformers' own readers take long.
TRIALS = {"chat_template": 5, "report": 4, "model_folder": 10, "gguf": 10, "whole_run": 30, "selection": 30}


@pytest.mark.parametrize("name", READERS)
def test_changed_files_are_read_or_refused_in_one_line(finished: Path, tmp_path: Path, name: str) -> None:
    reader = READERS[name]
    examples = reader.examples(finished)
    work = Path(shutil.copytree(finished, tmp_path / "work"))
    for example in examples:
        reader.read(example, work)
    for file in sorted((FOUND / name).glob("*")):
        assert finding(reader.read, file.read_bytes(), work) is None, file
    assert not without_atheris(reader.read, examples, work, trials=TRIALS.get(name, 60))


def test_an_error_that_nobody_caught_is_found(tmp_path: Path) -> None:
    def careless(data: bytes, folder: Path) -> None:
        json.loads(data)["steps"]

    problems = without_atheris(careless, [b'{"steps": 3}'], tmp_path, trials=60)
    assert {problem.split(" ")[0] for problem in problems} >= {"KeyError", "JSONDecodeError"}


@pytest.mark.campaign
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="needs atheris: pip install -e '.[fuzz]'")
@pytest.mark.parametrize("name", READERS)
def test_coverage_guided(finished: Path, name: str) -> None:
    place = finished.parent / name
    for folder in ("corpus", "findings"):
        (place / folder).mkdir(parents=True)
    shutil.copytree(finished, place / "work")
    for number, example in enumerate(READERS[name].examples(finished)):
        (place / "corpus" / f"example-{number}").write_bytes(example)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "campaigns.fuzz", name, str(SECONDS), str(finished.parent)],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, errors="replace",
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    numbers = {key: int(value) for key, value in re.findall(r"stat::(\w+):\s+(\d+)", done.stderr)}
    coverage = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", done.stderr)
    found = place / "findings.txt"
    result = {
        "seconds": SECONDS,
        "processor_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime),
        "executions": numbers.get("number_of_executed_units"),
        "edges": int(coverage[-1][0]) if coverage else None,
        "edges_of_the_examples": int(coverage[0][0]) if coverage else None,
        "corpus": int(coverage[-1][2]) if coverage else None,
        "largest_memory_mb": numbers.get("peak_rss_mb"),
        "findings": sorted(found.read_text().splitlines()) if found.exists() else [],
    }
    if done.returncode:
        result["findings"].append(f"stopped: {done.stderr.strip().splitlines()[-1][:200]}")
    if kept := os.environ.get("SLAMKERN_CAMPAIGN"):
        shutil.copytree(place, Path(kept) / name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("work"))
        (Path(kept) / f"{name}.log").write_text(done.stderr[-20000:])
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    write_json(RESULTS, {**results, name: result})
    assert not result["findings"], result
