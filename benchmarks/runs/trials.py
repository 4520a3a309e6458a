"""Which settings a tuning tries: the defaults first, then draws from a space, equally many each."""

from collections.abc import Mapping
from typing import TypeVar

import torch

from gpr_rl.random import Purpose, uniform

Value = TypeVar("Value")


def draw_trials(space: Mapping[str, tuple[Value, ...]], num_trials: int) -> list[dict[str, Value]]:
    """Return what every trial sets: nothing, then draws without replacement.

    The draws have the same numbers in every space.

    Args:
        space: Values by name.
        num_trials: At least 1; a small space gives fewer.
    """
    size = 1
    for values in space.values():
        size *= len(values)
    order = uniform(0, Purpose.TUNING, torch.arange(size)).argsort(stable=True).tolist()
    trials: list[dict[str, Value]] = [{}]
    for number in order[: num_trials - 1]:
        setting = {}
        for name, values in space.items():
            number, place = divmod(number, len(values))
            setting[name] = values[place]
        trials.append(setting)
    return trials
