"""Recording statistics in any loop over a model.

Nothing is counted by itself: a forward adds to the statistics only inside ``recorder.tokens(...)``, so a forward that
runs again (checkpointing, warm-up, generation) is never counted twice.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from slamkern import distributed
from slamkern.errors import SlamkernError, refuse_string
from slamkern.modules.ffn_match import find_ffns
from slamkern.modules.patch import fused_ffns, patched
from slamkern.ops import OBSERVABLES
from slamkern.ops.dispatch import plan_rows
from slamkern.ops.moments import Moments, Recording, merge_, merge_moments_
from slamkern.probe.stats import ActivationStats, QuestionGroups, model_signature


class Recorder:
    """Adds up moments per language, layer and neuron; made by :func:`record_stats`."""

    def __init__(self, model: nn.Module, languages: Sequence[str], observe: str, groups: int) -> None:
        self.languages = tuple(languages)
        self.observe = observe
        self.groups = groups
        self._model = model
        self._ffns = fused_ffns(model)
        widths = sorted({ffn.neurons for ffn in self._ffns})
        if len(widths) != 1:
            raise SlamkernError(f"FFN widths differ between layers ({widths}); statistics need one width")
        layers = [ffn.layer for ffn in self._ffns]
        if layers != list(range(len(layers))):
            raise SlamkernError(f"only layers {layers} are fused; statistics need every layer from 0")
        slots = len(self.languages) * max(1, groups)
        self._dtype = next(model.parameters()).dtype
        devices = {match.part.layer: next(match.block.parameters()).device for match in find_ffns(model) if match.part}
        self._moments = [Moments.zeros(slots, ffn.neurons, devices[ffn.layer]) for ffn in self._ffns]

    @contextmanager
    def tokens(self, language_ids: Tensor, group_ids: Tensor | None = None) -> Iterator[None]:
        """Count the forward passes in this block.

        ``language_ids``: integers of the shape of ``input_ids``, an index into ``languages`` for each token, -1 to
        ignore (padding). ``group_ids``: of the same shape, the group of questions each token belongs to; given exactly
        when the recorder was made with groups.
        """
        slots = language_ids
        if (group_ids is None) != (self.groups == 0):
            raise SlamkernError(f"the recorder has {self.groups} groups; give group_ids exactly when it has any")
        # Only ids on the CPU are checked: looking at device memory would stall the device at every batch.
        if language_ids.device.type == "cpu" and language_ids.numel() and language_ids.max() >= len(self.languages):
            raise SlamkernError(
                f"language id {int(language_ids.max())} is out of range for {len(self.languages)} languages"
            )
        if group_ids is not None:
            slots = torch.where(language_ids < 0, -1, language_ids * self.groups + group_ids)
        slots = slots.reshape(-1).to(torch.int32)
        placed, plans = {}, {}
        for ffn, moments in zip(self._ffns, self._moments, strict=True):
            device = moments.count.device
            if device not in placed:
                placed[device] = slots.to(device)
                plans[device] = plan_rows(ffn.backend, slots, moments.count.shape[0], ffn.neurons, device, self._dtype)
        for ffn, moments in zip(self._ffns, self._moments, strict=True):
            device = moments.count.device
            ffn.recording = Recording(placed[device], self.observe, moments, plans[device])
        try:
            yield
        finally:
            for ffn in self._ffns:
                ffn.recording = None

    def merge_processes(self) -> None:
        """Give every process of a job what all of them counted, merged in the order of their ranks."""
        if distributed.world_size() == 1:
            return
        for place, moments in enumerate(self._moments):
            slots, neurons = moments.mean.shape
            total = Moments.zeros(slots, neurons, moments.mean.device)
            for part in zip(*map(distributed.gather, moments.tensors), strict=True):
                merge_moments_(total.tensors, part)
            self._moments[place] = total

    @property
    def stats(self) -> ActivationStats:
        """What was counted so far; refuses a language without tokens and activations that are not finite."""
        groups, languages = max(1, self.groups), len(self.languages)
        shape = (languages, groups, len(self._moments), -1)
        counts = self._moments[0].count.cpu()
        if any(not torch.equal(moments.count.cpu(), counts) for moments in self._moments):
            raise SlamkernError("layers saw different numbers of tokens; run the whole model inside tokens(...)")
        count = counts.view(languages, groups)
        stacked = {
            name: torch.stack([getattr(moments, name).cpu() for moments in self._moments], 1).reshape(shape)
            for name in ("mean", "m2", "active")
        }
        self._check(count.sum(1), stacked["mean"], stacked["m2"])
        mean, m2 = stacked["mean"][:, 0].clone(), stacked["m2"][:, 0].clone()
        seen = count[:, 0].clone()
        for group in range(1, groups):
            here = (seen[:, None, None], mean, m2)
            merge_(*here, count[:, group, None, None], stacked["mean"][:, group], stacked["m2"][:, group])
            seen += count[:, group]
        questions = None
        if self.groups:
            questions = QuestionGroups(
                count.T.contiguous(),
                stacked["mean"].transpose(0, 1).float().contiguous(),
                stacked["active"].transpose(0, 1).int().contiguous(),
            )
        config = getattr(self._model, "config", None)
        return ActivationStats(
            self.languages,
            str(getattr(config, "_name_or_path", "") or type(self._model).__name__),
            model_signature(config) if config is not None else type(self._model).__name__,
            self.observe,
            seen,
            mean,
            m2,
            stacked["active"].sum(1),
            questions,
        )

    def _check(self, count: Tensor, mean: Tensor, m2: Tensor) -> None:
        for index, code in enumerate(self.languages):
            if count[index] == 0:
                raise SlamkernError(f"language {code!r} has no tokens; give it text, or leave it out")
            broken = ~(mean[index].isfinite() & m2[index].isfinite()).all(-1).all(0)
            if broken.any():
                layer = int(broken.nonzero()[0])
                raise SlamkernError(
                    f"activations of {code!r} in layer {layer} are NaN or infinite; load in bfloat16 or float32"
                )


@contextmanager
def record_stats(
    model: nn.Module, languages: Sequence[str], *, observe: str = "gate", groups: int = 0
) -> Iterator[Recorder]:
    """A :class:`Recorder` over ``model`` for the length of a ``with`` block; the model is patched meanwhile.

    ``observe``: ``"gate"`` for ``act_fn(gate(x))``, ``"hidden"`` for what enters down_proj. ``groups``: how many groups
    of questions to keep apart, for the bootstrap of a selection.
    """
    if observe not in OBSERVABLES:
        raise SlamkernError(f"unknown observable {observe!r}; known: {' '.join(OBSERVABLES)}")
    refuse_string(languages, "languages")
    if not languages or len(set(languages)) != len(languages):
        raise SlamkernError(f"languages are {list(languages)}; expected one or more, each once")
    with patched(model):
        yield Recorder(model, languages, observe, groups)
