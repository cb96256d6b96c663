"""A tiny model in transformers' Trainer, on packed batches."""

import torch
from support.tiny_models import tiny_model
from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments

from slamkern.integrations.packed_attention import register
from slamkern.modules.patch import patch_model
from slamkern.selection.layers import LayerSelection

SELECTION = LayerSelection(layers=(0, 2))


def rows():
    drawn = torch.Generator().manual_seed(3)
    texts = [torch.randint(3, 96, (length,), generator=drawn).tolist() for length in (7, 19, 11, 5, 23, 9, 14, 6)]
    return [{"input_ids": ids, "labels": [-100, -100, *ids[2:]]} for ids in texts]


def packed_model(patched=True):
    model = tiny_model()
    register()
    model.set_attn_implementation("slamkern_packed")
    return patch_model(model) if patched else model


def trainer_of(model, out, callbacks=(), collator=None, **options):
    usual = {
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 4, "learning_rate": 1e-2,
        "use_cpu": True, "report_to": "none", "logging_steps": 1, "save_steps": 2, "disable_tqdm": True,
        "remove_unused_columns": False,
    }  # fmt: skip
    arguments = TrainingArguments(output_dir=str(out), **usual | options)
    return Trainer(
        model=model, args=arguments, train_dataset=rows(), eval_dataset=rows()[:2], callbacks=list(callbacks),
        data_collator=collator or DataCollatorWithFlattening(),
    )  # fmt: skip


def weights(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
