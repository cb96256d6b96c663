"""Attention within borders, of either kernel, against float64 with one masked score matrix."""

from types import SimpleNamespace

import pytest
import torch

from slamkern.modules import varlen_attention
from slamkern.modules.varlen_attention import packed_attention_forward


def test_borders_are_read_again_where_position_ids_changed():
    positions = torch.tensor([[0, 1, 2, 0, 1]])
    assert varlen_attention._borders(positions, 5)[0].tolist() == [0, 3, 5]
    positions[0] = torch.tensor([0, 1, 0, 1, 2])
    borders, longest = varlen_attention._borders(positions, 5)
    assert borders.tolist() == [0, 2, 5] and longest == 3


def oracle(query, key, value, borders, scaling, window):
    """(1, H, T, D) and twice (1, KV, T, D) -> (T, H, D) in float64, with one masked score matrix."""
    groups = query.shape[1] // key.shape[1]
    wide = (query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1))
    q, k, v = (tensor[0].double() for tensor in wide)  # (H, T, D)
    index = torch.arange(q.shape[1], device=q.device)
    sequence = torch.bucketize(index, borders[1:].to(q.device), right=True)
    distance = index[:, None] - index[None]
    visible = (sequence[:, None] == sequence[None]) & (distance >= 0)
    if window is not None:
        visible &= distance < window
    scores = (q @ k.transpose(1, 2) * scaling).masked_fill(~visible, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1)


def test_borders_that_are_told_are_not_looked_for():
    positions, told = torch.tensor([[0, 1, 2, 0, 1]]), torch.tensor([0, 3, 5], dtype=torch.int32)
    varlen_attention.keep_borders(positions, told, 8)
    assert varlen_attention._borders(positions, 5) == (told, 8)
    positions[0] = torch.tensor([0, 1, 0, 1, 2])
    assert varlen_attention._borders(positions, 5)[0].tolist() == [0, 2, 5]


@pytest.mark.parametrize("width", [8, 5])  # of a value
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("shares_keys", [True, False])
def test_the_flash_kernel_is_asked_for_the_same_attention(monkeypatch, shares_keys, window, width):
    """The kernel exists on CUDA only: here a stand-in computes what it is asked for."""

    def stand_in(query, key, value, cu_q, cu_k, max_q, max_k, *, scale, window_size, enable_gqa=False):
        assert max_q == max_k == 11 and enable_gqa == shares_keys
        assert enable_gqa or query.shape[1] == key.shape[1]
        assert query.shape[2] == key.shape[2] == value.shape[2]
        left, right = window_size
        assert right == 0
        wide = [tensor.transpose(0, 1)[None] for tensor in (query, key, value)]
        return oracle(*wide, cu_q, scale, None if left == -1 else left + 1).float()

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", stand_in)
    monkeypatch.setattr(varlen_attention, "shares_keys", lambda: shares_keys)
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 20, 8), torch.randn(1, 2, 20, 8), torch.randn(1, 2, 20, width)
    borders = torch.tensor([0, 9, 20], dtype=torch.int32)
    module = SimpleNamespace(is_causal=True)
    one_by_one, _ = packed_attention_forward(
        module, query, key, value, None, scaling=0.3, cu_seq_lens_q=borders, max_length_q=11, sliding_window=window
    )
    flash = varlen_attention._flash(query, key, value, borders, 11, 0.3, window)
    torch.testing.assert_close(flash, one_by_one, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one_by_one[0], oracle(query, key, value, borders, 0.3, window).float())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_on_cuda_values_and_gradients_are_those_of_float64(dtype, window):
    torch.manual_seed(0)
    borders = torch.tensor([0, 190, 191, 513, 900], dtype=torch.int32, device="cuda")
    query, key, value = (
        torch.randn(1, heads, 900, 64, device="cuda", dtype=dtype, requires_grad=True) for heads in (9, 3, 3)
    )
    module = SimpleNamespace(is_causal=True)
    output, _ = packed_attention_forward(
        module, query, key, value, None, cu_seq_lens_q=borders, max_length_q=387, sliding_window=window
    )
    expected = oracle(query, key, value, borders, 64**-0.5, window)
    upstream = torch.randn_like(expected)
    gradients = torch.autograd.grad(output[0], (query, key, value), upstream.to(dtype))
    expected_gradients = torch.autograd.grad(expected, (query, key, value), upstream)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for mine, theirs in zip((output[0], *gradients), (expected, *expected_gradients), strict=True):
        assert (mine.double() - theirs.double()).norm() <= tolerance * theirs.double().norm()
