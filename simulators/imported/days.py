"""Which days of an imported log are for what: log, calibration, training, validation, test.

Dims: D days.
"""

from dataclasses import dataclass

import numpy as np

from gpr_rl.data.streams import IntArray
from simulators.imported.config import ImportConfig

_TENTH, _QUARTER = 0.1, 0.25


@dataclass(frozen=True, kw_only=True)
class DaySplit:
    """Days 0 .. num_log_days - 1 are the log, then come validation and test."""

    num_days: int
    num_log_days: int
    num_validation_days: int
    num_train_days: int
    """The last days of the log."""
    num_calibration_days: int
    """Likewise."""


def last_days(rows_per_day: IntArray, share: float) -> int:
    """Return how many whole last days hold at least a share of all rows."""
    held = np.cumsum(rows_per_day[::-1])
    return int(np.searchsorted(held, share * held[-1])) + 1


def split_days(rows_per_day: IntArray, config: ImportConfig) -> DaySplit:
    """Return the split by time; what the configuration leaves open follows the rows [D].

    Raises:
        ValueError: The log is too short: rankers learn on one day at least and are calibrated on
            another.
    """
    num_days = len(rows_per_day)
    if num_days < 4:
        raise _too_short(num_days, "this")
    test = config.test_days or min(last_days(rows_per_day, _TENTH), num_days - 3)
    if num_days - test < 3:
        raise _too_short(num_days, f"{test} test days")
    before_test = rows_per_day[: num_days - test]
    validation = config.validation_days or min(last_days(before_test, _TENTH), len(before_test) - 2)
    num_log_days = num_days - test - validation
    if num_log_days < 2:
        raise _too_short(num_days, f"{validation} validation and {test} test days")
    log = rows_per_day[:num_log_days]
    calibration = config.calibration_days or min(last_days(log, _TENTH), num_log_days - 1)
    if calibration >= num_log_days:
        raise _too_short(num_log_days, f"{calibration} calibration days of the log")
    train = config.train_days or last_days(log, _QUARTER)
    if train > num_log_days:
        raise ValueError(f"train_days must be at most the {num_log_days} log days, got {train}")
    return DaySplit(
        num_days=num_days,
        num_log_days=num_log_days,
        num_validation_days=validation,
        num_train_days=train,
        num_calibration_days=calibration,
    )


def _too_short(num_days: int, parts: str) -> ValueError:
    return ValueError(
        f"{num_days} days are too few for {parts}: a world needs a day to learn on, a later one to "
        "calibrate on, one to validate and one to test"
    )
