import json
import math
import os
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from conftest import tiny_model

from slamkern import checkpoint, patch_model, training
from slamkern.checkpoint import list_checkpoints, load_delta
from slamkern.data import Pair
from slamkern.errors import SlamkernError
from slamkern.recipe import TrainConfig
from slamkern.selection import LayerSelection
from slamkern.steps import plan_steps
from slamkern.trainable import apply_selection
from slamkern.training import train

WORDS = ["eins", "zwei", "drei", "vier", "acht", "zehn"]
PAIRS = [
    Pair(f"{word} {index}", f"{index} apples", ("de", "fr", "sw")[index % 3], id=str(index))
    for index, word in enumerate(WORDS * 2)
]
SELECTION = LayerSelection(layers=(0, 2))
# Sequences have 21 to 23 tokens, so that a batch of 48 holds two: 6 batches, 3 steps an epoch.
CONFIG = TrainConfig(
    learning_rate=1e-2, epochs=2, tokens_per_batch=48, accumulation=2, max_length=64, prompt="Say: {instruction}\n"
)


@pytest.fixture(autouse=True)
def short_instructions(monkeypatch):
    """The instruction of a translation is longer than these tiny texts: leave it out."""
    from slamkern.prompts import Prompt

    monkeypatch.setattr(Prompt, "translation", lambda self, pair: (self._render(pair.source, "English"), pair.target))


@pytest.fixture
def fit(tiny_tokenizer):
    """Train a fresh tiny model whose layers 0 and 2 are selected; returns (model, result)."""

    def fit(config=CONFIG, *, model=None, pairs=PAIRS, **options):
        if model is None:
            model = selected()
        return model, train(model, tiny_tokenizer, pairs, config, progress=False, **options)

    return fit


def selected(family="llama", **changes):
    model = tiny_model(family, **changes)
    apply_selection(model, SELECTION)
    return model


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def same_weights(a, b):
    return all(torch.equal(tensor, b.state_dict()[name]) for name, tensor in a.state_dict().items())


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
    assert json.loads((tmp_path / "run.json").read_text())["config"]["learning_rate"] == 1e-2


def test_loss_is_the_mean_over_the_supervised_tokens_of_the_model_itself(fit, tiny_tokenizer):
    from slamkern.steps import tokenize

    examples = tokenize(PAIRS, tiny_tokenizer, CONFIG)
    plan = plan_steps([len(example.input_ids) for example in examples], CONFIG)
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
        {"tokens_per_batch": 48, "accumulation": 6},
        {"tokens_per_batch": 4096, "accumulation": 1, "packing": False},
        {"tokens_per_batch": 4096, "accumulation": 1, "gradient_checkpointing": True},
    ],
    ids=["accumulated", "padded", "recomputed"],
)
def test_how_a_step_is_computed_does_not_matter(fit, changes):
    whole = replace(CONFIG, epochs=3, tokens_per_batch=4096, accumulation=1, learning_rate=1e-3)
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
    config = replace(CONFIG, learning_rate=1e-3, save_every=2)
    model, result = fit(config, model=selected().bfloat16(), out=tmp_path)
    assert result.loss_last < result.loss_first
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    checkpoint_file = list_checkpoints(tmp_path)[-1] / "training-state.safetensors"
    assert any(name.startswith("optimizer/master/") for name in checkpoint.load_tensors(checkpoint_file, "state")[0])


