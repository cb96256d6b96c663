"""The benchmark suite: every stage runs dry, numbers are checked arithmetic, tables follow from the files."""

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("rich")
from support.kernel_checks import DEVICE

import slamkern.kernels
from benchmarks import (
    ceilings,
    figures,
    fp8,
    goals,
    gpu,
    kernels,
    layers,
    probe,
    providers,
    readme,
    results,
    sanitize,
    streaming,
    summary,
    tables,
    wheels,
)
from benchmarks.operations import Workload, products
from benchmarks.shapes import TINY
from benchmarks.timing import Case, interleaved
from slamkern import record_stats
from slamkern.data.tokenization import tokenize_texts
from slamkern.ops.dispatch import backends
from slamkern.probe.collect import probe_batches

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]


def test_cases_take_turns_and_preparation_is_not_timed():
    order = []

    def case(name):
        return Case(lambda state: order.append((name, state)), lambda: name.upper())

    times = interleaved({"a": case("a"), "b": case("b")}, CPU, rounds=4, warmup=0)
    assert [name for name, _ in order] == list("abbaabba")
    assert set(order) == {("a", "A"), ("b", "B")}
    assert times["a"].rounds == 4 and times["a"].low_ms <= times["a"].median_ms <= times["a"].high_ms


def test_no_time_left_still_gives_three_rounds():
    assert interleaved({"a": Case(lambda _: None)}, CPU, rounds=50, seconds=0)["a"].rounds == 3


@pytest.mark.parametrize("provider", ["torch", "liger", "slamkern reference", "slamkern native"])
def test_a_provider_computes_every_operation_or_says_why_not(provider):
    work = Workload(TINY, 40, 40, torch.float32, CPU, (providers.TORCH, provider))
    for operation in kernels.operations(work):
        row = next(r for r in kernels.measure(operation, [], rounds=1, seconds=9) if r["provider"] == provider)
        if "absent" in row:
            assert provider not in ("torch", "slamkern reference"), row["absent"]
            assert not row["absent"].startswith(("failed", "wrong")), row["absent"]


@pytest.mark.skipif(backends("cpu")["triton"] is not None, reason="needs Triton, interpreted")
def test_triton_is_called_as_it_wants_to_be():
    work = Workload(TINY, 40, 40, torch.float32, CPU, ("torch", "slamkern triton"))
    for operation in products(work):
        ready, absent = kernels.first_calls(operation)
        assert not absent
        assert "slamkern triton" in ready


def test_a_wrong_result_has_no_time(monkeypatch):
    monkeypatch.setattr(providers, "swiglu", lambda provider, device: lambda g, u: g if provider == "liger" else g * u)
    work = Workload(TINY, 40, 40, torch.float32, CPU, ("torch", "liger"))
    rows = kernels.measure(next(kernels.operations(work)), [], rounds=1, seconds=9)
    assert "median_ms" in rows[0] and "wrong result" in rows[1]["absent"]


def test_bandwidth_and_share_follow_from_bytes_and_time():
    work = Workload(TINY, 40, 40, torch.float32, CPU, ("torch",))
    ceiling = [{"ceiling": "copy", "dtype": "float32", "gbps": 10.0}]
    row = kernels.measure(next(kernels.operations(work)), ceiling, rounds=3, seconds=9)[0]
    assert row["bytes"] == 3 * 40 * 48 * 4
    assert row["gbps"] == pytest.approx(row["bytes"] / (row["median_ms"] * 1e-3) / 1e9)
    assert row["share"] == pytest.approx(row["gbps"] / 10)


def test_every_stage_runs_dry_and_keeps_the_rows_of_the_others(tmp_path, capsys):
    options = ["--dry-run", "--device", "cpu", "--results", str(tmp_path)]
    for stage in (ceilings, sanitize, kernels, probe, layers, fp8, goals, streaming):
        assert stage.main(options) == 0
    (path,) = tmp_path.glob("*.json")
    stages = json.loads(path.read_text())["stages"]
    assert set(stages) == {"ceilings", "sanitize", "kernels", "probe", "layers", "fp8", "goals", "streaming"}
    assert all(stage["rows"] and stage["environment"]["torch"] == torch.__version__ for stage in stages.values())
    variants = [row["variant"] for row in stages["probe"]["rows"]]
    assert variants == ["unpatched", "unpatched, packed", "forward hooks", "slamkern, padded", "slamkern"]
    assert len([row for row in stages["streaming"]["rows"] if "peak_rss_gb" in row]) == 5
    assert all(row["met"] is None and row["note"] for row in stages["goals"]["rows"])


