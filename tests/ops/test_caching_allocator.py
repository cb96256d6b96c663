"""Result memory that is used again: never while a tensor still needs it, and never more of it than promised."""

import threading

import pytest
import torch

from slamkern.ops import caching_allocator, native
from slamkern.ops.caching_allocator import Pages

LARGE = (1 << 20,)  # 4 MiB of float32: two huge pages


def test_a_freed_block_serves_the_next_tensor() -> None:
    recycled = Pages()
    first = recycled.empty(LARGE, torch.float32)
    address = first.data_ptr()
    del first
    again = recycled.empty((LARGE[0] // 2, 2), torch.bfloat16)  # smaller by a half
    assert again.data_ptr() == address
    assert again.shape == (LARGE[0] // 2, 2) and again.dtype == torch.bfloat16 and again.is_contiguous()


def test_a_view_keeps_the_block() -> None:
    recycled = Pages()
    first = recycled.empty(LARGE, torch.float32).fill_(7)
    view = first[10:20]
    address = first.data_ptr()
    del first
    other = recycled.empty(LARGE, torch.float32).fill_(0)
    assert other.data_ptr() != address
    assert view.eq(7).all()


def test_autograd_keeps_what_it_saved() -> None:
    recycled = Pages()
    saved = recycled.empty(LARGE, torch.float32).fill_(3)
    weight = torch.ones(LARGE, requires_grad=True)
    product = (saved * weight).sum()
    del saved
    recycled.empty(LARGE, torch.float32).fill_(0)
    product.backward()
    assert weight.grad is not None and weight.grad.eq(3).all()


def test_a_block_of_more_than_twice_the_size_is_not_wasted() -> None:
    recycled = Pages()
    large = recycled.empty((LARGE[0] * 3,), torch.float32)
    address = large.data_ptr()
    del large
    assert recycled.empty(LARGE, torch.float32).data_ptr() != address


def test_no_more_blocks_wait_than_are_kept() -> None:
    recycled = Pages(kept=2)
    alive = [recycled.empty(LARGE, torch.float32) for _ in range(5)]
    alive.clear()
    assert len(recycled._waiting) == 2


def test_threads_never_share_a_block() -> None:
    recycled = Pages()
    wrong = []

    def work(number: int) -> None:
        for _ in range(50):
            tensor = recycled.empty(LARGE, torch.float32).fill_(number)
            if not tensor.eq(number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_small_results_are_torchs_own() -> None:
    assert caching_allocator.empty_like(torch.ones(8, 4)).untyped_storage().resizable()


@pytest.mark.skipif(native.unavailable_reason() is not None, reason=f"{native.unavailable_reason()}")
def test_the_compiled_op_reuses_the_memory_of_a_result_that_is_gone() -> None:
    gate, up = torch.randn(2, 256, LARGE[0] // 256)
    hidden = native.swiglu(gate, up, "silu")
    expected, address = hidden.clone(), hidden.data_ptr()
    del hidden
    again = native.swiglu(gate, up, "silu")
    assert again.data_ptr() == address
    torch.testing.assert_close(again, expected, rtol=0, atol=0)
