"""Floating-point operations of a call, those of attention on the CPU among them.

Dims: B sequences, H heads, T tokens, D/H width of a head.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop


def _cpu_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Return what torch counts for other devices' attention, of shapes [B, H, T, D/H]."""
    return int(sdpa_flop(query, key, value))


_UNCOUNTED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention}
"""What torch 2.13 leaves out."""


@torch.no_grad()
def training_flops(forward: Callable[[], object]) -> float:
    """Return the operations of a training step: three times those of its forward pass."""
    with FlopCounterMode(display=False, custom_mapping=_UNCOUNTED) as counter:
        forward()
    return 3.0 * counter.get_total_flops()
