"""Packed batches of few shapes, as CUDA graphs need them: filled up with tokens that change nothing.

What fills a row up are sequences of their own, of token 0, without labels and of no language: no other token sees
them, no loss and no statistics count them. ``cu_seq_lens`` goes on with sequences of no tokens and ``token_indices``
with the last token of the row, which never has a label.

Sizes are rounded up to eighths of a power of two, so a row has at most an eighth more tokens; rows that are packed to
one size have less. Of 14,000 GSM8K pairs in seven languages in rows of 4096 tokens 0.8 % of the tokens are filling, in
18 shapes, of which one is five eighths of all rows; in rows of 1024 tokens 2 %, in 62 shapes.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F

from slamkern.data.packing import IGNORE, PackedBatch


def bucket_size(size: int) -> int:
    """``size`` (at least 1) rounded up to 8, 9, .. 15 eighths of a power of two; what is below 16 stays."""
    step = max(1, (1 << size.bit_length()) // 16)
    return -(-size // step) * step


def in_bucket(batch: PackedBatch) -> PackedBatch:
    """The same batch, on the host, in the smallest bucket that holds it: see the module docstring.

    ``max_length`` becomes a power of two, and so does the number of sequences.
    """
    real, longest = batch.input_ids.shape[1], _power_of_two(batch.max_length)
    tokens = bucket_size(real)
    filling = [min(longest, tokens - start) for start in range(real, tokens, longest)]
    borders = torch.tensor([*batch.cu_seq_lens.tolist(), *(real + sum(filling[: n + 1]) for n in range(len(filling)))])
    supervised = len(batch.token_indices)

    def row(values: torch.Tensor, value: int) -> torch.Tensor:
        return F.pad(values, (0, tokens - real), value=value)

    positions = [torch.arange(length) for length in filling]
    return replace(
        batch,
        input_ids=row(batch.input_ids, 0),
        labels=row(batch.labels, IGNORE),
        position_ids=torch.cat([batch.position_ids[0], *positions])[None],
        cu_seq_lens=F.pad(borders.int(), (0, _power_of_two(len(borders) - 1) + 1 - len(borders)), value=tokens),
        max_length=longest,
        token_indices=F.pad(batch.token_indices, (0, bucket_size(max(1, supervised)) - supervised), value=tokens - 1),
        language_ids=row(batch.language_ids, -1),
        group_ids=row(batch.group_ids, 0),
    )


def _power_of_two(size: int) -> int:
    """The smallest that is not below ``size``."""
    return 1 << (size - 1).bit_length()
