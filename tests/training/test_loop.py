import json
import math
from dataclasses import replace

import pytest
import torch
from support.tiny_models import tiny_model
from support.tiny_training import CONFIG, PAIRS, SELECTION, lines, same_weights, selected

from slamkern import patch_model
from slamkern.errors import SlamkernError
from slamkern.files import load_tensors
from slamkern.selection.layers import LayerSelection
from slamkern.training.batches import StepPlan
from slamkern.training.checkpoint import list_checkpoints, load_delta


def test_trains_the_selected_tensors_and_nothing_else(fit, tmp_path):
    model, before = selected(), tiny_model()
    _, result = fit(model=model, out=tmp_path, selection=SELECTION, held_out=PAIRS[:3])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 4
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]) == (name not in trained), name
    assert all(parameter.grad is None for parameter in model.parameters())
    assert result.steps == 6 and result.loss_last < result.loss_first
    assert result.held_out_loss[1] < result.held_out_loss[0]
    assert result.trained_parameters == 4 * 32 * 48
    assert not model.training and model.config._attn_implementation == "sdpa"
    fresh = tiny_model()
    load_delta(fresh, tmp_path)
    assert same_weights(fresh, model)


def test_one_line_of_metrics_a_step(fit, tmp_path):
    _, result = fit(out=tmp_path)
    rows = lines(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in rows] == result.losses
    assert rows[0]["lr"] == 1e-2 and rows[-1]["lr"] == pytest.approx(1e-2 * (1 + math.cos(math.pi * 5 / 6)) / 2)
    assert result.tokens == sum(row["tokens"] for row in rows) and result.padding_share == 0
    # Twelve pairs, two epochs: the response and its end are supervised, seen from the token before.
    assert sum(row["supervised_tokens"] for row in rows) == 2 * sum(len(pair.target) + 1 for pair in PAIRS)
    assert all(row["tokens_per_second"] > 0 and row["peak_memory_bytes"] > 0 and row["grad_norm"] > 0 for row in rows)
    samples = (tmp_path / "samples.txt").read_text()
    assert samples.count("[learned") == 3 and "e i n s   0" in samples
    assert json.loads((tmp_path / "run.json").read_text())["settings"]["config"]["learning_rate"] == 1e-2


def test_loss_is_the_mean_over_the_supervised_tokens_of_the_model_itself(fit, tiny_tokenizer):
    from slamkern.training.batches import tokenize

    examples = tokenize(PAIRS, tiny_tokenizer, CONFIG)
    plan = StepPlan([len(example.input_ids) for example in examples], CONFIG)
    total, count, model = 0.0, 0, tiny_model()
    for index in (index for batch in plan[0] for index in batch):
        example = examples[index]
        # Stock transformers: labels shifted inside, mean over the supervised tokens.
        loss = model(torch.tensor([example.input_ids]), labels=torch.tensor([example.labels])).loss
        supervised = sum(label != -100 for label in example.labels)
        total, count = total + loss.item() * supervised, count + supervised
    _, result = fit(replace(CONFIG, max_steps=1))
    assert result.loss_first == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        # Six small micro-batches of two sequences, or one large one of all: the same step.
        {"tokens_per_batch": 48, "gradient_accumulation_steps": 6},
        {"tokens_per_batch": 4096, "gradient_accumulation_steps": 1, "packing": False},
        {"tokens_per_batch": 4096, "gradient_accumulation_steps": 1, "gradient_checkpointing": True},
    ],
    ids=["accumulated", "padded", "recomputed"],
)
def test_how_a_step_is_computed_does_not_matter(fit, changes):
    whole = replace(
        CONFIG, num_train_epochs=3, tokens_per_batch=4096, gradient_accumulation_steps=1, learning_rate=1e-3
    )
    reference, expected = fit(whole)
    model, result = fit(replace(whole, **changes))
    assert result.losses == pytest.approx(expected.losses, rel=1e-4)
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-4, atol=2e-5, msg=name)
    assert (result.padding_share > 0) == (not replace(whole, **changes).packing)


def test_patched_model_trains_like_the_stock_one(fit):
    _, expected = fit()
    _, result = fit(model=patch_model(selected()))
    assert result.losses == pytest.approx(expected.losses, rel=1e-3)


def test_bfloat16_model_keeps_its_dtype_and_learns(fit, tmp_path):
    config = replace(CONFIG, learning_rate=1e-3, save_steps=2)
    model, result = fit(config, model=selected().bfloat16(), out=tmp_path)
    assert result.loss_last < result.loss_first
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    checkpoint_file = list_checkpoints(tmp_path)[-1] / "training-state.safetensors"
    assert any(name.startswith("optimizer/master/") for name in load_tensors(checkpoint_file, "state")[0])


