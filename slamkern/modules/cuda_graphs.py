"""A function of a batch as CUDA graphs, one for each shape of batch: thousands of launches become one.

The first batch of a shape runs as it is, which is the warm-up; at the second the function is captured, and that batch
and all after it are copied to where the captured launches read and the graph is replayed. Nothing runs twice, so sums
that the function adds to are right. It returns nothing, and what it adds to stays where it is.

A graph repeats the same launches with the same addresses, so the function may not look at a tensor to decide what to
do next. ``NoSync`` names the op that does, in the first run; a failed capture would only say that there is one.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from slamkern.errors import SlamkernError

Run = Callable[[], None]

_aten = torch.ops.aten
# The host waits for their result, or for the number of their results.
_WAITING = (
    _aten._local_scalar_dense, _aten.is_nonzero, _aten.equal, _aten.nonzero, _aten.masked_select, _aten._unique,
    _aten._unique2, _aten.unique_dim, _aten.unique_consecutive, _aten.repeat_interleave,
)  # fmt: skip


class NoSync(TorchDispatchMode):
    """Within the block an op for which a device and the host wait for one another is refused; backward is seen too.

    Tensors on the CPU may be looked at.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _waits(func.overloadpacket, args, kwargs or {}):
            raise _refusal(func)
        return func(*args, **(kwargs or {}))


def _waits(packet: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    places = {value.device.type for value in args if isinstance(value, Tensor)}
    if packet is _aten._to_copy and kwargs.get("device") is not None:
        places.add(torch.device(kwargs["device"]).type)
    if packet in (_aten._to_copy, _aten.copy_):
        return len(places) > 1
    if packet in (_aten.index, _aten.index_put_, _aten.index_put):
        # Of a mask the places are looked for, unless it can be filled with one value.
        masks = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        return places != {"cpu"} and masks and not (packet is not _aten.index and args[2].numel() == 1)
    if kwargs.get("output_size") is not None:  # of repeat_interleave
        return False
    # lift_fresh: torch.tensor(..., device=...)
    return places - {"cpu"} != set() and (packet in _WAITING or packet is _aten.lift_fresh)


def _refusal(func: Any) -> SlamkernError:
    return SlamkernError(
        f"cuda_graphs: this model runs {func}, for which device and host wait for one another, so it cannot be"
        " captured; use cuda_graphs=False"
    )


def check_capturable(devices: Iterable[torch.device]) -> None:
    """SlamkernError unless a model on these devices can be captured."""
    if len(found := {str(device) for device in devices}) != 1 or not next(iter(found)).startswith("cuda"):
        raise SlamkernError(f"cuda_graphs is for a model on one NVIDIA GPU; this one is on {' '.join(sorted(found))}")


class Capture(Protocol):
    """How something is captured; :class:`CudaCapture`, or what a test has instead."""

    def warm_up(self) -> AbstractContextManager[None]:
        """Around a run that is not captured."""

    def __call__(self, run: Run) -> Run:
        """Capture ``run``; returns what repeats it."""


class CudaCapture:
    """Graphs of one device, that share their memory: they are replayed one after another."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def warm_up(self) -> Iterator[None]:
        """On the stream that captures: autograd runs a backward on the streams of its forward."""
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            yield
        torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)

    def __call__(self, run: Run) -> Run:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                run()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            first = str(error).partition("\n")[0]
            raise SlamkernError(
                f"cuda_graphs: this model cannot be captured ({first}); use cuda_graphs=False"
            ) from error
        return graph.replay


class Graphs:
    """``run`` as CUDA graphs; its batches are of one dataclass of tensors and numbers, with a method ``to``."""

    def __init__(
        self,
        run: Callable[[Any], None],
        device: torch.device,
        *,
        before_capture: Run = lambda: None,
        capture: Capture | None = None,
    ) -> None:
        """before_capture: puts what ``run`` adds to where it will stay."""
        self._run, self._device, self._before_capture = run, device, before_capture
        self._capture = CudaCapture(device) if capture is None else capture
        self._seen: set[Hashable] = set()
        self._captured: dict[Hashable, tuple[dict[str, Tensor], Run]] = {}

    def __call__(self, batch: Any) -> None:
        """Run on ``batch``, which is on the host."""
        values = {field.name: getattr(batch, field.name) for field in fields(batch)}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        shape = tuple(tuple(value.shape) if name in tensors else value for name, value in values.items())
        if shape not in self._seen:
            self._seen.add(shape)
            there = batch.to(self._device)
            with self._capture.warm_up(), NoSync():
                self._run(there)
            return
        if shape not in self._captured:
            self._before_capture()
            static = {name: torch.empty_like(value, device=self._device) for name, value in tensors.items()}
            there = replace(batch, **static)
            self._captured[shape] = static, self._capture(lambda: self._run(there))
        static, replay = self._captured[shape]
        for name, tensor in static.items():
            tensor.copy_(tensors[name], non_blocking=True)
        replay()
