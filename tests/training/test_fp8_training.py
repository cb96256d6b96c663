"""Training with frozen weights in FP8: the same loop, the same files, and nothing but the selected tensors changed."""

import logging
from dataclasses import replace

import pytest
import torch
from support.tiny_models import tiny_model
from support.tiny_training import CONFIG, PAIRS, SELECTION, lines, same_weights, selected
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import slamkern
from slamkern.bench.runner import Runner
from slamkern.bench.variants import VARIANTS, Settings
from slamkern.bench.workload import HalfBytes, real_pairs, shape_builder
from slamkern.errors import SlamkernError
from slamkern.modules.fp8_linear import FP8Linear
from slamkern.training import fp8, loop
from slamkern.training.checkpoint import load_delta
from slamkern.training.fp8 import frozen_in_fp8
from slamkern.training.memory_budget import footprint

EIGHT = replace(CONFIG, frozen_precision="fp8")


def test_training_changes_the_selected_tensors_and_nothing_else(fit, tmp_path, caplog):
    before = tiny_model()
    with caplog.at_level(logging.INFO, "slamkern"):
        model, result = fit(EIGHT, out=tmp_path / "run", selection=SELECTION, held_out=PAIRS[:3])
    assert "FP8: 24 frozen weights" in caplog.text and "FP8 is emulated on this CPU" in caplog.text
    _, exact = fit(CONFIG)
    assert result.losses != exact.losses and result.loss_last < result.loss_first
    assert result.losses == pytest.approx(exact.losses, rel=0.1)
    for name, tensor in before.state_dict().items():
        trained = any(f"layers.{i}.mlp.{p}_proj" in name for i in SELECTION.layers for p in ("up", "down"))
        assert torch.equal(tensor, model.state_dict()[name]) != trained, name
    assert not any(isinstance(module, FP8Linear) for module in model.modules())
    fresh = tiny_model()
    load_delta(fresh, tmp_path / "run")
    assert same_weights(fresh, model)


@pytest.mark.parametrize(
    "changes",
    [
        {"gradient_checkpointing": True},
        {"memory_budget": "1GB"},
        {"tokens_per_batch": 48, "gradient_accumulation_steps": 6},
    ],
    ids=["checkpointing", "budget", "accumulated"],
)
def test_how_a_step_is_computed_does_not_matter(fit, changes):
    def model():
        return slamkern.patch_model(selected())

    whole = replace(EIGHT, tokens_per_batch=4096, gradient_accumulation_steps=1, learning_rate=1e-3)
    _, expected = fit(whole, model=model())
    _, result = fit(replace(whole, **changes), model=model())
    assert result.losses == pytest.approx(expected.losses, rel=1e-3)


def test_within_a_budget_ffns_are_recomputed(fit, caplog):
    def losses(budget):
        return fit(replace(EIGHT, memory_budget=budget), model=slamkern.patch_model(selected()))[1].losses

    plenty = losses("1GB")
    with frozen_in_fp8(model := slamkern.patch_model(selected()).train(), keep_transposed=False):
        measured = footprint(model, length=24, accumulation=2)
    caplog.clear()  # where the command line ran before in this process, the first one was logged too
    with caplog.at_level(logging.INFO, "slamkern.training.memory_budget"):
        tight = losses(f"{(measured.total(46) + measured.total(46, measured.recomputable)) // 2}")
    assert "recomputed in" in caplog.text and "recomputed in 0" not in caplog.text
    assert plenty == tight


def test_a_killed_run_resumes_bitwise(fit, tmp_path, monkeypatch):
    unbroken, expected = fit(replace(EIGHT, save_steps=2), out=tmp_path / "a", selection=SELECTION)
    original = loop.learning_rate

    def kill(done, *rest, **options):
        if done == 3:
            raise OSError("killed")
        return original(done, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "learning_rate", kill)
        with pytest.raises(OSError, match="killed"):
            fit(replace(EIGHT, save_steps=2), model=(half := selected()), out=tmp_path / "b", selection=SELECTION)
    assert not any(isinstance(module, FP8Linear) for module in half.modules()) and len(lines(tmp_path / "b")) == 3
    resumed, result = fit(
        replace(EIGHT, save_steps=2), model=tiny_model(), out=tmp_path / "b", selection=SELECTION, resume=True
    )
    assert same_weights(resumed, unbroken) and result.losses == expected.losses
    with pytest.raises(SlamkernError, match=r"config\.frozen_precision was .fp8., now .model."):
        fit(CONFIG, model=selected(), out=tmp_path / "b", selection=SELECTION, resume=True)


def test_the_variant_traces_nearly_the_curve_of_slamkern():
    build = shape_builder("tiny", torch.device("cpu"), torch.float32)
    steps = real_pairs("corpus:20", HalfBytes(), 512, steps=3, pairs=4).steps
    curves, resident = [], []
    for name in ("slamkern", "slamkern_fp8"):
        runner = Runner(VARIANTS[name], build(), Settings((0, 1)))
        curve = []
        for examples in steps:
            curve.append(runner.backward(examples))
            runner.update()
        resident.append(runner.resident_bytes())
        runner.close()
        assert not any(isinstance(module, FP8Linear) for module in runner.model.modules())
        curves.append(curve)
    assert curves[0] != curves[1] and curves[1] == pytest.approx(curves[0], rel=0.01)
    assert resident[1] > resident[0] and not VARIANTS["slamkern_fp8"].exact
    assert "emulated" in VARIANTS["slamkern_fp8"].unavailable_reason(torch.device("cpu"))


def test_an_unknown_precision_is_refused():
    with pytest.raises(SlamkernError, match="unknown frozen_precision 'int8'; use model or fp8"):
        slamkern.TrainConfig(frozen_precision="int8")


def test_the_command_line_and_yaml_take_it(tmp_path, capsys):
    from slamkern.cli.main import main
    from slamkern.pipeline.config import load_config

    (tmp_path / "run.yaml").write_text("train: {frozen_precision: fp8}")
    assert load_config(tmp_path / "run.yaml").train.frozen_precision == "fp8"
    assert load_config().train.frozen_precision == "model"
    options = ["--selection", "s", "--out", str(tmp_path / "out"), "--frozen-precision", "int8"]
    assert main(["train", *options]) == 2
    error = capsys.readouterr().err
    assert "command line: train.frozen_precision: Input should be 'model' or 'fp8', not 'int8'" in error


def test_originals_are_put_away_in_pinned_memory(monkeypatch):
    """Noted for CUDA tensors without data: without a GPU nothing can be pinned."""
    made, empty = [], torch.empty

    def noted(*shape, pin_memory=False, **options):
        if pin_memory:
            made.append((tuple(shape[0]), options["device"]))
        return empty(*shape, **options)

    monkeypatch.setattr(fp8, "_check", lambda *_: None)  # it asks the GPU for its capability
    model = slamkern.patch_model(selected()).to(torch.bfloat16)
    with FakeTensorMode():
        for module in model.modules():
            for name, weight in module.named_parameters(recurse=False):
                there = torch.empty(weight.shape, dtype=weight.dtype, device="cuda")
                setattr(module, name, nn.Parameter(there, requires_grad=weight.requires_grad))
        monkeypatch.setattr(torch, "empty", noted)
        with frozen_in_fp8(model):
            chosen = [module for module in model.modules() if isinstance(module, FP8Linear)]
            assert chosen and made == [(tuple(module.weight.shape), "cpu") for module in chosen]
