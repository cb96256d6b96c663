"""Batches filled up to a bucket: few shapes, at most an eighth more tokens, and nothing that counts."""

import torch
from support.packed_models import LLAMA, build, examples

from slamkern.data.buckets import bucket_size, in_bucket
from slamkern.data.packing import IGNORE, Example, collate
from slamkern.training.loss import packed_loss

LENGTHS = ((5, 17, 1, 9, 30), (3, 3, 8, 21, 20, 6, 2), (33, 1, 24, 6), (61,))


def test_sizes_are_eighths_of_powers_of_two_and_at_most_an_eighth_more():
    assert [bucket_size(n) for n in (1, 15, 16, 17, 31, 33, 100, 129, 3000, 4090, 4096, 4097)] == [
        1, 15, 16, 18, 32, 36, 104, 144, 3072, 4096, 4096, 4608,
    ]  # fmt: skip
    for size in range(1, 5000):
        assert size <= bucket_size(size) <= size * 9 / 8 and bucket_size(bucket_size(size)) == bucket_size(size)


def test_what_fills_up_counts_nothing_and_real_tokens_stay():
    for lengths in LENGTHS:
        batch = collate([Example(e.input_ids, e.labels, (1,) * len(e.labels), 2) for e in examples(lengths)])
        filled, real = in_bucket(batch), sum(lengths)
        for name in ("input_ids", "labels", "position_ids", "language_ids", "group_ids"):
            mine = getattr(filled, name)
            assert torch.equal(mine[:, :real], getattr(batch, name)) and mine.shape == (1, bucket_size(real)), name
        assert filled.labels[:, real:].eq(IGNORE).all() and filled.language_ids[:, real:].eq(-1).all()
        supervised = len(batch.token_indices)
        assert torch.equal(filled.token_indices[:supervised], batch.token_indices)
        assert filled.shift_labels[0, filled.token_indices[supervised:]].eq(IGNORE).all()
        borders = filled.cu_seq_lens.tolist()
        assert borders[: len(lengths) + 1] == batch.cu_seq_lens.tolist() and borders[-1] == bucket_size(real)
        assert filled.cu_seq_lens.dtype == torch.int32
        spans = filled.cu_seq_lens.diff().tolist()
        assert min(spans) >= 0 and max(spans) <= filled.max_length
        positions = [position for span in spans for position in range(span)]
        assert filled.position_ids[0].tolist() == positions


def test_loss_and_gradients_are_those_of_the_batch_alone():
    for head in (True, False):  # with the frozen head, or through the model's own
        model = build("Llama", LLAMA)
        model.lm_head.weight.requires_grad_(not head)
        for lengths in LENGTHS:
            found = []
            for batch in (collate(examples(lengths)), in_bucket(collate(examples(lengths)))):
                model.zero_grad()
                loss = packed_loss(model, batch)
                loss.backward()
                found.append(
                    {"loss": loss.detach()} | {n: p.grad for n, p in model.named_parameters() if n != "lm_head.weight"}
                )
            for name, expected in found[0].items():
                torch.testing.assert_close(found[1][name], expected, rtol=1e-5, atol=1e-5, msg=name)


def test_nothing_supervised_is_no_loss():
    model = build("Llama", LLAMA)
    model.lm_head.requires_grad_(False)
    batch = in_bucket(collate([Example((3, 4, 5), (IGNORE,) * 3)]))
    loss = packed_loss(model, batch)
    loss.backward()
    assert loss == 0 and all(p.grad is None or not p.grad.any() for p in model.parameters())
