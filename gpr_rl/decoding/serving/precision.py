"""A policy that multiplies in fewer bits than it was trained in."""

from typing import Any

import torch
from torch import Tensor

PRECISIONS = ("float32", "bf16")
"""What a served model's matrix products are made in."""

_SEARCHED = ("begin", "extend", "step", "final_value")


def at_precision(policy: Any, precision: str, device: torch.device) -> Any:
    """Return a policy that multiplies in `precision` on a device; itself for `float32`.

    Raises:
        ValueError: None of `PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}, got {precision!r}")
    return policy if precision == "float32" else BF16Policy(policy, device)


class BF16Policy:
    """A policy whose matrix products are in bfloat16; what searches read of it is float32.

    So the sums over levels are exact to float32, each log-probability to bfloat16's 8 bits.
    """

    def __init__(self, policy: Any, device: torch.device) -> None:
        self._policy, self._device = policy, device

    def encode(self, request: Any) -> Any:
        """Return the policy's context; whatever it holds stays in bfloat16."""
        with torch.autocast(self._device.type, torch.bfloat16):
            return self._policy.encode(request)

    def __getattr__(self, name: str) -> Any:
        asked = getattr(self._policy, name)
        if name not in _SEARCHED:
            return asked

        def lowered(*args: Any, **options: Any) -> Any:
            with torch.autocast(self._device.type, torch.bfloat16):
                said = asked(*args, **options)
            return tuple(_restored(x) for x in said) if isinstance(said, tuple) else _restored(said)

        return lowered


def _restored(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.dtype == torch.bfloat16 else x
