"""The fused loss inside transformers' Trainer, TRL's SFTTrainer and PEFT's wrappers."""

import copy

import pytest
import torch
from support.tiny_models import tiny_model
from torch import nn
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

import slamkern
from slamkern.integrations.check import check_first_batch
from slamkern.integrations.trainer import SlamCallback
from slamkern.modules.fused_loss import FusedLoss
from slamkern.ops import linear_cross_entropy as op
from slamkern.selection.layers import LayerSelection

SELECTION = LayerSelection(layers=(0, 2))


def rows():
    drawn = torch.Generator().manual_seed(3)
    texts = [torch.randint(3, 96, (length,), generator=drawn).tolist() for length in (7, 19, 11, 5, 23, 9, 14, 6)]
    return [{"input_ids": ids, "labels": [-100, -100, *ids[2:]]} for ids in texts]


def trainer_of(model, out, tokenizer, **options):
    arguments = TrainingArguments(
        output_dir=str(out), per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=3,
        learning_rate=1e-2, use_cpu=True, report_to="none", logging_steps=1, save_strategy="no", disable_tqdm=True,
        eval_strategy="steps", eval_steps=3, **options,
    )  # fmt: skip
    return Trainer(
        model=model, args=arguments, train_dataset=rows(), eval_dataset=rows()[:4],
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True), callbacks=[SlamCallback(SELECTION)],
    )  # fmt: skip


def history(trainer):
    return [e.get("loss", e.get("eval_loss")) for e in trainer.state.log_history if "loss" in e or "eval_loss" in e]


@pytest.fixture
def calls(monkeypatch):
    """What the fused loss was asked for: which of hidden, weight and bias need a gradient."""
    seen, forward = [], op.LinearCrossEntropy.forward

    def noted(ctx, *args):
        seen.append(tuple(ctx.needs_input_grad[:3]))
        return forward(ctx, *args)

    monkeypatch.setattr(op.LinearCrossEntropy, "forward", staticmethod(noted))
    return seen


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3", "gemma2"])
def test_trainer_with_accumulation_and_evaluation_is_the_stock_one(family, tmp_path, tiny_tokenizer, calls):
    """Accumulated micro-batches of unequal lengths: right only if num_items_in_batch divides."""
    options = {"final_logit_softcapping": 3.0} if family == "gemma2" else {}
    stock = tiny_model(family, **options)
    model = slamkern.patch_model(copy.deepcopy(stock), loss=True)
    trainers = [trainer_of(each, tmp_path, tiny_tokenizer) for each in (stock, model)]
    check_first_batch(trainers[1])
    calls.clear()
    for trainer in trainers:
        trainer.train()
    assert history(trainers[1]) == pytest.approx(history(trainers[0]), rel=1e-4)
    # Six micro-batches and the one that check_first_batch computes, with gradients of the hidden states alone.
    assert calls.count((True, False, False)) == 6 and not any(weight for _, weight, _ in calls)
    assert model.lm_head.weight.grad is None
    theirs = dict(stock.named_parameters())
    for name, ours in model.named_parameters():
        torch.testing.assert_close(ours, theirs[name], rtol=1e-2, atol=1e-3, msg=name)


def test_autocast_of_a_trainer_runs_it_and_it_can_be_undone_afterwards(tmp_path, tiny_tokenizer, calls):
    stock = tiny_model()
    model = slamkern.patch_model(copy.deepcopy(stock), loss=True)
    trainers = [trainer_of(each, tmp_path, tiny_tokenizer, bf16=True) for each in (stock, model)]
    calls.clear()
    for trainer in trainers:
        trainer.train()
    assert "forward" in vars(model) and len(calls) == 6  # accelerate's, around ours
    assert "loss fused (linear cross-entropy of a frozen head" in str(slamkern.explain(model))
    assert history(trainers[1]) == pytest.approx(history(trainers[0]), rel=2e-2)
    slamkern.unpatch_model(model)
    ids = torch.arange(3, 9)[None]
    assert model.train()(input_ids=ids, labels=ids).logits is not None and len(calls) == 6


def test_predictions_of_a_trainer_are_those_of_the_stock_model(tmp_path, tiny_tokenizer):
    stock = tiny_model()
    model = slamkern.patch_model(copy.deepcopy(stock), loss=True)
    ours, theirs = (trainer_of(each, tmp_path, tiny_tokenizer).predict(rows()[:4]) for each in (model, stock))
    torch.testing.assert_close(torch.tensor(ours.predictions), torch.tensor(theirs.predictions), rtol=1e-4, atol=1e-5)
    assert ours.metrics["test_loss"] == pytest.approx(theirs.metrics["test_loss"], rel=1e-5)


