"""Checks of numbers that users give; each names the number, the rule and the value."""

import math
from numbers import Integral


def check_at_least(least: float, **values: float) -> None:
    """Check that named numbers are at least `least`.

    Raises:
        ValueError: One is below, or NaN.
    """
    for name, value in values.items():
        if not value >= least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def check_whole(least: int, **values: int) -> None:
    """Check that named numbers are integers, no bools, of at least `least`.

    Raises:
        ValueError: One is not.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise ValueError(f"{name} must be a whole number, got {value!r}")
    check_at_least(least, **values)


def check_finite(least: float, **values: float) -> None:
    """Check that named numbers are finite and at least `least`.

    Raises:
        ValueError: One is not.
    """
    for name, value in values.items():
        if not least <= value < math.inf:
            raise ValueError(f"{name} must be finite and at least {least}, got {value}")


def check_positive(**values: float) -> None:
    """Check that named numbers are above 0 and finite.

    Raises:
        ValueError: One is not.
    """
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
