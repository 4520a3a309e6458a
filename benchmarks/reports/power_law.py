"""Power laws of the loss over the number of parameters, with their uncertainty.

Dims: S sizes, R seeds or resamples, G exponents.
"""

from dataclasses import dataclass

import numpy as np

from benchmarks.reports.statistics import percentile_bounds

NUM_RESAMPLES = 1_000
MIN_SIZES = 4
MIN_EXPONENT, MAX_EXPONENT = 1e-4, 10.0
_GRID, _ROUNDS = 60, 5


@dataclass(frozen=True)
class PowerLaw:
    """loss(n) = floor + scale * (n / unit)^-exponent."""

    floor: float
    """At least 0; what no size gets below."""
    scale: float
    """Loss above the floor at n = unit."""
    exponent: float
    """In [0.0001, 10]."""
    unit: float
    """Parameters; the geometric mean of the sizes, at which scale and exponent are least tied."""

    def __call__(self, n: np.ndarray) -> np.ndarray:
        """Return the loss at `n` parameters."""
        return self.floor + self.scale * (np.asarray(n) / self.unit) ** -self.exponent


@dataclass(frozen=True)
class Fit:
    """A power law and what resampled seeds make of it."""

    law: PowerLaw
    resampled: tuple[PowerLaw, ...]

    def interval(self, name: str) -> tuple[float, float]:
        """Return the 95 % bootstrap interval of `floor`, `scale` or `exponent`."""
        low, high = percentile_bounds([getattr(law, name) for law in self.resampled]).tolist()
        return low, high

    def band(self, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the 95 % bootstrap band of the loss at `n`."""
        low, high = percentile_bounds([law(n) for law in self.resampled])
        return low, high


def fit_power_law(n: np.ndarray, loss: np.ndarray, *, with_floor: bool = True) -> PowerLaw:
    """Return the power law with the least squared error.

    Args:
        n: [S], parameters.
        loss: [S].
        with_floor: False: the floor is 0, a straight line on logarithmic axes.

    Raises:
        ValueError: Fewer than 4 sizes, not as many losses, or values that are not positive.
    """
    return _fit_all(n, np.asarray(loss)[None], with_floor=with_floor)[0]


def _fit_all(n: np.ndarray, loss: np.ndarray, *, with_floor: bool) -> list[PowerLaw]:
    """Return the fit to every row of `loss` [R, S].

    For a given exponent floor and scale are a line's, so that the exponent alone is searched:
    on a grid, then on finer ones around the best. `scipy.optimize.curve_fit` would search all three
    from a start, for every resample by itself, and end on other digits.
    """
    n, loss = np.asarray(n, dtype=np.float64), np.asarray(loss, dtype=np.float64)
    if len(n) < MIN_SIZES:
        raise ValueError(f"a power law needs at least {MIN_SIZES} sizes, got {len(n)}")
    if loss.shape[1] != len(n):
        raise ValueError(f"a loss is needed of each of {len(n)} sizes, got {loss.shape[1]}")
    if not ((n > 0).all() and (loss > 0).all()):
        raise ValueError("parameters and losses must be positive")
    unit = float(np.exp(np.log(n).mean()))
    x = np.log(n / unit)
    exponent = np.broadcast_to(np.geomspace(MIN_EXPONENT, MAX_EXPONENT, _GRID), (len(loss), _GRID))
    for _ in range(_ROUNDS):
        floor, scale, error = _lines(np.exp(-exponent[..., None] * x), loss, with_floor=with_floor)
        best = error.argmin(1)[:, None]
        low, high = (
            np.take_along_axis(exponent, np.clip(best + step, 0, _GRID - 1), 1) for step in (-1, 1)
        )
        chosen = [np.take_along_axis(a, best, 1)[:, 0] for a in (floor, scale, exponent)]
        exponent = low + (high - low) * np.linspace(0.0, 1.0, _GRID)
    return [PowerLaw(float(c), float(a), float(b), unit) for c, a, b in zip(*chosen, strict=True)]


def _lines(
    falling: np.ndarray, loss: np.ndarray, *, with_floor: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return floor, scale and squared error [R, G] of loss = floor + scale * falling [R, G, S].

    The floor is at least 0; where a line would go below, it goes through 0. Where it would rise
    with size, it is the mean.
    """
    y = loss[:, None]
    mean, level = falling.mean(-1, keepdims=True), y.mean(-1, keepdims=True)
    spread = np.square(falling - mean).sum(-1)
    scale = ((falling - mean) * (y - level)).sum(-1) / np.maximum(spread, 1e-300)
    floor = (level - scale[..., None] * mean)[..., 0]
    through_zero = (falling * y).sum(-1) / np.square(falling).sum(-1)
    floor, scale = np.where(scale < 0.0, level[..., 0], floor), np.maximum(scale, 0.0)
    ok = with_floor & (floor >= 0.0)
    floor, scale = np.where(ok, floor, 0.0), np.where(ok, scale, through_zero)
    error = np.square(floor[..., None] + scale[..., None] * falling - y).sum(-1)
    return floor, scale, error


def fit_with_seeds(n: np.ndarray, loss: np.ndarray, seed: int, *, with_floor: bool = True) -> Fit:
    """Return the fit of `n` [S] to the means of `loss` [S, R] over seeds, and to resampled means.

    Seeds are resampled for each size by itself: sizes share windows of a seed, but no noise that
    the fit could use. Without a floor see `fit_power_law`.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.integers(loss.shape[1], size=(NUM_RESAMPLES, *loss.shape))
    means = np.take_along_axis(loss[None], chosen, axis=2).mean(2)
    laws = _fit_all(n, means, with_floor=with_floor)
    return Fit(fit_power_law(n, loss.mean(1), with_floor=with_floor), tuple(laws))
