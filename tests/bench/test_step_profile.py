"""The profile runs every variant on the same pairs, and would notice one that computes something else."""

import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from slamkern.bench import step_profile as module
from slamkern.bench.launches import launches_of, triton_kernels
from slamkern.bench.runner import Runner
from slamkern.bench.scaling import axes_for, points
from slamkern.bench.step_profile import largest_difference, profile
from slamkern.bench.tables import TrainOptions, curve_check, profile_rows
from slamkern.bench.variants import VARIANTS, Settings
from slamkern.bench.workload import HalfBytes, even_lengths, micro_batches, real_pairs, shape_builder
from slamkern.cli.bench import bench
from slamkern.data.packing import Example
from slamkern.errors import SlamkernError
from slamkern.training.batches import supervised_tokens
from slamkern.training.step_cost import Dimensions

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def rows():
    options = TrainOptions.for_device(CPU, dry=True, pairs=5, padded_batch_size=3, steps=2)
    *_, last = profile_rows(options)
    return {row["variant"]: row for row in last}


def test_every_variant_has_numbers_or_a_reason(rows):
    assert list(rows) == list(VARIANTS)
    assert {name for name, row in rows.items() if "absent" in row} == {"liger_freeze", "liger_mlp", "slamkern_fp8"}
    for row in rows.values():
        if "absent" not in row:
            assert row["tokens_per_second"] > 0 and row["peak_memory_bytes"] > 1e6 and len(row["losses"]) == 2


def test_exact_variants_trace_one_curve_and_others_do_not(rows):
    message, failed = curve_check(list(rows.values()))
    assert not failed and "largest relative difference" in message
    assert sum(row.get("exact", False) for row in rows.values()) == 5
    broken = dict(rows["authors"], losses=[loss * 1.001 for loss in rows["authors"]["losses"]])
    assert curve_check([broken, rows["slamkern"]])[1]
    assert largest_difference([rows["full"], rows["slamkern"]])[0] == 0  # full trains other weights


def test_costs_are_told_apart(rows):
    flops = {name: row["gigaflops_per_token"] for name, row in rows.items() if "absent" not in row}
    # Recomputing costs more, freezing less, packing less again, logits for the supervised rows least.
    chain = ("full_checkpointed", "full", "hf_freeze", "hf_freeze_packed", "slamkern")
    assert [flops[name] for name in chain] == sorted((flops[name] for name in chain), reverse=True)
    # The last FFN also computes the tokens that nobody supervises: at most six products of 64 x 160 a token more.
    minimum = flops["slamkern"] / rows["slamkern"]["flops_vs_minimum"]
    assert minimum <= flops["slamkern"] <= 1.02 * minimum + 6 * 2 * 64 * 160 / 1e9
    assert rows["hf_freeze_grouped"]["padding_share"] < rows["hf_freeze"]["padding_share"]
    assert rows["slamkern"]["padding_share"] == rows["hf_freeze_packed"]["padding_share"] == 0
    assert rows["authors"]["peak_memory_bytes"] < rows["hf_freeze"]["peak_memory_bytes"]
    assert rows["slamkern"]["peak_memory_bytes"] < rows["hf_freeze_packed"]["peak_memory_bytes"]
    assert rows["full"]["trained_parameters"] > rows["hf_freeze"]["trained_parameters"] > 0


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.engine == "transformers"])
def test_a_step_is_the_mean_over_supervised_tokens(name):
    """However a variant cuts the step up: compared with one sequence at a time through the plain model."""
    build = shape_builder("tiny", CPU, torch.float32)
    examples = real_pairs("corpus:4", HalfBytes(), 512, steps=1, pairs=5).steps[0]
    model, total = build().train(), 0.0
    with torch.no_grad():
        for example in examples:
            ids, labels = torch.tensor([example.input_ids]), torch.tensor([example.labels])
            total += float(model(ids, labels=labels, num_items_in_batch=supervised_tokens(examples)).loss)
    runner = Runner(VARIANTS[name], build(), Settings((0, 1), padded_batch_size=3, micro_batch_size=2))
    assert runner.backward(examples) == pytest.approx(total, rel=1e-5)
    runner.close()


def test_layouts_keep_every_example():
    examples = [Example((1,) * n, (1,) * n) for n in (9, 3, 7, 5, 2, 8, 4, 6, 9)]
    for layout in ("padded", "grouped", "packed"):
        cut = micro_batches(examples, layout, padded_batch_size=4, packed_tokens=16)
        assert sorted(len(e.input_ids) for part in cut for e in part) == [2, 3, 4, 5, 6, 7, 8, 9, 9]
    assert [len(part) for part in micro_batches(examples, "padded", padded_batch_size=4, packed_tokens=16)] == [4, 4, 1]


def test_a_variant_out_of_memory_is_a_row_that_says_so(monkeypatch):
    def backward(self, examples):
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(module, "VARIANTS", VARIANTS | {"lora": replace(VARIANTS["hf_freeze"], name="lora")})
    work = even_lengths(16, 32, 512, steps=2)
    settings = Settings(layers=(0,), variants=("slamkern", "lora"))
    original = Runner.backward
    monkeypatch.setattr(
        Runner, "backward", lambda self, e: (backward if self.variant.name == "lora" else original)(self, e)
    )
    *_, (own, other) = profile(shape_builder("tiny", CPU, torch.float32), work, settings)
    assert other["absent"] == "out of memory in step 1" and own["tokens_per_second"] > 0


