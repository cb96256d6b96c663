"""Greedy decoding of many prompts at once: a row that is done leaves, and a waiting prompt takes its place.

All live rows share one clock (``clock_cache``): they lie in the cache as if their prompts had been padded on the left
to end there together, so a row that enters late costs the others nothing and distances between the columns of a row
are those of its tokens, which is what sliding windows need. Prompts are run apart from the live rows, several at once
and padded on the right, where a causal model does not look; each but for its last token, which enters with the first
step, so that no logits of prompts are computed. What all prompts begin with is run once.

It serves causal models whose memory is keys and values (``can_decode``). It does not sample.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from slamkern.evaluation.clock_cache import ClockCache

NAME = "slamkern_grouped"
# Columns beyond the longest row: a full cache is moved to its front, so this happens at most once in so many steps.
SPARE_COLUMNS = 64
# Prompts are run this many at a time: they are sorted by length, so few of them hold little padding.
PROMPTS_AT_ONCE = 8
# Waiting prompts enter when one row in so many is free: running a single prompt reads all weights for few tokens.
FREE_SHARE = 8


def can_decode(model: Any) -> bool:
    """Whether what the model remembers of a text is the keys and values of its tokens, one column each."""
    config = model.config.get_text_config()
    types = set(getattr(config, "layer_types", None) or ())
    recurrent = getattr(model, "_is_stateful", False)
    return not (recurrent or model.config.is_encoder_decoder or types - {"full_attention", "sliding_attention"})


class Decoder:
    """Decodes ``prompts`` (token ids each, none empty, longest first), at most ``rows`` at a time.

    A row is done when ``finished`` says so of its new tokens, or with ``max_new_tokens`` of them. Call ``run`` until it
    returns nothing, in evaluation mode and without gradients.
    """

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        *,
        rows: int,
        max_new_tokens: int,
        finished: Callable[[list[int]], bool],
    ) -> None:
        self.model, self.prompts, self.finished = model, prompts, finished
        self.rows, self.max_new_tokens = min(rows, len(prompts)), max_new_tokens
        self.columns = max(map(len, prompts), default=0) + max_new_tokens + SPARE_COLUMNS
        self._waiting = list(reversed(range(len(prompts))))
        # Row by row: the prompt, the column where it begins, the new tokens.
        self._live: list[int] = []
        self._start: list[int] = []
        self._new: list[list[int]] = []
        self._cache: ClockCache | None = None
        self._prefix = _common_prefix([prompt[:-1] for prompt in prompts])
        self._prefix_cache: Any = None
        self._takes = set(inspect.signature(model.forward).parameters)

    def run(self) -> list[tuple[int, list[int]]]:
        """Step until rows are done, and return their prompts' indices and new tokens; nothing when all are done."""
        with grouped_attention(self.model):
            while self._live or self._waiting:
                free = self.rows - len(self._live)
                if self._waiting and (not self._live or free * FREE_SHARE >= self.rows):
                    entering = [self._waiting.pop() for _ in range(min(free, len(self._waiting)))]
                    for first in range(0, len(entering), PROMPTS_AT_ONCE):
                        self._enter(entering[first : first + PROMPTS_AT_ONCE])
                self._step()
                if done := self._leave():
                    return done
        return []

    def _enter(self, prompts: list[int]) -> None:
        """Run these prompts but for their last tokens, and put what they leave into free rows."""
        bodies = [self.prompts[prompt][:-1] for prompt in prompts]
        texts = self._run_prompts(bodies)
        if self._cache is None:
            from slamkern.evaluation.clock_cache import ClockCache  # brings transformers along

            self._cache = ClockCache(texts, self.rows, self.columns)
        clock = self._cache.clock
        if not self._live:
            clock.now = max(map(len, bodies))
        for index, (prompt, body) in enumerate(zip(prompts, bodies, strict=True)):
            self._cache.put(texts, index, len(body), len(self._live))
            self._live.append(prompt)
            self._start.append(clock.now - len(body))
            self._new.append([])
        clock.rows, clock.first = len(self._live), min(self._start)

    def _run_prompts(self, bodies: Sequence[Sequence[int]]) -> Any:
        """The cache of these texts: row r holds text r in its first columns, behind them there is padding."""
        from transformers import DynamicCache

        if self._prefix and self._prefix_cache is None:
            self._prefix_cache = DynamicCache()
            self._forward([bodies[0][: self._prefix]], [[1] * self._prefix], None, self._prefix_cache)
        cache = DynamicCache()
        if self._prefix:
            for index, layer in enumerate(self._prefix_cache.layers):
                cache.update(*(s.repeat(len(bodies), 1, 1, 1) for s in (layer.keys, layer.values)), index)
        longest = max(map(len, bodies))
        rest = [[*body[self._prefix :], *[0] * (longest - len(body))] for body in bodies]
        if rest[0] or not self._prefix:  # a prompt of one token leaves a column of padding, of which nothing is copied
            rest = [row or [0] for row in rest]
            mask = [[1] * len(body) + [0] * (self._prefix + len(rest[0]) - len(body)) for body in bodies]
            self._forward(rest, mask, None, cache)
        return cache

    def _step(self) -> None:
        """One more token for every live row."""
        cache = self._memory
        if cache.clock.now == self.columns:
            moved = cache.move_to_front()
            self._start = [start - moved for start in self._start]
        clock = cache.clock
        width = clock.now - clock.first + 1
        last = [[(new or self.prompts[prompt])[-1]] for prompt, new in zip(self._live, self._new, strict=True)]
        before = torch.tensor(self._start)[:, None] - clock.first  # (rows, 1)
        mask = (torch.arange(width) >= before).long()
        logits = self._forward(last, mask, width - 1 - before, cache)
        clock.now += 1
        for new, token in zip(self._new, logits[:, -1].argmax(-1).tolist(), strict=True):  # device sync, once a step
            new.append(token)

    def _leave(self) -> list[tuple[int, list[int]]]:
        """Take out the rows that are done; the last live row moves to each place that becomes free."""
        done = []
        for row in reversed(range(len(self._live))):
            if len(self._new[row]) < self.max_new_tokens and not self.finished(self._new[row]):
                continue
            done.append((self._live[row], self._new[row]))
            last = len(self._live) - 1
            if row != last:
                self._memory.move_row(last, row)
            for column in (self._live, self._start, self._new):
                _take_out(column, row)
        self._memory.clock.rows = len(self._live)
        self._memory.clock.first = min(self._start, default=self._memory.clock.now)
        return done

    @property
    def _memory(self) -> "ClockCache":
        assert self._cache is not None
        return self._cache

    def _forward(self, ids: Any, mask: Any, positions: Tensor | None, cache: Any) -> Tensor:
        """Logits (rows, 1, vocabulary) of the last of ``ids`` (rows, tokens), which follow what ``cache`` holds."""
        device = self.model.device
        inputs = {"position_ids": positions, "logits_to_keep": 1}
        extra = {name: value for name, value in inputs.items() if value is not None and name in self._takes}
        extra = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in extra.items()}
        output = self.model(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=torch.as_tensor(mask, device=device),
            past_key_values=cache,
            use_cache=True,
            **extra,
        )
        logits: Tensor = output.logits
        return logits


