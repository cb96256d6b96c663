"""The benchmark suite: every stage runs dry, numbers are checked arithmetic, tables follow from the files."""

import json

import pytest
import torch

pytest.importorskip("rich")
from support.graphs import Recorded
from support.kernel_checks import DEVICE

import slamkern.kernels
from benchmarks import (
    ceilings,
    dry_run,
    fp8,
    fp8_accumulation,
    goals,
    graphs,
    host_time,
    kernels,
    layers,
    memory,
    operations,
    probe,
    providers,
    sanitize,
    streaming,
)
from benchmarks.launch_counts import counted
from benchmarks.operations import Workload, products
from benchmarks.shapes import TINY
from benchmarks.timing import Case, interleaved
from slamkern import record_stats
from slamkern.bench.workload import SHAPES, shape_builder
from slamkern.data.tokenization import tokenize_texts
from slamkern.ops.dispatch import backends
from slamkern.pipeline.config import load_config
from slamkern.pipeline.launch import read_launch
from slamkern.probe.collect import probe_batches

CPU = torch.device("cpu")


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


@pytest.mark.parametrize(
    "provider", ["torch", "liger", "liger mlp", "transformer engine", "slamkern reference", "slamkern native"]
)
def test_a_provider_computes_every_operation_or_says_why_not(provider):
    work = Workload(TINY, 40, 40, torch.float32, CPU, tuple({providers.TORCH, provider} & set(providers.PROVIDERS)))
    shown = set()
    for operation in kernels.operations(work):
        shown |= operation.cases.keys()
        rows = kernels.measure(operation, [], rounds=1, seconds=9)
        row = next((r for r in rows if r["provider"] == provider), None)
        if row is None:
            assert provider == "transformer engine" or (provider == "liger mlp" and "FFN" not in operation.name)
        elif "absent" in row:
            plans_nothing = row["op"] == "plan of statistics" and row["absent"] == "plans nothing"
            assert plans_nothing or provider not in ("torch", "slamkern reference"), row["absent"]
            assert not row["absent"].startswith(("failed", "wrong")), row["absent"]
    assert provider in shown


@pytest.mark.skipif(backends("cpu")["triton"] is not None, reason="needs Triton, interpreted")
def test_triton_is_called_as_it_wants_to_be():
    work = Workload(TINY, 40, 40, torch.float32, CPU, ("torch", "slamkern triton"))
    for operation in products(work):
        ready, absent, _ = kernels.first_calls(operation)
        assert "slamkern triton" in ready, absent


@pytest.mark.skipif(backends(DEVICE)["triton"] is not None, reason="needs Triton, interpreted without a GPU")
def test_statistics_are_timed_as_a_layer_records_them_and_their_plan_by_itself():
    work = Workload(TINY, 40, 40, torch.float32, torch.device(DEVICE), ("slamkern triton",))
    cases = {(op.name, op.languages, op.layout): op.cases["slamkern triton"] for op in operations.elementwise(work)}
    statistics = cases["statistics", 10, "mixed"]
    counts = counted(lambda: statistics.run(statistics.prepare()))
    assert counts.launches == ["swiglu_stats_kernel"] and counts.allocations == 1  # hidden
    plan = cases["plan of statistics", 10, "mixed"]
    counts = counted(lambda: plan.run(plan.prepare()))
    assert not counts.launches and counts.allocations > 20


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
    stages_here = (ceilings, sanitize, kernels, host_time, probe, layers, fp8, fp8_accumulation, memory, graphs, goals)
    for stage in (*stages_here, streaming):
        assert stage.main(options) == 0
    (path,) = tmp_path.glob("*.json")
    stages = json.loads(path.read_text())["stages"]
    assert set(stages) == {stage.__name__.removeprefix("benchmarks.") for stage in (*stages_here, streaming)}
    assert all(stage["rows"] and stage["environment"]["torch"] == torch.__version__ for stage in stages.values())
    variants = [row["variant"] for row in stages["probe"]["rows"]]
    assert variants == ["unpatched", "unpatched, packed", "forward hooks", "slamkern, padded", "slamkern"]
    assert len([row for row in stages["streaming"]["rows"] if "peak_rss_gb" in row]) == 5
    forwards = [(row["mode"], row["languages"]) for row in stages["host_time"]["rows"]]
    assert forwards == [("inference", 0), ("inference", 10), ("training", 0), ("training", 10)]
    assert all(row["met"] is None and row["note"] for row in stages["goals"]["rows"])


