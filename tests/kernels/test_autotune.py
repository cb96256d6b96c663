"""Tuning is off unless asked for, keeps what it found, and can only choose among tiles that give the same numbers."""

import inspect
import json

import pytest
import torch
from support.kernel_checks import DEVICE, assert_as_good, normal

pytest.importorskip("triton")
from slamkern.errors import SlamkernError
from slamkern.kernels import autotune, dual_gemm, glu, glu_stats, launch, merge_moments, weight_grad
from slamkern.ops import reference

GATE, UP, GRAD = normal(9, 300), normal(9, 300, seed=1), normal(9, 300, seed=2)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The file of an asked-for tuning; the third tile is always the fastest."""
    monkeypatch.setenv(autotune.VARIABLE, "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    autotune._tuner.cache_clear()
    times = []

    def seconds(run, device):
        run()
        times.append(len(times))
        return 0.0 if len(times) % 10 == 3 else 1.0 + len(times)

    monkeypatch.setattr(autotune, "_seconds", seconds)
    yield tmp_path / "slamkern" / "tiles.json", times
    autotune._tuner.cache_clear()


def test_nothing_is_timed_unasked(monkeypatch):
    monkeypatch.delenv(autotune.VARIABLE, raising=False)
    monkeypatch.setattr(autotune, "_tuner", lambda: pytest.fail("tuned"))
    glu.swiglu(GATE, UP, "silu")


def test_the_fastest_tile_is_kept_for_the_process_and_for_later_ones(cache, monkeypatch):
    file, times = cache
    launched = []
    kernel = glu._grid
    monkeypatch.setattr(glu, "_grid", lambda gate, tile: launched.append(tile) or kernel(gate, tile))
    tiles = launch.strips(300, 4)
    hidden = glu.swiglu(GATE, UP, "silu")
    assert launched == [*tiles, tiles[2]] and len(times) == len(tiles) > 2
    assert_as_good(hidden, reference.swiglu(GATE, UP, "silu"), reference.swiglu(GATE.double(), UP.double(), "silu"))
    (tile,) = json.loads(file.read_text()).values()
    assert tile == {"block_t": tiles[2].block_t, "block_n": tiles[2].block_n, "num_warps": tiles[2].num_warps}
    autotune._tuner.cache_clear()  # another process
    launched.clear()
    glu.swiglu(normal(14, 300), normal(14, 300), "silu")  # of the same size class
    assert launched == [tiles[2]] and len(times) == len(tiles)


@pytest.mark.parametrize("index", range(5))
def test_every_tile_gives_the_same_numbers(index, monkeypatch):
    tiles = launch.strips(300, 4)
    monkeypatch.setattr(autotune, "tuned", lambda kind, tiles, run, device: tiles[index % len(tiles)])
    assert torch.equal(glu.swiglu(GATE, UP, "gelu"), untuned(glu.swiglu, tiles, GATE, UP, "gelu"))
    actual = glu.swiglu_backward(GRAD, GATE, UP, "silu", True)
    stock = reference.swiglu_backward(GRAD, GATE, UP, "silu", True)
    exact = reference.swiglu_backward(GRAD.double(), GATE.double(), UP.double(), "silu", True)
    for result, plain, truth in zip(actual, stock, exact, strict=True):
        assert_as_good(result, plain, truth)
    grad, x = normal(40, 24, dtype=torch.float16), normal(40, 20, dtype=torch.float16, seed=3)
    truth = grad.double().T @ x.double()
    assert_as_good(weight_grad.sparse_weight_grad(grad, x), grad.T @ x, truth)
    weights = [normal(40, 20, dtype=torch.float16, seed=seed, scale=0.3) for seed in (4, 5)]
    hidden, *_ = dual_gemm.gated_linear(x, *weights, None, 1, "silu", "gate", False)
    wide = [weight.double() for weight in weights]
    truth = reference.swiglu(x.double() @ wide[0].T, x.double() @ wide[1].T, "silu")
    assert_as_good(hidden, reference.swiglu(x @ weights[0].T, x @ weights[1].T, "silu"), truth)


def untuned(function, tiles, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autotune, "tuned", lambda kind, tiles, run, device: tiles[0])
        return function(*arguments)


def test_a_tile_without_room_is_never_chosen():
    def run():
        raise autotune.OutOfResources(300000, 232448, "shared memory")

    assert autotune._seconds(run, torch.device(DEVICE)) == float("inf")


def test_what_accumulates_is_not_tuned():
    for module in (glu_stats, merge_moments):
        assert "tune" not in inspect.getsource(module)


def test_misuse_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv(autotune.VARIABLE, "yes")
    with pytest.raises(SlamkernError, match="SLAMKERN_AUTOTUNE='yes'; use 1"):
        glu.swiglu(GATE, UP, "silu")
    broken = tmp_path / "tiles.json"
    broken.write_text("{")
    with pytest.raises(SlamkernError, match=r"tiles.json cannot be read: .*; delete it to tune again"):
        autotune.Tuner(broken)
