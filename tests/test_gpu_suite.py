"""The one command for a GPU: order, limits, what is ended and what is named for the next call."""

import json
import time
from pathlib import Path

import pytest

pytest.importorskip("rich")
from benchmarks import gpu, headline, train
from slamkern.bench import workload

ROOT = Path(__file__).resolve().parents[1]


def test_the_one_command_runs_stages_in_processes_and_keeps_those_of_earlier_calls(tmp_path, capsys):
    options = ["--dry-run", "--device", "cpu", "--results", str(tmp_path)]
    assert gpu.main([*options, "--only", "ceilings", "train", "--minutes", "2"]) == 0
    out = capsys.readouterr().out
    assert "python -m benchmarks.gpu --minutes 9.25 --only train goals" in out
    assert gpu.main([*options, "--only", "headline"]) == 0
    (path,) = tmp_path.glob("*.json")
    stages = json.loads(path.read_text())["stages"]
    assert [(row["stage"], row["status"]) for row in stages["run"]["rows"]] == [("ceilings", "ok"), ("headline", "ok")]
    numbers = {row["variant"]: "absent" not in row for row in stages["headline"]["rows"]}
    assert numbers == {"slamkern": True, "authors": True, "liger_freeze": False, "slamkern_fp8": False}  # GPUs only


@pytest.fixture
def simulated(tmp_path, monkeypatch, capsys):
    """Runs ``benchmarks.gpu --minutes 9.5`` and each command that it names next, on a clock of its own: every stage is
    ended so many seconds after its limit. Returns, for each call, its seconds and the stages that have run by then.
    """
    limits = dict(gpu.LIMITS)

    def simulate(late):
        clock = [0.0]
        monkeypatch.setattr(gpu.time, "monotonic", lambda: clock[0])

        def overrun(plan, stage, limit):
            clock[0] += 60 * limits[stage] + late
            return {"stage": stage, "status": "ended", "seconds": 60 * limit, "note": ""}

        monkeypatch.setattr(gpu, "run_stage", overrun)
        calls, command = [], ["--minutes", "9.5"]
        while command:
            started = clock[0]
            gpu.main([*command, "--device", "cpu", "--dry-run", "--results", str(tmp_path)])
            (path,) = tmp_path.glob("*.json")
            stages = [row["stage"] for row in json.loads(path.read_text())["stages"]["run"]["rows"]]
            calls.append((clock[0] - started, stages))
            last = capsys.readouterr().out.strip().splitlines()[-1]
            command = last.split()[3:] if last.startswith("python -m benchmarks.gpu") else []
        return calls

    return simulate


def test_every_call_takes_ten_minutes_at_most_even_if_every_stage_overruns(simulated):
    """A simulation: each stage takes all of its limit and is ended there; each call names the command of the next."""
    calls = simulated(late=1)
    assert max(seconds for seconds, _ in calls) <= 600
    assert calls[0][1] == ["headline", "ceilings", "build"]
    # Half an hour is enough for what matters most.
    assert {"tests", "kernels", "sanitize", "memory", "graphs", "goals"} <= set(calls[2][1])
    assert set(calls[-1][1]) == set(gpu.LIMITS)
    assert len(calls) == len(gpu.schedule(9.5)) <= 7
    with pytest.raises(ValueError, match=r"may take 8\.5 minutes, more than the 8"):
        gpu.schedule(8)


def test_the_simulation_finds_stages_that_end_late_and_limits_that_nobody_plans_with(simulated, monkeypatch):
    assert max(seconds for seconds, _ in simulated(late=90)) > 600
    monkeypatch.setattr(gpu, "LIMITS", dict.fromkeys(gpu.LIMITS, 0.0))
    assert max(seconds for seconds, _ in simulated(late=1)) > 600


def test_every_stage_names_files_and_modules_that_exist(tmp_path):
    for device in ("cpu", "cuda"):
        plan = gpu.Plan(device, False, tmp_path, 0)
        for stage in gpu.LIMITS:
            command = plan.command(stage)
            for name in command:
                assert not name.startswith("benchmarks.") or (ROOT / f"{name.replace('.', '/')}.py").is_file()
                assert not name.startswith("tests/") or (ROOT / name).is_file()
        assert "tests/kernels/test_cuda.py" in plan.command("tests")


def test_a_stage_that_overruns_is_ended(tmp_path, monkeypatch):
    plan = gpu.Plan("cpu", True, tmp_path, 0)
    monkeypatch.setattr(gpu.Plan, "command", lambda *_: [gpu.sys.executable, "-c", "import time; time.sleep(60)"])
    assert gpu.run_stage(plan, "probe", 0.01)["status"].startswith("ended after")


def test_what_a_stage_has_started_ends_with_it(tmp_path, monkeypatch):
    later = f"import time; time.sleep(1.5); open({str(tmp_path / 'late')!r}, 'w')"
    starts = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-S', '-c', {later!r}]); time.sleep(60)"
    monkeypatch.setattr(gpu.Plan, "command", lambda *_: [gpu.sys.executable, "-S", "-c", starts])
    gpu.run_stage(gpu.Plan("cpu", True, tmp_path, 0), "probe", 0.01)
    time.sleep(1.6)
    assert not (tmp_path / "late").exists()


def test_a_dry_run_builds_beside_the_package_and_not_into_it(tmp_path):
    assert "--inplace" in gpu.Plan("cpu", False, tmp_path, 0).command("build")
    command = gpu.Plan("cpu", True, tmp_path, 0).command("build")
    assert "--inplace" not in command and Path(command[command.index("--build-lib") + 1]).is_relative_to(tmp_path)


def test_scaling_starts_no_point_that_would_take_longer_than_is_left(tmp_path, monkeypatch, capsys):
    """Points of a minute, on a clock of its own, in eight minutes."""
    clock = [0.0]
    monkeypatch.setattr(train.time, "monotonic", lambda: clock[0])

    def points(*_, **__):
        for number in range(20):
            clock[0] += 60
            yield [{"property": "tokens", "value": number, "variant": "slamkern"}]

    monkeypatch.setattr(train, "scaling_rows", points)
    options = ["--scaling", "only", "--device", "cpu", "--dry-run", "--minutes", "7.9", "--results", str(tmp_path)]
    assert train.main(options) == 0
    assert clock[0] == 7 * 60 and "no time was left" in capsys.readouterr().out


def test_data_lie_in_the_checkout_or_beside_it(tmp_path, monkeypatch):
    checkout = tmp_path / "work" / "checkout"
    monkeypatch.setattr(workload, "_CHECKOUT", checkout)
    assert workload.shared_data("pairs") is None
    for folder in (checkout.parent, checkout):
        (folder / "shared" / "data" / "pairs").mkdir(parents=True)
        assert workload.shared_data("pairs") == folder / "shared" / "data" / "pairs"


def test_a_headline_on_a_gpu_is_not_of_the_embedded_corpus_unless_it_is_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(headline, "shared_data", lambda _: None)
    monkeypatch.setattr(headline, "profile_rows", lambda options, **_: pytest.fail(options.data))
    assert headline.main(["--device", "cuda"]) == 2
    assert "--data corpus:" in capsys.readouterr().err
    with pytest.raises(pytest.fail.Exception, match="corpus:"):
        headline.main(["--device", "cuda", "--data", "corpus:"])
