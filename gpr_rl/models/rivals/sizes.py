"""Checks that the configurations of the rivals share."""

from dataclasses import fields
from typing import Any


def check_sizes(config: Any) -> None:
    """Check a configuration with `dim`, `num_heads` and `dropout`, whose integers are sizes.

    Raises:
        ValueError: An integer below 1, heads that do not divide the width, dropout outside [0, 1).
    """
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, int) and value < 1:
            raise ValueError(f"{field.name} must be at least 1, got {value}")
    if config.dim % config.num_heads:
        raise ValueError(f"num_heads must divide dim={config.dim}, got {config.num_heads}")
    if not 0 <= config.dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {config.dropout}")
