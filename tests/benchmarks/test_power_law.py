"""Power laws: known ones are found again, and agree with scipy's least squares."""

import numpy as np
import pytest
from scipy.optimize import curve_fit

from benchmarks.reports.power_law import fit_power_law, fit_with_seeds

N = np.geomspace(1e4, 1e6, 5)


@pytest.mark.parametrize("exponent", [0.05, 0.3, 1.2])
@pytest.mark.parametrize("floor", [0.0, 2.5])
def test_an_exact_law_is_found(exponent: float, floor: float) -> None:
    loss = floor + 1.7 * (N / 1e5) ** -exponent
    law = fit_power_law(N, loss)
    np.testing.assert_allclose(law(N), loss, rtol=1e-4)
    np.testing.assert_allclose(law.unit, 1e5)
    if floor:
        assert law.exponent == pytest.approx(exponent, rel=0.01)
        assert law.floor == pytest.approx(floor, rel=0.05)
    plain = fit_power_law(N, loss, with_floor=False)
    assert plain.floor == 0.0
    if not floor:
        assert plain.exponent == pytest.approx(exponent, rel=1e-4)
        assert plain.scale == pytest.approx(1.7, rel=1e-4)


def test_a_noisy_law_is_scipys() -> None:
    rng = np.random.default_rng(3)
    loss = 2.0 + 1.5 * (N / 1e5) ** -0.5 + 0.02 * rng.standard_normal(5)
    law = fit_power_law(N, loss)
    want, _ = curve_fit(
        lambda n, c, a, b: c + a * (n / 1e5) ** -b, N, loss, p0=[2.0, 1.5, 0.5], maxfev=20_000
    )
    np.testing.assert_allclose([law.floor, law.scale, law.exponent], want, rtol=1e-3)


def test_a_noisy_law_without_a_floor_is_scipys() -> None:
    loss = 1.5 * (N / 1e5) ** -0.5 * np.array([1.1, 0.9, 1.05, 0.95, 1.1])
    law = fit_power_law(N, loss, with_floor=False)
    want, _ = curve_fit(lambda n, a, b: a * (n / 1e5) ** -b, N, loss, p0=[1.5, 0.5])
    np.testing.assert_allclose([law.scale, law.exponent], want, rtol=1e-3)


def test_a_rising_loss_has_no_falling_law() -> None:
    law = fit_power_law(N, np.array([1.0, 1.1, 1.2, 1.3, 1.4]))
    assert law.exponent < 0.01
    assert (np.diff(law(N)) <= 0).all()
    np.testing.assert_allclose(law(N), 1.2)  # of all laws that don't rise, the closest


def test_intervals_cover_the_truth_and_shrink_with_noise() -> None:
    rng = np.random.default_rng(0)
    truth = 2.0 + 1.5 * (N / 1e5) ** -0.5
    widths = {}
    for noise in (0.001, 0.02):
        fit = fit_with_seeds(N, truth[:, None] + noise * rng.standard_normal((5, 10)), seed=1)
        low, high = fit.interval("exponent")
        assert low < 0.5 < high or noise == 0.001
        low_band, high_band = fit.band(N)
        assert (low_band <= high_band).all()
        widths[noise] = high - low
    assert widths[0.001] < widths[0.02] / 4


def test_too_few_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 4 sizes, got 3"):
        fit_power_law(N[:3], np.ones(3))
    with pytest.raises(ValueError, match="of each of 5 sizes, got 4"):
        fit_power_law(N, np.ones(4))
    with pytest.raises(ValueError, match="positive"):
        fit_power_law(N, np.array([1.0, 2.0, 0.0, 1.0, 1.0]))
