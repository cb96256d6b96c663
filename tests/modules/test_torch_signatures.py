"""What only CUDA computes, called on tensors without data: arguments, shapes, layouts as torch 2.11 and 2.13 take them.

Of the installed torch the shape functions are torch's own. 2.11's functions are written down here with their signature
and what they check, over the same operators.
"""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import varlen

from slamkern.modules import varlen_attention
from slamkern.modules.fp8_linear import FP8Weight
from slamkern.modules.varlen_attention import packed_attention_forward

INSTALLED_ATTENTION, INSTALLED_PRODUCT = varlen.varlen_attn, torch._scaled_mm


def attention_of_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
):
    """torch 2.11's varlen_attn: as many heads of keys as of queries, and no keyword for anything else."""
    assert key.shape[1] == value.shape[1] == query.shape[1] and isinstance(window_size, tuple)
    assert return_aux is None
    return torch.ops.torch_attn._varlen_attn(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size == (-1, 0), scale, list(window_size)
    )[0]


def product_of_2_11(self, mat2, scale_a, scale_b, bias=None, scale_result=None, out_dtype=None, use_fast_accum=False):
    """torch 2.11's _scaled_mm with a scale a row of each operand."""
    assert scale_a.shape == (self.shape[0], 1) and scale_b.shape == (1, mat2.shape[1])
    assert scale_a.is_contiguous() and scale_b.is_contiguous() and out_dtype == torch.bfloat16
    return torch.ops.aten._scaled_mm(self, mat2, scale_a, scale_b, bias, scale_result, out_dtype, use_fast_accum)


ATTENTIONS = {"2.11": attention_of_2_11, "installed": INSTALLED_ATTENTION}
PRODUCTS = {"2.11": product_of_2_11, "installed": INSTALLED_PRODUCT}


@pytest.fixture(params=ATTENTIONS)
def version(request, monkeypatch):
    monkeypatch.setattr(varlen, "varlen_attn", ATTENTIONS[request.param])
    monkeypatch.setattr(torch, "_scaled_mm", PRODUCTS[request.param])
    shares_keys = varlen_attention.shares_keys
    shares_keys.cache_clear()
    yield request.param
    shares_keys.cache_clear()


def attend(heads, key_heads, window=None, **changes):
    """Shape, dtype, device and layout of the output of packed attention over 40 tokens on CUDA."""
    with FakeTensorMode():
        shapes = {"query": heads, "key": key_heads, "value": key_heads}
        tensors = {
            name: torch.empty(1, 40, count, 64, dtype=torch.bfloat16, device="cuda").transpose(1, 2)
            for name, count in shapes.items()
        }
        borders = torch.empty(4, dtype=torch.int32, device="cuda")
        arguments = {"cu_seq_lens_q": borders, "max_length_q": 20, "sliding_window": window, "scaling": 0.2} | changes
        output, _ = packed_attention_forward(
            SimpleNamespace(is_causal=True), **tensors, attention_mask=None, **arguments
        )
    return tuple(output.shape), output.dtype, output.device.type, output.is_contiguous()


EXPECTED = ((1, 40, 4, 64), torch.bfloat16, "cuda", True)


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("key_heads", [4, 2])
def test_packed_attention_on_cuda(version, key_heads, window):
    assert attend(4, key_heads, window) == EXPECTED


FAULTS = {
    "a keyword of another torch": lambda call, *rows, **options: call(*rows, **options, is_causal=True),
    "heads that differ, and nothing said": lambda call, *rows, enable_gqa=False, **options: call(*rows, **options),
    "heads where rows belong": lambda call, query, *rows, **options: call(query.transpose(0, 1), *rows, **options),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_arguments_of_attention_are_found(version, fault, monkeypatch):
    planted = partial(FAULTS[fault], varlen.varlen_attn)
    varlen_attention.shares_keys()  # of the right one
    monkeypatch.setattr(varlen, "varlen_attn", planted)
    if fault.startswith("heads that differ"):  # as if torch 2.11's took them, too
        monkeypatch.setattr(varlen_attention, "shares_keys", lambda: True)
    with pytest.raises((AssertionError, TypeError, ValueError)):
        assert attend(4, 2) == EXPECTED


@pytest.mark.parametrize("rows", [1, 5])
def test_products_in_fp8_on_cuda(version, rows):
    with FakeTensorMode():
        weight = FP8Weight(torch.empty(48, 32, dtype=torch.bfloat16, device="cuda"))
        x, bias = (torch.empty(*s, dtype=torch.bfloat16, device="cuda") for s in ((rows, 32), (48,)))
        y = weight.project(weight.quantized(x), bias, x.dtype)
        dx = weight.input_gradient(y)
    for result, width in ((y, 48), (dx, 32)):
        assert (tuple(result.shape), result.dtype, result.device.type) == ((rows, width), torch.bfloat16, "cuda")


def test_wrong_layouts_of_a_product_are_found(version):
    """Planted: a right operand in rows, a scale of the wrong shape, a reduction of no multiple of 16."""
    with FakeTensorMode():

        def operand(*shape):
            return torch.empty(*shape, device="cuda").to(torch.float8_e4m3fn)

        ones, row = torch.ones(5, 1, device="cuda"), torch.ones(1, 48, device="cuda")
        for left, right, scale in (
            (operand(5, 32), operand(32, 48), row),
            (operand(5, 32), operand(48, 32).t(), row.narrow(1, 0, 7)),
            (operand(5, 24), operand(48, 24).t(), row),
        ):
            with pytest.raises((AssertionError, RuntimeError, ValueError)):
                torch._scaled_mm(left, right, ones, scale, out_dtype=torch.bfloat16)
