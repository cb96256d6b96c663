"""SlamCallback in transformers' Trainer and TRL's SFTTrainer, packed and padded."""

import pytest
import torch
from support.processes import launch
from support.tiny_models import tiny_model
from support.tiny_trainer import SELECTION, packed_model, rows, trainer_of, weights
from transformers import (
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from slamkern import distributed
from slamkern.errors import SlamkernError
from slamkern.integrations.check import check_first_batch
from slamkern.integrations.packed_attention import register
from slamkern.integrations.trainer import DELTA_FOLDER, SlamCallback
from slamkern.modules.patch import patch_model
from slamkern.selection.layers import LayerSelection
from slamkern.selection.trainable import trained_parameters
from slamkern.training.checkpoint import load_delta
from slamkern.training.sharding import shard


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_flattened_batches_train_as_padded_ones_do(tmp_path, tiny_tokenizer):
    """The stock model on padded batches, and ours patched and packed by name: the same losses and weights."""
    stock = tiny_model()
    padding = DataCollatorForSeq2Seq(tiny_tokenizer, padding=True)
    expected = trainer_of(stock, tmp_path / "a", [SlamCallback(SELECTION)], padding, save_strategy="no")
    expected.train()
    model = packed_model()
    packed = trainer_of(model, tmp_path / "b", [SlamCallback(SELECTION)], save_strategy="no")
    check_first_batch(packed)
    packed.train()
    assert losses(packed) == pytest.approx(losses(expected), rel=1e-4)
    for name, tensor in weights(stock).items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-2, atol=1e-3, msg=name)


def test_exactly_the_selection_is_trained_logged_and_saved(tmp_path):
    model, before = packed_model(), None
    before = weights(model)
    trainer = trainer_of(model, tmp_path, [SlamCallback(SELECTION)])
    trainer.train()
    changed = {name for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])}
    assert changed == set(trained_parameters(model)) and len(changed) == 4
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert entry["tokens_per_second"] > 0 and 0 < entry["trained_share"] < 1
    for folder in (tmp_path / "checkpoint-2", tmp_path):
        fresh = tiny_model()
        assert set(load_delta(fresh, folder / DELTA_FOLDER)) == changed
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in weights(fresh).items())


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_single_neurons_and_halves_of_a_weight_train_here_too(tmp_path, family):
    register()
    model = patch_model(tiny_model(family))
    model.set_attn_implementation("slamkern_packed")
    before = weights(model)
    neurons = {0: (1, 2), 2: (5,)} if family == "llama" else None
    selection = LayerSelection(layers=(0, 2), neurons=neurons)
    total = sum(parameter.numel() for parameter in model.parameters())
    trainer = trainer_of(model, tmp_path, [SlamCallback(selection)])
    trainer.train()
    trained = sum(parameter.numel() for parameter in trained_parameters(model).values())
    share = next(entry["trained_share"] for entry in trainer.state.log_history if "loss" in entry)
    assert share == round(trained / total, 6)  # neurons are not counted beside their whole weights
    fresh = tiny_model(family)
    assert len(load_delta(fresh, tmp_path / DELTA_FOLDER)) == 4
    after = weights(model)
    assert all(torch.equal(tensor, after[name]) for name, tensor in weights(fresh).items())
    name = f"model.layers.2.mlp.{'up_proj' if neurons else 'gate_up_proj'}.weight"
    changed = (after[name] != before[name]).any(1).nonzero().squeeze(1).tolist()
    assert changed == ([5] if neurons else list(range(48, 96)))


def test_what_would_train_something_else_is_refused(tmp_path):
    late = trainer_of(packed_model(), tmp_path)
    late.add_callback(SlamCallback(SELECTION))
    with pytest.raises(SlamkernError, match="when it is made"):
        late.train()
    thawed = trainer_of(packed_model(), tmp_path, [SlamCallback(SELECTION)])
    thawed.model.lm_head.weight.requires_grad_(True)
    with pytest.raises(SlamkernError, match=r"1 parameters changed their freeze flags.*lm_head"):
        thawed.train()


@pytest.mark.parametrize("wrap", [True, False], ids=["get_peft_model", "add_adapter"])
def test_a_model_with_an_adapter_is_refused(tmp_path, wrap):
    peft = pytest.importorskip("peft")
    model, config = packed_model(), peft.LoraConfig(target_modules=["up_proj"], r=2)
    if wrap:
        model = peft.get_peft_model(model, config)
    else:
        model.add_adapter(config)
    with pytest.raises(SlamkernError, match=r"has PEFT's adapters.*integrations\.lora\.lora_config"):
        trainer_of(model, tmp_path, [SlamCallback(SELECTION)])