@pytest.mark.parametrize("first", ["peft", "slamkern"])
@pytest.mark.parametrize("head", ["frozen", "trained"])
def test_in_an_adapter_and_around_one(first, head, llama, input_ids, calls):
    peft = pytest.importorskip("peft")
    kept = ["lm_head"] if head == "trained" else None
    config = peft.LoraConfig(target_modules=["up_proj"], r=2, init_lora_weights=False, modules_to_save=kept)
    stock = peft.get_peft_model(copy.deepcopy(llama), config)
    wrapped = slamkern.patch_model(llama, loss=True) if first == "slamkern" else llama
    wrapped = peft.get_peft_model(wrapped, config)
    wrapped.load_state_dict(stock.state_dict())
    if first == "peft":
        slamkern.patch_model(wrapped, loss=True)
    assert isinstance(wrapped.base_model.model, FusedLoss)
    outputs = [each.train()(input_ids=input_ids, labels=input_ids) for each in (stock, wrapped)]
    calls.clear()
    outputs = [each(input_ids=input_ids, labels=input_ids) for each in (stock, wrapped)]
    assert outputs[1].logits is None and calls == [(True, head == "trained", False)]
    for output in outputs:
        output.loss.backward()
    torch.testing.assert_close(outputs[1].loss, outputs[0].loss)
    theirs = dict(stock.named_parameters())
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-6, msg=name)


def test_an_adapter_on_the_head_is_refused(llama, input_ids):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["lm_head"], r=2)
    wrapped = peft.get_peft_model(slamkern.patch_model(copy.deepcopy(llama), loss=True), config).train()
    with pytest.raises(slamkern.SlamkernError, match=r"its output head is .*Linear, not a plain Linear|has hooks"):
        wrapped(input_ids=input_ids, labels=input_ids)
    with pytest.raises(slamkern.SlamkernError, match="the loss of LlamaForCausalLM cannot be fused: its output head"):
        slamkern.patch_model(peft.get_peft_model(llama, config), loss=True)


@pytest.mark.parametrize("head", [False, True])
def test_in_fsdp2(head, llama, input_ids, one_process):
    from torch.distributed.fsdp import fully_shard

    stock = copy.deepcopy(llama).train()
    stock.lm_head.requires_grad_(head)
    model = slamkern.patch_model(copy.deepcopy(stock), loss=True)
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    output, expected = (each(input_ids=input_ids, labels=input_ids) for each in (model, stock))
    assert output.logits is None and "FSDPLlamaForCausalLM: loss fused" in str(slamkern.explain(model))
    for each in (output, expected):
        each.loss.backward()
    for ours, theirs in zip(model.parameters(), stock.parameters(), strict=True):
        assert (ours.grad is None) is (theirs.grad is None)
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad.full_tensor(), theirs.grad, rtol=1e-3, atol=1e-5)
    slamkern.unpatch_model(model)
    assert "patch_model(model, loss=True)" in str(slamkern.explain(model))
    apart = slamkern.patch_model(copy.deepcopy(llama), loss=True).train()
    fully_shard(apart.lm_head)
    fully_shard(apart)
    with pytest.raises(slamkern.SlamkernError, match="its output head is sharded by itself"):
        apart(input_ids=input_ids, labels=input_ids)


def test_in_ddp(llama, input_ids, one_process):
    expected = copy.deepcopy(llama).train()(input_ids=input_ids, labels=input_ids).loss
    slamkern.apply_selection(slamkern.patch_model(llama, loss=True), [1])
    wrapped = nn.parallel.DistributedDataParallel(llama).train()
    output = wrapped(input_ids=input_ids, labels=input_ids)
    output.loss.backward()
    assert output.logits is None and "loss fused" in str(slamkern.explain(wrapped))
    torch.testing.assert_close(output.loss, expected)


def test_trl_computes_its_own_fused_loss_and_that_is_told(tmp_path, tiny_tokenizer, calls):
    """SFTTrainer puts its own fused head over the model's forward: ours is not run, and nothing else changes."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    results = []
    for loss in (False, True):
        model = slamkern.patch_model(tiny_model(), loss=loss)
        config = trl.SFTConfig(
            output_dir=str(tmp_path), per_device_train_batch_size=2, max_steps=2, learning_rate=1e-2, use_cpu=True,
            bf16=False, report_to="none", logging_steps=1, save_strategy="no", disable_tqdm=True, max_length=32,
            gradient_checkpointing=False, eval_strategy="steps", eval_steps=2,
        )  # fmt: skip
        data = Dataset.from_list([{"input_ids": row["input_ids"]} for row in rows()])
        trainer = trl.SFTTrainer(
            model=model, args=config, processing_class=tiny_tokenizer, callbacks=[SlamCallback(SELECTION)],
            train_dataset=data, eval_dataset=data,
        )  # fmt: skip
        trainer.train()
        keys = ("loss", "eval_loss", "entropy", "mean_token_accuracy", "eval_entropy", "eval_mean_token_accuracy")
        results.append([{key: entry[key] for key in keys if key in entry} for entry in trainer.state.log_history])
        assert "loss not fused: its forward on this instance is _fused_forward of trl" in str(slamkern.explain(model))
    assert results[0] == results[1] and {"entropy", "eval_mean_token_accuracy"} <= {k for e in results[1] for k in e}
    assert calls == [(False, False, False)]  # the check of eight tokens when it was patched
    with pytest.raises(slamkern.SlamkernError, match="cannot be fused: its forward on this instance is _fused_forward"):
        slamkern.patch_model(model, loss=True)