# Step 2 is inside the first epoch, step 4 inside the second, step 3 between them.
@pytest.mark.parametrize("killed_after", [2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_killed_run_resumes_bitwise(fit, tmp_path, monkeypatch, killed_after, dtype):
    # Dropout makes the random state matter.
    def model():
        return selected(attention_dropout=0.2).to(dtype)

    unbroken, expected = fit(replace(CONFIG, save_every=1), model=model(), out=tmp_path / "a", selection=SELECTION)

    class Killed(Exception):
        pass

    def kill(done, *rest, **options):
        if done == killed_after + 1:  # one step past the checkpoint, whose line must go again
            raise Killed
        return original(done, *rest, **options)

    original = training.learning_rate
    with monkeypatch.context() as patch:
        patch.setattr(training, "learning_rate", kill)
        with pytest.raises(Killed):
            config = replace(CONFIG, save_every=killed_after)
            fit(config, model=model(), out=tmp_path / "b", selection=SELECTION)
    assert len(lines(tmp_path / "b")) == killed_after + 1

    torch.manual_seed(12345)  # whatever the new process drew before
    fresh = tiny_model(attention_dropout=0.2).to(dtype)  # nobody froze it: the run's flags come back
    resumed, result = fit(config, model=fresh, out=tmp_path / "b", selection=SELECTION, resume=True)
    assert same_weights(resumed, unbroken)
    assert result.losses == expected.losses and len(lines(tmp_path / "b")) == 6
    last = [list_checkpoints(tmp_path / name)[-1].name for name in "ab"]
    if last[0] == last[1]:
        states = [
            checkpoint.load_tensors(tmp_path / name / last[0] / "training-state.safetensors", "state")[0]
            for name in "ab"
        ]
        assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_ctrl_c_saves_at_the_end_of_the_step_and_resumes(fit, tmp_path, monkeypatch):
    unbroken, expected = fit()
    original = training.learning_rate

    def press(done, *rest, **options):
        if done == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return original(done, *rest, **options)

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(training, "learning_rate", press)
        with pytest.raises(KeyboardInterrupt, match=r"step 2 of 6.*resume=True"):
            fit(out=tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2"]
    resumed, result = fit(out=tmp_path, resume=True)
    assert same_weights(resumed, unbroken) and result.losses == expected.losses


def test_second_ctrl_c_is_immediate(fit, tmp_path, monkeypatch):
    def press_twice(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(training, "learning_rate", press_twice)
    with pytest.raises(KeyboardInterrupt):
        fit(out=tmp_path)
    assert not list_checkpoints(tmp_path) and not (tmp_path / "metrics.jsonl").exists()


def test_a_finished_run_is_loaded_not_repeated(fit, tmp_path):
    first, expected = fit(out=tmp_path, held_out=PAIRS[:3])
    again, result = fit(out=tmp_path, held_out=PAIRS[:3], resume=True)
    assert same_weights(first, again) and result == expected


def test_the_folder_of_another_run_is_refused(fit, tmp_path):
    fit(out=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(SlamkernError, match="already holds a run"):
        fit(out=tmp_path)
    with pytest.raises(SlamkernError, match=r"its learning_rate is 0\.01, here it is 0\.002"):
        fit(replace(CONFIG, learning_rate=2e-3), out=tmp_path, resume=True)
    with pytest.raises(SlamkernError, match="its training data differ"):
        fit(pairs=PAIRS[1:], out=tmp_path, resume=True)
    with pytest.raises(SlamkernError, match="its frozen weights differ"):
        fit(model=selected(seed=1), out=tmp_path, resume=True)
    other = tiny_model()
    apply_selection(other, (0, 1))
    with pytest.raises(SlamkernError, match=r"layers\.1\.mlp.* is frozen in the run"):
        fit(model=other, out=tmp_path, resume=True)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_loss_that_is_not_finite_stops_before_anything_is_saved_over(fit, tmp_path, monkeypatch):
    from slamkern import steps

    calls = iter(range(100))

    def poisoned(*arguments, **options):
        loss = steps.packed_loss(*arguments, **options)
        return loss * float("nan") if next(calls) == 6 else loss  # the first micro-batch of step 4

    monkeypatch.setattr(training, "sum_loss", lambda model, head, batch, *_: poisoned(
        model, steps.collate(batch), head=head
    ))  # fmt: skip
    model = selected()
    with pytest.raises(SlamkernError, match=r"step 4: loss nan.*checkpoint-3"):
        fit(replace(CONFIG, save_every=3), model=model, out=tmp_path)
    assert len(lines(tmp_path)) == 3 and not (tmp_path / "delta.safetensors").exists()
    at_three = tiny_model()
    load_delta(at_three, tmp_path / "checkpoint-3")
    assert same_weights(at_three, model)


def test_a_full_disk_keeps_the_earlier_checkpoint_and_the_run_resumable(fit, tmp_path, monkeypatch):
    unbroken, _ = fit()
    config = replace(CONFIG, save_every=2)
    original = checkpoint.save_tensors

    def full(path, *rest):
        if "checkpoint-4" in str(path) and "training-state" in str(path):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return original(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_tensors", full)
        with pytest.raises(OSError, match="No space"):
            fit(config, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir() if "checkpoint" in path.name] == ["checkpoint-2"]
    resumed, _ = fit(config, out=tmp_path, resume=True)
    assert same_weights(resumed, unbroken)


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
    fit(replace(CONFIG, tensorboard=True, max_steps=1), out=tmp_path)
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": tiny_model().requires_grad_(False)}, "apply_selection"),
        ({"selection": LayerSelection(layers=(1,))}, r"names layers \[1\], but \[0, 2\]"),
        ({"pairs": []}, "no pairs"),
        ({"config": replace(CONFIG, max_length=5)}, "max_length=5"),
        ({"config": replace(CONFIG, tensorboard=True)}, "needs out"),
        ({"resume": True}, "needs out"),
        ({"model": selected().to("meta")}, "meta"),
    ],
    ids=["frozen", "selection", "no pairs", "too long", "tensorboard", "resume", "meta"],
)
def test_bad_input_is_one_clear_line(fit, options, words):
    with pytest.raises(SlamkernError, match=words) as caught:
        fit(**options)
    assert "\n" not in str(caught.value)


NEURONS = LayerSelection(layers=(0, 2), neurons={0: (1, 5, 40), 2: (7,)})


def selected_neurons(dtype=torch.float32):
    model = patch_model(tiny_model().to(dtype))
    apply_selection(model, NEURONS)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_single_neurons_are_trained_saved_and_resumed_exactly(fit, tmp_path, dtype):
    model, result = fit(model=selected_neurons(dtype), out=tmp_path / "a", selection=NEURONS)
    assert result.loss_last < result.loss_first and result.trained_parameters == 2 * 32 * 4
    before = tiny_model().to(dtype).state_dict()
    for name, tensor in model.state_dict().items():
        changed = (tensor != before[name]).nonzero()
        layer = name.split(".")[2] if "layers" in name else ""
        axis = {"up_proj": 0, "down_proj": 1}.get(name.split(".")[-2])
        rows = set(NEURONS.neurons[int(layer)]) if axis is not None and layer in ("0", "2") else set()
        assert set(changed[:, axis or 0].tolist()) == rows, name
    # The delta goes into a model that nobody patched, and a run cut in the middle ends the same.
    plain = tiny_model().to(dtype)
    assert len(load_delta(plain, tmp_path / "a")) == 4
    assert same_weights(plain, model)
    half = replace(CONFIG, save_every=2)
    fit(half, model=selected_neurons(dtype), out=tmp_path / "b", selection=NEURONS)
    (tmp_path / "b" / "delta.safetensors").unlink()
    for folder in list_checkpoints(tmp_path / "b")[1:]:
        shutil.rmtree(folder)
    resumed, again = fit(half, model=selected_neurons(dtype), out=tmp_path / "b", selection=NEURONS, resume=True)
    assert same_weights(resumed, model) and again.losses == result.losses
    with pytest.raises(SlamkernError, match="apply the selection of that run"):
        fit(half, model=patch_model(tiny_model().to(dtype)), out=tmp_path / "b", resume=True)
    other = patch_model(tiny_model().to(dtype))
    apply_selection(other, LayerSelection(layers=(0, 2), neurons={0: (1, 5, 41), 2: (7,)}))
    with pytest.raises(SlamkernError, match="has other neurons of"):
        load_delta(other, tmp_path / "a")


@pytest.mark.parametrize("field", ["learning_rate", "epochs", "accumulation", "warmup_steps", "max_steps", "clip"])
def test_recipe_refuses_values_that_cannot_work(field):
    with pytest.raises(SlamkernError, match=field):
        replace(CONFIG, **{field: -1})


def test_max_steps_runs_as_many_epochs_as_it_takes():
    lengths = [20] * 10
    assert len(plan_steps(lengths, replace(CONFIG, max_steps=11))) == 11
    epochs = plan_steps(lengths, CONFIG)
    assert [len(step) for step in epochs] == [2, 2, 1, 2, 2, 1]  # a step never spans two epochs
    assert sorted(index for step in epochs[:3] for batch in step for index in batch) == list(range(10))
