"""Tokens a second of a training inside another trainer: of all processes, over the time that they trained."""

import time

import torch
from torch import Tensor

from slamkern import distributed


class Pace:
    """Counts tokens from ``start`` on. What a trainer does between two steps counts, unless it is ``apart``."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin anew, here and now."""
        self._tokens: Tensor | int = 0
        self._since = self._ended = time.perf_counter()
        self._apart = False

    def count(self, tokens: Tensor | int) -> None:
        """A sum on a device stays there until it is asked for."""
        self._tokens += tokens

    def step_ended(self) -> None:
        self._ended = time.perf_counter()

    def apart(self) -> None:
        """Something else than training (an evaluation, a save) came after the last step."""
        self._apart = True

    def go_on(self) -> None:
        """The training goes on; what came after the last step is not counted if it was apart."""
        if self._apart:
            self._since += time.perf_counter() - self._ended
            self._apart = False

    def take(self) -> float:
        """Tokens a second since the last call, or the start; every process of the job calls this."""
        self.go_on()
        tokens = torch.tensor(float(self._tokens), dtype=torch.float64)
        distributed.sum_([tokens])
        now = time.perf_counter()
        pace = float(tokens) / (now - self._since)
        self._tokens, self._since, self._ended = 0, now, now
        return pace
