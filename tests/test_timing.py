"""How benchmarks time a GPU, on stand-ins for one: what is done between runs, and for how long a ceiling is held."""

from types import SimpleNamespace

import pytest
import torch
from support.dispatched import Dispatched

from benchmarks import timing
from benchmarks.timing import Case
from slamkern.bench import step_profile

CPU = torch.device("cpu")


def test_between_runs_the_cache_is_read_full_and_not_written(monkeypatch):
    """Written lines are evicted while the next run is timed."""
    order = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            order.append("event")

        def elapsed_time(self, _):
            return 0.5

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda _: order.append("busy"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(L2_cache_size=1 << 10))
    timer = timing._CudaTimer(CPU)
    before = timer._flush._version
    with Dispatched() as dispatched:
        assert timer(Case(lambda _: order.append("case"))) == 0.5
    assert order == ["busy", "event", "case", "event"]
    assert dispatched.ops == ["aten::sum"] and timer._flush._version == before and timer._flush.nbytes == 4 << 10


def test_the_ceiling_of_products_is_sustained(monkeypatch):
    """A millisecond a product: on a CPU a fifth of a second of them, in one go."""
    products = []
    monkeypatch.setattr(torch, "mm", lambda *_, **__: products.append(1))

    def timed(run, _):
        products.clear()
        run()
        return None, len(products) / 1000

    monkeypatch.setattr(step_profile, "_timed", timed)
    assert step_profile.gemm_ceiling(CPU, torch.float32, side=4) == pytest.approx(2 * 4**3 * 1000)
    assert len(products) >= 200
