"""What is made of measured rows: goals, tables, summaries and figures."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("rich")

from benchmarks import (
    figures,
    fp8,
    goals,
    readme,
    results,
    summary,
    tables,
)


def test_goals_are_met_missed_or_not_measured():
    assert goals.row("g", 0.35, 0.3, "x", "goals", at_most=True)["met"] is True
    assert goals.row("g", 0.9, 0.3, "x", "goals", at_most=False)["met"] is False
    unknown = goals.row("g", 0.9, None, "x", "goals", at_most=False, note="needs a CUDA device")
    assert unknown["met"] is None and unknown["note"] == "needs a CUDA device"


def test_goals_of_a_training_step_are_read_from_its_rows():
    pace = {"slamkern": 1.0, "slamkern_fp8": 0.8, "authors": 4.4, "full_checkpointed": 4.9, "liger_freeze": 1.2}
    train = [{"variant": name, "model": "Llama-2-7B", "against_slamkern": x} for name, x in pace.items()]
    train[0]["useful_utilization"] = 0.71
    budgets = [{"shape": "Llama-2-7B", "budget_gb": 24.0, "measured_gb": 21.5, "off_percent": -12.0}]
    budgets.append({"shape": "Llama-2-7B", "budget_gb": 16.0, "absent": "why"})
    # A profile that was cut off does not hide what the headline has measured.
    late = {"variant": "authors", "model": "Llama-2-7B", "absent": "no time was left"}
    rows = {"headline": [train.pop(2)], "train": [*train, late], "memory": budgets}
    train = rows["train"]
    stage = SimpleNamespace(device=torch.device("cuda"), rows_of=lambda stage: rows.get(stage, []))
    found = {row["goal"].partition(", ")[2]: (row["measured"], row["met"]) for row in goals.training(stage)}
    assert found["real tokens/s of slamkern / authors"] == (4.4, True)
    assert found["real tokens/s of slamkern / full_checkpointed"] == (4.9, False)
    assert found["real tokens/s of slamkern_fp8 / liger_freeze"] == (pytest.approx(1.5), False)
    assert found["minimum FLOPs a second / rate of a large product"] == (0.71, True)
    assert found["4096 tokens, frozen weights in bfloat16, peak memory"] == (21.5, True)
    assert found["4096 tokens, frozen weights in bfloat16, expected / measured"] == (12.0, False)
    assert found["4096 tokens, frozen weights in FP8, peak memory"] == (None, None)
    train[3] = {"variant": "liger_freeze", "model": "Llama-2-7B", "absent": "liger-kernel is not installed"}
    notes = {row["goal"].partition(", ")[2]: row["note"] for row in goals.training(stage)}
    assert notes["4096 tokens, frozen weights in FP8, peak memory"] == "why"
    assert notes["real tokens/s of slamkern / liger_freeze"] == "liger-kernel is not installed"
    assert notes["real tokens/s of slamkern / authors"] is None
    stage.device = torch.device("cpu")
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
    results.write_stage(
        torch.device("cpu"), "goals", rows, command="python -m benchmarks.goals", seconds=1.0, folder=tmp_path
    )
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table:goals -->\nold\n<!-- /table -->\nafter <!-- table:probe -->\n<!-- /table -->\n")
    options = [str(page), "--results", str(tmp_path)]
    assert readme.main([*options, "--check"]) == 1
    assert readme.main(options) == 0
    assert readme.main([*options, "--check"]) == 0
    text = page.read_text()
    assert "| speed | >= 2 x | 3 | met | `python -m benchmarks.goals` |" in text and "old" not in text
    assert "*not measured yet: `python -m benchmarks.probe`*" in text
    with pytest.raises(
        ValueError, match="unknown table 'speeds'; known: summary published alignment alignment-long bakeoff"
    ):
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