def test_the_one_command_runs_stages_in_processes_and_keeps_those_of_earlier_calls(tmp_path, capsys):
    options = ["--dry-run", "--device", "cpu", "--results", str(tmp_path)]
    assert gpu.main([*options, "--only", "ceilings", "train", "--minutes", "2"]) == 0
    out = capsys.readouterr().out
    assert "python -m benchmarks.gpu --minutes 9 --only train" in out
    assert gpu.main([*options, "--only", "headline"]) == 0
    (path,) = tmp_path.glob("*.json")
    stages = json.loads(path.read_text())["stages"]
    assert [(row["stage"], row["status"]) for row in stages["run"]["rows"]] == [("ceilings", "ok"), ("headline", "ok")]
    numbers = {row["variant"]: "absent" not in row for row in stages["headline"]["rows"]}
    assert numbers == {"slamkern": True, "authors": True, "liger_freeze": False}  # the last needs a GPU


def test_every_call_takes_ten_minutes_at_most_even_if_every_stage_overruns(tmp_path, monkeypatch, capsys):
    """A simulation: each stage takes all of its limit and is ended there; each call names the command of the next."""
    clock = [0.0]
    monkeypatch.setattr(gpu.time, "monotonic", lambda: clock[0])

    def overrun(plan, stage, limit):
        clock[0] += 60 * limit + 1  # what it takes to end it
        return {"stage": stage, "status": "ended", "seconds": 60 * limit, "note": ""}

    monkeypatch.setattr(gpu, "run_stage", overrun)
    calls, command = [], ["--minutes", "9.5"]
    while command:
        started = clock[0]
        gpu.main([*command, "--device", "cpu", "--dry-run", "--results", str(tmp_path)])
        assert clock[0] - started <= 600
        (path,) = tmp_path.glob("*.json")
        calls.append([row["stage"] for row in json.loads(path.read_text())["stages"]["run"]["rows"]])
        last = capsys.readouterr().out.strip().splitlines()[-1]
        command = last.split()[3:] if last.startswith("python -m benchmarks.gpu") else []
    assert calls[0] == ["build", "ceilings", "headline"]
    assert set(calls[-1]) == set(gpu.LIMITS)
    assert len(calls) == len(gpu.schedule(9.5)) <= 7
    with pytest.raises(ValueError, match=r"may take 9\.0 minutes, more than the 8"):
        gpu.schedule(8)


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


def test_the_sanitizer_launches_every_kernel():
    pytest.importorskip("triton")
    functions = {name for name in slamkern.kernels.__all__ if name.islower()}
    assert {name for name, _ in sanitize.launches(DEVICE)} == functions - {"plan_rows", "unavailable_reason"}


def test_the_sanitizers_summary_is_read():
    done = "36 launches\n========= ERROR SUMMARY: 2 errors\n"
    assert sanitize.verdict("memcheck", done) == {"tool": "memcheck", "kernels": 36, "errors": 2}
    done = "36 launches\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"
    assert sanitize.verdict("racecheck", done) == {"tool": "racecheck", "kernels": 36, "errors": 0}
    assert "Device not supported" in sanitize.verdict("memcheck", "========= Device not supported")["absent"]


