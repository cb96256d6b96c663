"""The measured operations: inputs, one timed case a provider, and the least bytes and FLOPs any version must spend.

=====================  ===================================================================================
forward                ``silu(gate) * up``
statistics             the same, with count, mean, m2 and active of ``silu(gate)`` per language, added to others
plan of statistics     what they need to know of the ids, once a batch for all layers
backward               gradients of gate and up, by autograd; the forward before it is not timed
gated linear           ``silu(x @ w_gate.T) * (x @ w_up.T)``, with and without statistics
frozen FFN backward    gradient of the input of a whole FFN whose weights are frozen
the same, with norm    the same through the RMS norm before it, which is frozen too
=====================  ===================================================================================

Tokens lie grouped by language, as the packer leaves them, except where the layout says ``mixed``. Bytes count every
input once and every output once. FLOPs of an element: 5 for ``silu(gate) * up`` (exp, add, divide, two products), 6
more for its statistics, 11 for its backward.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import providers
from benchmarks.providers import PROVIDERS, Absent
from benchmarks.shapes import Shape
from benchmarks.timing import Case

LANGUAGES = (1, 10, 32)
_FORWARD_FLOPS, _STATISTICS_FLOPS, _BACKWARD_FLOPS = 5, 6, 11


@dataclass(frozen=True)
class Workload:
    """How much of one shape is computed: tokens through the element-wise ops, and through the matrix products."""

    shape: Shape
    tokens: int
    gemm_tokens: int
    dtype: torch.dtype
    device: torch.device
    providers: tuple[str, ...] = PROVIDERS

    def normal(self, *size: int, scale: float = 1.0) -> Tensor:
        """Random normal numbers; random, because zeros run faster than any real data."""
        return torch.randn(*size, device=self.device, dtype=self.dtype) * scale

    def language_ids(self, tokens: int, languages: int, mixed: bool = False) -> Tensor:
        """(tokens,) int32: equal shares of the languages, grouped or in random order."""
        ids = torch.arange(tokens, device=self.device) * languages // tokens
        return (ids[torch.randperm(tokens, device=self.device)] if mixed else ids).int()


@dataclass(frozen=True)
class Operation:
    """One row of a table for every provider: its case, or why it has none."""

    name: str
    workload: Workload
    tokens: int
    bytes: int
    flops: int
    cases: Mapping[str, Case | Absent]
    languages: int | None = None
    layout: str | None = None
    bound: str = "copy"  # which ceiling it is held against: "copy" or "gemm"
    own_kernels: bool = True  # of its provider, which must be seen to run on a GPU; a plan is made of torch's


def _cases(names: Iterable[str], build: Callable[[str], Case]) -> dict[str, Case | Absent]:
    cases: dict[str, Case | Absent] = {}
    for provider in names:
        try:
            cases[provider] = build(provider)
        except Absent as reason:
            cases[provider] = reason
    return cases


def elementwise(work: Workload) -> Iterator[Operation]:
    """forward, statistics, their plan, and backward."""
    tokens, neurons = work.tokens, work.shape.neurons
    elements = tokens * neurons
    size = elements * work.dtype.itemsize
    gate, up, grad_hidden = (work.normal(tokens, neurons) for _ in range(3))

    def forward(provider: str) -> Case:
        function = providers.swiglu(provider, work.device)
        return Case(lambda _: function(gate, up))

    yield Operation("forward", work, tokens, 3 * size, _FORWARD_FLOPS * elements, _cases(work.providers, forward))

    for languages, layout in (*((count, "grouped") for count in LANGUAGES), (10, "mixed")):
        ids = work.language_ids(tokens, languages, layout == "mixed")

        def statistics(provider: str, languages: int = languages, ids: Tensor = ids) -> Case:
            function = providers.swiglu_stats(provider, ids, languages, neurons, work.dtype)
            return Case(lambda _: function(gate, up))

        moments = 2 * languages * (8 + 24 * neurons)  # read and written
        yield Operation(
            "statistics",
            work,
            tokens,
            3 * size + 4 * tokens + moments,
            (_FORWARD_FLOPS + _STATISTICS_FLOPS) * elements,
            _cases(work.providers, statistics),
            languages,
            layout,
        )

    def plan(provider: str) -> Case:
        function = providers.plan_of(provider, ids, languages, neurons, work.dtype)
        return Case(lambda _: function())

    moved = 2 * 4 * tokens  # the ids, and the order of the tokens
    cases = _cases(work.providers, plan)
    yield Operation("plan of statistics", work, tokens, moved, 0, cases, languages, layout, own_kernels=False)

    def backward(provider: str) -> Case:
        function = providers.swiglu(provider, work.device)

        def prepare() -> tuple[Tensor, Tensor, Tensor]:
            # Fresh leaves each time: Liger's backward overwrites what the forward was given.
            leaves = gate.clone().requires_grad_(), up.clone().requires_grad_()
            return *leaves, function(*leaves)

        return Case(lambda state: torch.autograd.grad(state[2], state[:2], grad_hidden), prepare)

    yield Operation("backward", work, tokens, 5 * size, _BACKWARD_FLOPS * elements, _cases(work.providers, backward))


def products(work: Workload) -> Iterator[Operation]:
    """gated linear and frozen FFN backward."""
    tokens, hidden, neurons = work.gemm_tokens, work.shape.hidden, work.shape.neurons
    itemsize = work.dtype.itemsize
    x = work.normal(tokens, hidden)
    weights = [work.normal(*size, scale=hidden**-0.5) for size in ((neurons, hidden),) * 2 + ((hidden, neurons),)]
    product = 2 * tokens * hidden * neurons

    moved = itemsize * (tokens * (hidden + neurons) + 2 * hidden * neurons)
    for languages in (0, 10):

        def gated_linear(provider: str, languages: int = languages) -> Case:
            statistics = None
            if languages:
                ids = work.language_ids(tokens, languages)
                statistics = providers.swiglu_stats(provider, ids, languages, neurons, work.dtype)
            function = providers.gated_linear(provider, work.device, statistics)
            return Case(lambda _: function(x, *weights[:2]))

        cases = _cases(work.providers, gated_linear)
        yield Operation("gated linear", work, tokens, moved, 2 * product, cases, languages, bound="gemm")

    def backward(provider: str) -> Case:
        function = providers.frozen_ffn(provider, work.device)

        def prepare() -> Any:
            leaf = x.clone().requires_grad_()
            return leaf, function(leaf, *weights)

        return Case(lambda state: torch.autograd.grad(state[1], state[0], x), prepare)

    moved = itemsize * (2 * tokens * (hidden + neurons) + 3 * hidden * neurons)
    names = (*work.providers, providers.LIGER_MLP)
    yield Operation("frozen FFN backward", work, tokens, moved, 3 * product, _cases(names, backward), bound="gemm")

    norm = 1 + work.normal(hidden, scale=0.1)

    def normed_backward(provider: str) -> Case:
        function = providers.normed_ffn(provider, work.device, norm, *weights)

        def prepare() -> Any:
            leaf = x.clone().requires_grad_()
            return leaf, function(leaf)

        return Case(lambda state: torch.autograd.grad(state[1], state[0], x), prepare)

    moved += itemsize * 3 * tokens * hidden  # x, the gradient of its norm, and its own
    cases = _cases((*names, providers.ENGINE), normed_backward)
    yield Operation("norm and frozen FFN backward", work, tokens, moved, 3 * product, cases, bound="gemm")
