"""A run small enough to repeat: twelve pairs, six steps, two layers of a tiny model (see ``fit`` in conftest.py)."""

import json

import torch
from support.tiny_models import tiny_model

from slamkern.data.pairs import Pair
from slamkern.selection.layers import LayerSelection
from slamkern.selection.trainable import apply_selection
from slamkern.training.config import TrainConfig

WORDS = ["eins", "zwei", "drei", "vier", "acht", "zehn"]
PAIRS = [
    Pair(f"{word} {index}", f"{index} apples", ("de", "fr", "sw")[index % 3], id=str(index))
    for index, word in enumerate(WORDS * 2)
]
SELECTION = LayerSelection(layers=(0, 2))
# Sequences have 21 to 23 tokens, so that a batch of 48 holds two: 6 batches, 3 steps an epoch.
CONFIG = TrainConfig(
    learning_rate=1e-2,
    num_train_epochs=2,
    tokens_per_batch=48,
    gradient_accumulation_steps=2,
    max_length=64,
    prompt="Say: {instruction}\n",
)


def selected(family="llama", **changes):
    model = tiny_model(family, **changes)
    apply_selection(model, SELECTION)
    return model


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def same_weights(a, b):
    return all(torch.equal(tensor, b.state_dict()[name]) for name, tensor in a.state_dict().items())
