"""The configuration of synthetic worlds; lives in `simulators.synthetic.config`."""

from simulators.synthetic.config import SMALL, WorldConfig, named_config

__all__ = ["SMALL", "WorldConfig", "named_config"]