def test_hook_baseline_counts_what_the_recorder_counts():
    _, model, tokenizer = probe.model_of(CPU, dry=True)
    _, texts = probe.texts_of(1)
    hooked, recorded = probe.twin(model), probe.twin(model)
    assert all(a is b for a, b in zip(model.parameters(), hooked.parameters(), strict=True))
    hooks = probe.HookStatistics(hooked, [f"model.layers.{i}.mlp.act_fn" for i in range(2)], len(texts), 48)
    with record_stats(recorded, list(texts)) as recorder, torch.inference_mode():
        for batch in probe_batches(tokenize_texts(texts, tokenizer, max_length=1024), 512, packing=False):
            hooks.language_ids = batch.language_ids
            hooked.base_model(input_ids=batch.input_ids, use_cache=False)
            with recorder.tokens(batch.language_ids):
                recorded.base_model(input_ids=batch.input_ids, use_cache=False)
    stats = recorder.stats
    for layer, (total, squares, active) in enumerate(hooks.totals):
        count, mean = stats.count[:, None].double(), stats.mean[:, layer]
        torch.testing.assert_close(total.double() / count, mean, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(squares.double() - count * mean**2, stats.m2[:, layer], rtol=1e-3, atol=1e-6)
        assert torch.equal(active.long(), stats.active[:, layer])


def test_goals_are_met_missed_or_not_measured():
    assert goals.row("g", 0.35, 0.3, "x", "goals", at_most=True)["met"] is True
    assert goals.row("g", 0.9, 0.3, "x", "goals", at_most=False)["met"] is False
    unknown = goals.row("g", 0.9, None, "x", "goals", at_most=False, note="needs a CUDA device")
    assert unknown["met"] is None and unknown["note"] == "needs a CUDA device"


def test_goals_of_a_training_step_are_read_from_its_rows():
    pace = {"slamkern": 1.0, "slamkern_fp8": 0.8, "authors": 4.4, "full_checkpointed": 4.9, "liger_freeze": 1.2}
    train = [{"variant": name, "model": "Llama-2-7B", "against_slamkern": x} for name, x in pace.items()]
    train[0]["useful_utilization"] = 0.71
    point = {"property": "tokens a step", "value": 4096, "shape": "Llama-2-7B"}
    scaling = [point | {"variant": "slamkern", "peak_gb": 21.5}, point | {"variant": "slamkern_fp8", "absent": "why"}]
    rows = {"train": train, "scaling": scaling}
    stage = SimpleNamespace(device=torch.device("cuda"), rows_of=rows.get)
    found = {row["goal"].partition(", ")[2]: (row["measured"], row["met"]) for row in goals.training(stage)}
    assert found["real tokens/s of slamkern / authors"] == (4.4, True)
    assert found["real tokens/s of slamkern / full_checkpointed"] == (4.9, False)
    assert found["real tokens/s of slamkern_fp8 / liger_freeze"] == (pytest.approx(1.5), False)
    assert found["minimum FLOPs a second / rate of a large product"] == (0.71, True)
    assert found["4096 tokens, peak memory of slamkern"] == (21.5, True)
    assert found["4096 tokens, peak memory of slamkern_fp8"] == (None, None)
    train[4] = {"variant": "liger_freeze", "model": "Llama-2-7B", "absent": "liger-kernel is not installed"}
    notes = {row["goal"].partition(", ")[2]: row["note"] for row in goals.training(stage)}
    assert notes["4096 tokens, peak memory of slamkern_fp8"] == "why"
    assert notes["real tokens/s of slamkern / liger_freeze"] == "liger-kernel is not installed"
    assert notes["real tokens/s of slamkern / authors"] is None
    stage.device = CPU
    assert {row["note"] for row in goals.training(stage)} == {"not measured on this device", "needs a CUDA device"}


def test_the_two_runs_of_fp8_are_held_against_each_other():
    losses, unseen = {"model": [2.0, 1.0], "fp8": [2.01, 1.04]}, {"model": [2.0, 1.0], "fp8": [2.0, 1.005]}
    stock, eight = fp8.rows_of(losses, unseen, {"model": "m", "dtype": "float32", "emulated": True})
    assert (eight["largest"], eight["mean"], eight["held_out_difference"]) == pytest.approx((0.04, 0.0225, 0.005))
    assert eight["met"] is False and "largest" not in stock and stock["steps"] == 2
    assert fp8.rows_of(losses | {"fp8": [2.01, 1.009]}, unseen, {})[1]["met"] is True
    text = tables.TABLES["fp8"][1]([stock, eight | {"held_out_unquantized": 1.002}])
    assert "in FP8, emulated" in text and "| 4.00 % | 2.25 % | <= 1.00 %: missed |" in text and "1.0020" in text


def test_tables_are_made_from_the_files_alone(tmp_path):
    rows = [goals.row("speed", 2.0, 3.0, "x", "goals", at_most=False)]
    results.write_stage(CPU, "goals", rows, command="python -m benchmarks.goals", seconds=1.0, folder=tmp_path)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table:goals -->\nold\n<!-- /table -->\nafter <!-- table:probe -->\n<!-- /table -->\n")
    options = [str(page), "--results", str(tmp_path)]
    assert readme.main([*options, "--check"]) == 1
    assert readme.main(options) == 0
    assert readme.main([*options, "--check"]) == 0
    text = page.read_text()
    assert "| speed | >= 2 x | 3 | met | `python -m benchmarks.goals` |" in text and "old" not in text
    assert "*not measured yet: `python -m benchmarks.probe`*" in text
    with pytest.raises(ValueError, match="unknown table 'speeds'; known: summary alignment kernels"):
        readme.fill("<!-- table:speeds -->\n<!-- /table -->", [])


def test_the_pages_and_figures_show_the_committed_results():
    assert readme.main(["--check"]) == 0


def test_the_summary_keeps_cpu_and_gpu_apart():
    step = [{"variant": "full", "model": "M", "against_slamkern": 4.14}, {"variant": "slamkern", "peak_gb": 2.43}]
    cpu = {"device": "Ryzen, 8 threads", "stages": {"train": {"rows": step}}}
    gpu_step = [{"variant": "full", "model": "L", "against_slamkern": 6.0}]
    h100 = {"device": "NVIDIA H100", "stages": {"train": {"rows": gpu_step}}}
    lines = {line[""]: line for line in summary.summary([h100, cpu])}
    full = lines["training step, against full fine-tuning (`full`)"]
    assert (full["CPU"], full["machine"]) == ("4.14 x the speed", "Ryzen, 8 threads, M")
    assert full["GPU"] == "6 x the speed (NVIDIA H100)"
    memory = lines["peak memory of a training step, against `hf_freeze_packed`"]
    assert memory["CPU"] == memory["GPU"] == summary.NOT_MEASURED  # of one of the two there is no row
    assert len(lines) == 6


def test_a_figure_is_drawn_again_only_when_its_numbers_change(tmp_path):
    rows = [{"variant": name, "tokens_per_second": 9.0, "model": "M", "trained_layers": 2} for name in figures.WAYS]
    content = {"device": "d", "stages": {"train": {"environment": {"torch": "2", "date": "2026-01-01"}, "rows": rows}}}
    assert figures.update([content], tmp_path, write=False) == [tmp_path / "step.png"]
    figures.update([content], tmp_path, write=True)
    assert figures.update([content], tmp_path, write=True) == []
    rows[0]["tokens_per_second"] = 10.0
    assert figures.update([content], tmp_path, write=False) == [tmp_path / "step.png"]


def test_wheels_follow_requirements_and_leave_out_what_is_there():
    there = ["torch", "triton", "transformers"]
    every = wheels.required("slamkern", ["test"], there, "3.12")
    assert every["datasets"] == version("datasets") and "pyarrow" in every  # which datasets requires
    assert not {"slamkern", *there} & set(every)
    assert "tokenizers" not in every  # only transformers requires it
    assert "pytest" in every and "pytest" not in wheels.required("slamkern", [], there, "3.12")
    assert set(every) - set(wheels.required("slamkern", ["test"], [*there, "Datasets"], "3.12")) >= {
        "datasets",
        "xxhash",  # nobody else requires it
    }


def test_a_freeze_of_the_other_machine_is_read(tmp_path):
    freeze = tmp_path / "freeze.txt"
    freeze.write_text("# made there\nnumpy==2.5.2\ntorch @ file:///torch.whl\n-e git+https://host/x#egg=x\n")
    assert wheels.names_of([str(freeze), "triton"]) == ["numpy", "torch", "triton"]


def test_an_unknown_requirement_is_one_line(capsys, monkeypatch):
    def required(*_):
        raise PackageNotFoundError("peft")

    monkeypatch.setattr(wheels, "required", required)
    assert wheels.main([]) == 2
    assert capsys.readouterr().err == "error: peft is required but not installed here; its version is unknown\n"