def test_the_stage_of_cuda_graphs_measures_the_same_numbers(monkeypatch):
    """With stand-ins for the graphs: what it does on a GPU runs here too."""
    monkeypatch.setattr("slamkern.modules.cuda_graphs.CudaCapture", Recorded)
    rows = list(graphs.rows_of(shape_builder("tiny", CPU, torch.float32)(), "tiny", 64, 32, rounds=3))
    assert [row["what"] for row in rows] == ["training", "probe"]
    assert all(0 <= row["off"] < 1e-5 and row["faster_by"] > 0 for row in rows)


def test_tensor_cores_err_by_cut_off_bits_and_sums_every_128_terms_bound_that():
    torch.manual_seed(0)
    left, right = torch.randn(8, 4096).bfloat16().float(), torch.randn(4096, 8).bfloat16().float()
    exact = left.double() @ right.double()

    def error(product):
        return float((product.double() - exact).norm() / exact.norm())

    fast, promoted = error(fp8_accumulation.hardware(left, right)), error(fp8_accumulation.hardware(left, right, 128))
    assert 1e-7 < promoted < fast / 4 < fast < 1e-2
    assert fast < error(fp8_accumulation.surrogate(left, right)) < 1e-2
    coherent = fp8_accumulation.hardware(left.abs(), right.abs())
    assert float(coherent.sum() / (left.abs().double() @ right.abs().double()).sum()) < 0.97  # what is cut off adds up
    one = fp8_accumulation.hardware(torch.tensor([[1.0, 2.0**-14]]), torch.ones(2, 1))
    assert one == 1.0  # below the last bit of the largest term


def test_the_sanitizer_launches_every_kernel_and_every_branch_of_it(monkeypatch):
    pytest.importorskip("triton")
    functions = {name for name in slamkern.kernels.__all__ if name.islower()} - {"unavailable_reason"}
    given = {name: [] for name in functions}
    for name in functions:
        call = getattr(slamkern.kernels, name)
        noting = lambda *a, name=name, call=call: given[name].append((a, result := call(*a))) or result  # noqa: E731
        monkeypatch.setattr(slamkern.kernels, name, noting)
    assert {name for name, _ in sanitize.launches(DEVICE)} == functions - {"plan_rows"}
    plans = [plan for _, plan in given["plan_rows"]]
    used = [arguments[-1] for arguments, _ in given["swiglu_stats"]]
    for plan in plans:
        assert plan.parts[:, 5].max() > 1 and sum(plan is one for one in used) == 2
    assert len(plans) == 3 and {need_gate for (*_, need_gate), _ in given["swiglu_backward"]} == {True, False}
    if given["quantize_rows"]:
        assert {multiplier is None for (_, multiplier), _ in given["quantize_rows"]} == {True, False}


def test_the_sanitizers_summary_is_read():
    done = "36 launches\n========= ERROR SUMMARY: 2 errors\n"
    assert sanitize.verdict("memcheck", done) == {"tool": "memcheck", "kernels": 36, "errors": 2}
    done = "36 launches\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"
    assert sanitize.verdict("racecheck", done) == {"tool": "racecheck", "kernels": 36, "errors": 0}
    assert "Device not supported" in sanitize.verdict("memcheck", "========= Device not supported")["absent"]


def test_each_tool_of_the_sanitizer_has_its_share_of_the_time(monkeypatch):
    asked = {}
    monkeypatch.setattr(sanitize, "launch_every_kernel", lambda _: 0)
    monkeypatch.setattr(sanitize, "check", lambda tool, seconds: asked.setdefault(tool, seconds) and {"tool": tool})
    monkeypatch.setattr(sanitize.Stage, "save", lambda _: None)
    assert sanitize.main(["--device", "cuda", "--minutes", "4"]) == 0
    assert set(asked) == {"memcheck", "racecheck", "initcheck", "synccheck"} and min(asked.values()) > 50


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


def test_every_preset_is_a_configuration_with_a_launch_that_can_be_planned():
    for name, (shape, launch, _) in dry_run.PLANNED.items():
        config = load_config(dry_run.PRESETS / f"{name}.yaml")
        job = read_launch(dry_run.PRESETS / f"{launch}.accelerate.yaml")
        assert config.train.gradient_accumulation_steps % job.processes == 0  # micro-batches stay whole
        assert shape in SHAPES and config.model.dtype == "bfloat16"