def test_a_time_limit_keeps_what_was_measured():
    work = even_lengths(8, 16, 512, steps=9)
    settings = Settings(layers=(0,), variants=("hf_freeze", "slamkern"))
    *_, rows = profile(shape_builder("tiny", CPU, torch.float32), work, settings, seconds=0.01)
    assert [len(row["losses"]) for row in rows] == [2, 2]


def test_mistakes_are_one_line():
    with pytest.raises(SlamkernError, match="unknown variant 'fast'; known: full"):
        Settings(layers=(0,), variants=("fast",))
    with pytest.raises(SlamkernError, match="unknown shape 'GPT-5'"):
        shape_builder("GPT-5", CPU, torch.float32)
    with pytest.raises(SlamkernError, match="pairs; 3 steps of 1000 need 3000"):
        real_pairs("corpus:4", HalfBytes(), 512, steps=3, pairs=1000)
    work = even_lengths(16, 32, 512, steps=1)
    with pytest.raises(SlamkernError, match="at least 2"):
        next(profile(shape_builder("tiny", CPU, torch.float32), work, Settings(layers=(0,))))


def test_scaling_varies_one_property_at_a_time():
    base = axes_for(CPU).base
    for name, value, point in points(axes_for(CPU)):
        changed = ["shape", "tokens", "length", "count", "first"]
        different = [field for field in changed if getattr(point, field) != getattr(base, field)]
        assert len(different) <= 1 and value in (getattr(point, field) for field in changed), name


def test_the_command_prints_and_writes(tmp_path):
    sizes = "--shape tiny --data corpus:20 --pairs 2 --padded-batch-size 2 --steps 2 --layers 1 --device cpu"
    options = [*sizes.split(), "--variants", "hf_freeze,slamkern,slamkern_fp8", "--out", str(tmp_path)]
    result = CliRunner().invoke(bench, ["train", *options], catch_exceptions=False)
    assert result.exit_code == 0 and "largest relative difference" in result.stdout
    assert "no number of slamkern_fp8: " in result.stdout
    rows = json.loads((tmp_path / "train.json").read_text())
    assert [row["variant"] for row in rows] == ["hf_freeze", "slamkern", "slamkern_fp8"]


def test_repeats_take_turns_on_a_device_that_holds_one_model(monkeypatch):
    """As on CUDA: one variant after another, all of them again, and the losses of the first time alone."""
    taken = []
    monkeypatch.setattr(module, "_by_turns", lambda device: True)
    settings = Settings(layers=(0,), variants=("hf_freeze_packed", "slamkern"), repeats=2)
    work = even_lengths(8, 16, 512, steps=3)
    *_, rows = profile(shape_builder("tiny", CPU, torch.float32), work, settings, progress=taken.append)
    order = [line.split()[2].rstrip(":") for line in taken]
    assert order == (["slamkern"] * 3 + ["hf_freeze_packed"] * 3) * 2
    for row in rows:
        assert row["timed_steps"] == 4 and len(row["losses"]) == 3
        assert row["tokens_per_second_low"] <= row["tokens_per_second"] <= row["tokens_per_second_high"]


def test_a_variant_that_launched_none_of_its_kernels_has_no_number(monkeypatch):
    monkeypatch.setattr(module, "launches_of", lambda package, events: {})
    settings = Settings(layers=(0,), variants=("hf_freeze", "slamkern"))
    *_, (other, own) = profile(shape_builder("tiny", CPU, torch.float32), even_lengths(8, 16, 512, steps=2), settings)
    assert "no kernel of slamkern.kernels was launched" in own["absent"] and other["tokens_per_second"] > 0


def test_launches_are_counted_by_the_names_of_a_packages_kernels():
    pytest.importorskip("triton")
    import slamkern.kernels

    assert callable(slamkern.kernels.swiglu)  # loads the file of the kernel
    names = sorted(triton_kernels("slamkern.kernels"))
    assert len(names) > 1
    events = [names[0], "ampere_bf16_gemm", names[0], "void slamkern::glu<float>(float*)"]
    assert launches_of("slamkern.kernels", events) == {names[0]: 2, events[3]: 1}
    assert launches_of("liger_kernel", events) == {}
    assert launches_of("slamkern.kernels", []) is None  # nothing recorded says nothing


def test_ligers_whole_ffn_wastes_half_of_a_frozen_layers_backward():
    """32 layers of 7B, six trained from layer 0 on: 5 uncounted products a layer beside 4 of cuBLAS."""
    dimensions = Dimensions(4096, 11008, 32, 32, 4096, 4096, 32000)
    product = 2 * 4096 * 11008
    uncounted = VARIANTS["liger_mlp"].uncounted_flops(dimensions, 1, 0)
    assert uncounted == (2 + 3) * 32 * product
    assert VARIANTS["liger_mlp"].uncounted_flops(dimensions, 1, 26) == (2 * 32 + 3 * 6) * product
    ffns = uncounted + (1 + 3) * 32 * product  # down, and the gradients of all three weights, in every layer
    needed = (3 * 32 + 3 * 31 + 1 + 2 * 6) * product  # as in Dimensions.minimum_flops
    assert ffns / needed == pytest.approx(1.43, abs=0.01)
    assert VARIANTS["liger_freeze"].uncounted_flops(dimensions, 1, 0) == 0
