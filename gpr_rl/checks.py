"""Checks of numbers and codes that users give; each names the thing, the rule and the value."""

import math
from numbers import Integral

import torch
from torch import Tensor


def check_at_least(least: int | float, **values: int | float) -> None:
    """Raise a ValueError where a named number is below `least`, or NaN."""
    for name, value in values.items():
        if not value >= least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def check_whole(least: int, **values: int) -> None:
    """Raise a ValueError where a named number is no integer of at least `least`; bools are none."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise ValueError(f"{name} must be a whole number, got {value!r}")
    check_at_least(least, **values)


def check_finite(least: int | float, **values: int | float) -> None:
    """Raise a ValueError where a named number is infinite, NaN or below `least`."""
    for name, value in values.items():
        if not least <= value < math.inf:
            raise ValueError(f"{name} must be finite and at least {least}, got {value}")


def check_positive(**values: int | float) -> None:
    """Raise a ValueError where a named number is not above 0 and finite."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")


def check_codes(codes: Tensor, num_codes: int) -> None:
    """Raise a ValueError, with place and value, where codes do not lie in [0, V).

    Nothing is checked inside `torch.compile`, which can't branch on values.
    """
    if torch.compiler.is_compiling():
        return
    wrong = (codes < 0) | (codes >= num_codes)
    if wrong.any():
        place = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"codes must lie in [0, {num_codes}), got {int(codes[tuple(place)])} at {place}"
        )
