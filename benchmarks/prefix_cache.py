"""The layers below a trained one are not computed again: what they gave for each batch is remembered.

With the layers below ``l`` unchanged, the input of layer ``l`` is the same in every step and every measurement. So the
inputs of all layers are recorded once for every batch, and layer ``l`` is then trained and measured from there. The
numbers are those of the whole model, bit for bit. Memory: batches x tokens x layers x hidden_size of the model's dtype.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class PrefixCache:
    """Inputs of every decoder layer of a model, by the token ids of the batch that they belong to."""

    def __init__(self, model: Any) -> None:
        self._decoder = model.get_decoder()
        self._inputs: dict[bytes, dict[int, Tensor]] = {}
        self._batch = b""

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Every forward inside is remembered; the model must be the unchanged one."""
        layers = self._decoder.layers

        def remember(index: int) -> Any:
            def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
                self._inputs.setdefault(self._batch, {})[index] = arguments[0].detach()

            return hook

        hooks = [layer.register_forward_pre_hook(remember(index)) for index, layer in enumerate(layers)]
        hooks.append(self._note_batch())
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def above(self, layer: int) -> Iterator[None]:
        """Forwards inside begin at ``layer``; a batch that was not recorded is a KeyError."""
        layers = self._decoder.layers
        below = list(layers[:layer])
        hook = self._note_batch()
        try:
            for index in range(layer):
                layers[index] = _Recall(self, layer)
            yield
        finally:
            hook.remove()
            for index, module in enumerate(below):
                layers[index] = module

    def _note_batch(self) -> Any:
        def hook(module: nn.Module, arguments: Any, keywords: dict[str, Any]) -> None:
            self._batch = keywords["input_ids"].numpy().tobytes()

        return self._decoder.register_forward_pre_hook(hook, with_kwargs=True)

    def input_of(self, layer: int) -> Tensor:
        """(batch, tokens, hidden_size): what the layer was given for the batch that runs now."""
        return self._inputs[self._batch][layer]


class _Recall(nn.Module):
    """Stands for a layer that is skipped."""

    def __init__(self, cache: PrefixCache, layer: int) -> None:
        super().__init__()
        self._cache, self._layer = cache, layer

    def forward(self, hidden: Tensor, **_: Any) -> Tensor:
        return self._cache.input_of(self._layer)