def test_a_frozen_weight_that_something_else_changes_is_found(tmp_path):
    class Meddling(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            kwargs["model"].lm_head.weight.data.mul_(1.01)

    trainer = trainer_of(packed_model(), tmp_path, [SlamCallback(SELECTION), Meddling()], save_strategy="no")
    with pytest.raises(SlamkernError, match=r"1 frozen tensors changed during the training, the first lm_head"):
        trainer.train()


def test_a_sharded_model_is_saved_whole_by_all_processes_together(tmp_path):
    def save(rank):
        distributed.join()
        model, callback = tiny_model(), SlamCallback(SELECTION)
        arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
        state, control = TrainerState(global_step=1, is_world_process_zero=rank == 0), TrainerControl()
        callback.on_init_end(arguments, state, control, model=model)
        shard(model)
        callback.on_save(arguments, state, control, model=model)

    launch(2, save, seconds=30)
    fresh, base = tiny_model(), weights(tiny_model())
    assert set(load_delta(fresh, tmp_path / "checkpoint-1" / DELTA_FOLDER)) == {
        f"model.layers.{layer}.mlp.{name}_proj.weight" for layer in SELECTION.layers for name in ("up", "down")
    }
    assert all(torch.equal(tensor, base[name]) for name, tensor in weights(fresh).items())


def test_updates_that_bfloat16_would_lose_are_told(tmp_path, caplog):
    trainer_of(packed_model().bfloat16(), tmp_path, [SlamCallback(SELECTION)], save_strategy="no").train()
    assert "the trained tensors are bfloat16 and a Trainer keeps no float32 masters" in caplog.text


def test_packing_that_leaks_is_refused_at_the_first_batch(tmp_path):
    model = tiny_model()
    model.set_attn_implementation("eager")
    leaking = Leaking(return_position_ids=True)
    trainer = trainer_of(model, tmp_path, [SlamCallback(SELECTION)], leaking)
    with pytest.raises(SlamkernError, match="differ from the same ones alone"):
        trainer.train()


class Leaking(DataCollatorWithFlattening):
    """A mask beside the position ids makes transformers ignore the borders."""

    def __call__(self, *args, **options):
        batch = super().__call__(*args, **options)
        return batch | {"attention_mask": torch.ones_like(batch["input_ids"])}


def sft_trainer(model, out, tokenizer, callbacks=(), **options):
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    config = trl.SFTConfig(
        output_dir=str(out), per_device_train_batch_size=2, gradient_accumulation_steps=1, max_steps=3,
        learning_rate=1e-2, use_cpu=True, bf16=False, report_to="none", logging_steps=1, save_strategy="no",
        disable_tqdm=True, dataset_num_proc=None, gradient_checkpointing=False, **options,
    )  # fmt: skip
    return trl.SFTTrainer(
        model=model, args=config, processing_class=tokenizer, callbacks=list(callbacks),
        train_dataset=Dataset.from_list([{"input_ids": row["input_ids"]} for row in rows()]),
    )  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [{"packing": True, "max_length": 32}, {"padding_free": True, "max_length": None}],
    ids=["bfd", "padding_free"],
)
def test_trl(tmp_path, tiny_tokenizer, options):
    model = packed_model()
    before = weights(model)
    trainer = sft_trainer(model, tmp_path, tiny_tokenizer, [SlamCallback(SELECTION)], **options)
    check_first_batch(trainer)
    trainer.train()
    changed = {name for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])}
    assert changed == set(trained_parameters(model))
    assert set(load_delta(tiny_model(), tmp_path / DELTA_FOLDER)) == changed


@pytest.mark.parametrize("by", ["callback", "check"])
def test_trl_that_wraps_is_refused(tmp_path, tiny_tokenizer, by):
    """Nothing in such a batch says where its sequences begin."""
    callbacks = [SlamCallback(SELECTION)] if by == "callback" else []
    options = {"packing": True, "packing_strategy": "wrapped", "max_length": 32}
    trainer = sft_trainer(tiny_model(), tmp_path, tiny_tokenizer, callbacks, **options)
    if by == "check":
        check_first_batch(trainer)
    with pytest.raises(SlamkernError, match=r"without position_ids.*packing_strategy=\"bfd\""):
        trainer.train()