# Step 2 is inside the first epoch, step 4 inside the second, step 3 between them.


def test_the_callers_random_state_is_kept(fit):
    torch.manual_seed(5)
    expected = torch.rand(2)
    model = selected()
    torch.manual_seed(5)
    fit(replace(CONFIG, max_steps=1), model=model)
    assert torch.equal(torch.rand(2), expected)


def test_full_fine_tuning_trains_head_and_embeddings_too(fit):
    model, result = fit(replace(CONFIG, learning_rate=1e-3), model=tiny_model())
    assert result.trained_parameters == result.total_parameters and result.loss_last < result.loss_first
    assert not any(torch.equal(tensor, model.state_dict()[name]) for name, tensor in tiny_model().state_dict().items())


def test_tensorboard_events_are_written(fit, tmp_path):
    pytest.importorskip("tensorboard")
    fit(replace(CONFIG, report_to="tensorboard", max_steps=1), out=tmp_path)
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": tiny_model().requires_grad_(False)}, "apply_selection"),
        ({"selection": LayerSelection(layers=(1,))}, r"names layers \[1\], but \[0, 2\]"),
        ({"pairs": []}, "no pairs"),
        ({"config": replace(CONFIG, max_length=5)}, "max_length=5"),
        ({"config": replace(CONFIG, report_to="tensorboard")}, "needs output_dir"),
        ({"resume": True}, "needs output_dir"),
        ({"model": selected().to("meta")}, "meta"),
        ({"config": replace(CONFIG, optimizer_offload=True)}, "in host memory already"),
    ],
    ids=["frozen", "selection", "no pairs", "too long", "tensorboard", "resume", "meta", "offload"],
)
def test_bad_input_is_one_clear_line(fit, options, words):
    with pytest.raises(SlamkernError, match=words) as caught:
        fit(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "field",
    ["learning_rate", "num_train_epochs", "gradient_accumulation_steps", "warmup_steps", "max_steps", "max_grad_norm"],
)
def test_recipe_refuses_values_that_cannot_work(field):
    with pytest.raises(SlamkernError, match=field):
        replace(CONFIG, **{field: -1})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr_scheduler_type": "constant", "warmup_steps": 2}, "use constant_with_warmup"),
        ({"lr_scheduler_type": "linear"}, "unknown lr_scheduler_type 'linear'; use cosine or constant"),
        ({"report_to": "wandb"}, "unknown report_to 'wandb'"),
        ({"adam_beta2": 1.0}, "adam_beta2 is 1.0"),
        ({"save_steps": 0}, "save_steps is 0; it must be at least 1, or None"),
        ({"max_steps": 10**20}, r"max_steps is 10{20}; it must be below 2\^31"),
        ({"tokens_per_batch": 2**31}, r"tokens_per_batch is 2147483648; it must be below 2\^31"),
        ({"seed": 2**63}, r"seed is 9223372036854775808; it must be at least 0 and below 2\^63"),
        ({"seed": -1}, "seed is -1"),
        *(({name: value}, f"{name} is {value!r}; it must be a finite number") for value in (float("inf"), True, "1")
          for name in ("learning_rate", "max_grad_norm", "weight_decay", "adam_epsilon", "save_minutes")),
        *(({name: value}, f"{name} is {value!r}; it must be a whole number") for value in (True, 1.5, "1")
          for name in ("max_steps", "num_train_epochs", "seed", "warmup_steps")),
        ({"packing": 1}, "packing is 1; it must be True or False"),
    ],
)  # fmt: skip
def test_recipe_refuses_choices_that_do_not_exist(changes, words):
    with pytest.raises(SlamkernError, match=words):
        replace(CONFIG, **changes)


def test_more_epochs_than_anybody_waits_for_are_refused_at_once():
    with pytest.raises(SlamkernError, match=r"is 1,000,000, which is [\d,]+ epochs of 10 examples; at most 100,000"):
        StepPlan([20] * 10, replace(CONFIG, max_steps=1_000_000))


def test_max_steps_runs_as_many_epochs_as_it_takes():
    lengths = [20] * 10
    assert len(StepPlan(lengths, replace(CONFIG, max_steps=11))) == 11
    epochs = StepPlan(lengths, CONFIG)
    assert [len(step) for step in epochs] == [2, 2, 1, 2, 2, 1]  # a step never spans two epochs
    assert sorted(index for step in epochs[:3] for batch in step for index in batch) == list(range(10))
