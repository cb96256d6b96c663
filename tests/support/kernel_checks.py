"""What the kernel tests share: where they run, how inputs are made, and how far from the float64 truth a result may be.

With a CUDA device the same tests run compiled on it; without one they run in Triton's interpreter (see conftest.py).
"""

import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Normal values, rounded to ``dtype`` on the device of the tests."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * scale).to(dtype).to(DEVICE)


def language_ids(layout: str, tokens: int, languages: int, seed: int = 0) -> Tensor:
    """(tokens,) int32: ``grouped`` runs in order or ``mixed`` in every tile, some ignored; or ``ignored`` only."""
    if layout == "ignored":
        ids = torch.full((tokens,), -1)
    else:
        ids = torch.randint(-1, languages + 1, (tokens,), generator=torch.Generator().manual_seed(seed))
        ids = ids.sort().values if layout == "grouped" else ids
    return ids.to(torch.int32).to(DEVICE)


def halves(x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Copies of two (tokens, neurons) matrices as the halves of one fused projection: rows twice as far apart."""
    fused = torch.cat((x, other), dim=1)
    return fused[:, : x.shape[1]], fused[:, x.shape[1] :]


def assert_as_good(actual: Tensor | None, stock: Tensor | None, truth: Tensor | None, name: str = "") -> None:
    """The error against float64 is at most twice that of the stock implementation plus one rounding, in norm."""
    if truth is None:
        assert actual is None, name
        return
    assert actual is not None and actual.shape == truth.shape, name
    assert actual.dtype == stock.dtype, f"{name}: {actual.dtype}"
    # The interpreter truncates to bfloat16, an error of up to a whole unit in the last place: twice eps / 2.
    rounding = torch.finfo(actual.dtype).eps
    size = truth.double().norm()
    error, allowed = (actual.double() - truth).norm(), 2 * (stock.double() - truth).norm() + rounding / 2 * size
    assert error <= allowed, f"{name}: error {error / size:.2e}, allowed {allowed / size:.2e}"


def assert_moments(actual: tuple[Tensor, ...], truth: tuple[Tensor, ...], tolerance: float = 1e-6) -> None:
    """Counts exact; mean and M2 within ``tolerance`` of the scale of each language's values, per neuron."""
    count, mean, m2, active = actual
    expected_count, expected_mean, expected_m2, expected_active = truth
    assert (count.dtype, mean.dtype, m2.dtype, active.dtype) == (torch.int64, torch.float64, torch.float64, torch.int64)
    assert torch.equal(count, expected_count)
    assert torch.equal(active, expected_active)
    square = expected_m2 + expected_count[:, None] * expected_mean.square()
    rms = (square.mean(1) / expected_count.clamp(min=1)).sqrt()[:, None]
    assert ((mean - expected_mean).abs() <= tolerance * rms).all(), (mean - expected_mean).abs().max()
    # A rounding of the values moves M2 by 2 * eps * |x| * sqrt(n * M2) at most.
    total = square.mean(1, keepdim=True)
    allowed = 2 * tolerance * (total * (expected_m2 + total * 1e-3)).sqrt()
    assert ((m2 - expected_m2).abs() <= allowed).all(), (m2 - expected_m2).abs().max()
