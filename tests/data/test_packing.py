"""Plans and batches, packed and padded."""

import random
from pathlib import Path

import pytest
import torch

from slamkern.data import packing
from slamkern.data.packing import IGNORE, Example, collate, pack_plan, pad_plan, padded_batch
from slamkern.data.pairs import load_pairs
from slamkern.errors import SlamkernError

QUESTIONS = Path(__file__).resolve().parents[3] / "shared" / "data" / "gsm8k_questions"


def example(length: int, languages: tuple[int, ...] = (), group: int = 0, prompt: int = 2) -> Example:
    ids = tuple(range(10, 10 + length))
    return Example(ids, (*[IGNORE] * prompt, *ids[prompt:]), languages, group)


def test_the_plan_holds_every_example_once_within_the_budget_and_is_a_function_of_seed_and_epoch():
    draw = random.Random(0)
    lengths = [min(512, max(20, int(draw.gauss(190, 80)))) for _ in range(3000)]
    plan = pack_plan(lengths, 2048, seed=3, epoch=1)
    assert sorted(index for batch in plan for index in batch) == list(range(len(lengths)))
    sizes = [sum(lengths[index] for index in batch) for batch in plan]
    assert max(sizes) <= 2048
    assert sum(sizes) / (2048 * len(plan)) >= 0.97
    assert plan == pack_plan(lengths, 2048, seed=3, epoch=1)
    assert plan != pack_plan(lengths, 2048, seed=3, epoch=2)
    assert plan != pack_plan(lengths, 2048, seed=4, epoch=1)


def test_few_open_batches_pack_almost_as_tightly(monkeypatch):
    draw = random.Random(0)
    lengths = [draw.randint(20, 400) for _ in range(4000)]
    every = pack_plan(lengths, 2048, seed=0, epoch=0)
    monkeypatch.setattr(packing, "OPEN", 4)
    few = pack_plan(lengths, 2048, seed=0, epoch=0)
    assert few != every
    assert sorted(index for batch in few for index in batch) == list(range(len(lengths)))
    assert max(sum(lengths[index] for index in batch) for batch in few) <= 2048
    assert len(few) <= 1.02 * len(every)
    assert few[-1] == list(few)[-1] and few[:2] == [few[0], few[1]]


def test_languages_mix_although_their_lengths_differ():
    """Packing must not sort: a batch of one language would be a step on one language."""
    lengths = [100] * 500 + [200] * 500 + [400] * 500
    plan = pack_plan(lengths, 4096, seed=0, epoch=0)
    kinds = [{lengths[index] for index in batch} for batch in plan]
    assert sum(len(kind) == 3 for kind in kinds) >= 0.95 * len(plan)


@pytest.mark.skipif(not QUESTIONS.is_dir(), reason="needs the GSM8K questions beside the checkout")
def test_real_questions_fill_batches_and_mix_languages():
    """Characters stand for tokens here; with SmolLM2's tokenizer batches of 2048 are 0.983 full, of 4096 0.992."""
    pairs = load_pairs(QUESTIONS, limit=500)
    lengths = [min(1024, (len(pair.source) + len(pair.target)) // 2) for pair in pairs]
    plan = pack_plan(lengths, 4096, seed=0, epoch=0)
    assert sum(lengths) / (4096 * len(plan)) >= 0.97
    languages = [len({pairs[index].source_language for index in batch}) for batch in plan]
    assert sum(languages) / len(plan) >= 5


def test_bad_plans():
    for lengths, budget, message in [
        ([], 100, "nothing to pack"),
        ([50, 120], 100, "a sequence of 120 tokens does not fit into tokens_per_batch=100"),
    ]:
        with pytest.raises(SlamkernError, match=message):
            pack_plan(lengths, budget, 0, 0)


def test_a_packed_batch():
    batch = collate([example(4, languages=(-1, 1, 1, 1), group=3), example(3)])
    assert batch.input_ids.tolist() == [[10, 11, 12, 13, 10, 11, 12]]
    assert batch.labels.tolist() == [[-100, -100, 12, 13, -100, -100, 12]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    assert batch.language_ids.tolist() == [[-1, 1, 1, 1, -1, -1, -1]]
    assert batch.group_ids.tolist() == [[3, 3, 3, 3, 0, 0, 0]]
    assert batch.cu_seq_lens.tolist() == [0, 4, 7] and batch.max_length == 4
    assert batch.token_indices.tolist() == [1, 2, 5] == batch.logits_to_keep.tolist()
    assert [batch.input_ids.dtype, batch.cu_seq_lens.dtype, batch.language_ids.dtype, batch.token_indices.dtype] == [
        torch.int64, torch.int32, torch.int32, torch.int64,
    ]  # fmt: skip
    assert batch.shift_labels.tolist() == [[-100, 12, 13, -100, -100, 12, -100]]


def test_the_last_token_of_a_sequence_never_predicts_the_first_of_the_next():
    """Even if the first token has a label: the model's own shift (labels[1:]) then crosses no border."""
    whole = [Example((5, 6, 7), (5, 6, 7)), Example((8, 9), (8, 9))]
    batch = collate(whole)
    assert batch.labels.tolist() == [[-100, 6, 7, -100, 9]]
    assert batch.token_indices.tolist() == [0, 1, 3]
    assert batch.shift_labels.tolist() == [[6, 7, -100, 9, -100]]
    assert padded_batch(whole, pad_id=0).labels.tolist() == [[-100, 6, 7], [-100, 9, -100]]


def test_nothing_and_language_ids_of_other_tokens_are_refused():
    with pytest.raises(SlamkernError, match="no examples"):
        collate([])
    with pytest.raises(SlamkernError, match="an example of 4 tokens has 1 language ids"):
        collate([example(4, languages=(1,))])
    with pytest.raises(SlamkernError, match="no examples"):
        padded_batch([], 0)


def test_a_padded_batch_is_right_padded():
    batch = padded_batch([example(4), example(3, languages=(-1, 0, 0), group=2)], pad_id=9)
    assert batch.input_ids.tolist() == [[10, 11, 12, 13], [10, 11, 12, 9]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch.labels.tolist() == [[-100, -100, 12, 13], [-100, -100, 12, -100]]
    assert batch.language_ids.tolist() == [[-1, -1, -1, -1], [-1, 0, 0, -1]]
    assert batch.group_ids.tolist() == [[0, 0, 0, 0], [2, 2, 2, 0]]
    assert batch.token_indices.tolist() == [1, 2, 5] and batch.logits_to_keep.tolist() == [1, 2]


def test_padded_batches_hold_sequences_of_similar_length_within_the_budget():
    assert pad_plan([3, 9, 1, 8, 2], 18) == [[1, 3], [0, 4, 2]]
    assert pad_plan([30, 1], 18) == [[0], [1]]  # what is too long is a batch by itself
    assert pad_plan([], 18) == []