def _take_out(column: list[Any], row: int) -> None:
    column[row] = column[-1]
    column.pop()


def _common_prefix(texts: Sequence[Sequence[int]]) -> int:
    """How many tokens all texts begin with; 0 for fewer than two texts."""
    if len(texts) < 2:
        return 0
    lowest, highest = min(map(list, texts)), max(map(list, texts))
    return next((i for i, (a, b) in enumerate(zip(lowest, highest, strict=False)) if a != b), len(lowest))


def grouped_attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """SDPA for one query a row without a copy of keys and values for each of the heads that share them.

    query (rows, H, 1, D), key and value (rows, KV, columns, D): the H / KV heads of a group become the queries of one
    head, as the mask is the same for all of them. Anything else is left to the implementation of transformers.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    rows, heads, queries, _ = query.shape
    shared = heads // key.shape[1]
    if queries != 1 or shared == 1 or position_bias is not None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, position_bias=position_bias, **kwargs
        )
    grouped = query.reshape(rows, key.shape[1], shared, query.shape[-1])
    output = scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return output.reshape(rows, 1, heads, value.shape[-1]), None


@contextmanager
def grouped_attention(model: Any) -> Iterator[None]:
    """Inside, a model that uses SDPA as transformers hands it out runs ``grouped_attention_forward`` instead.

    Any other keeps what it has: Falcon, for one, looks at the name and calls SDPA itself.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, grouped_attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    handed_out = getattr(model, "_supports_attention_backend", False)
    replaced = handed_out and model.config._attn_implementation == "sdpa"
    try:
        if replaced:
            model.set_attn_implementation(NAME)
        yield
    finally:
        if replaced:
            model.set_attn_implementation("sdpa")
