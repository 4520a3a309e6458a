"""One row of an engine as a Gymnasium environment."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from envs.arguments import integer
from envs.engine import Arrays, Engine
from envs.render import auction_text
from envs.spaces import observation_space

Observation = dict[str, Any]
Info = dict[str, Any]
_SEED_LIMIT = 2**63


class SingleEnv(gymnasium.Env[Observation, np.int64]):
    """An engine of one row; the subclasses' docstrings are the specifications."""

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 - so in Gymnasium

    def __init__(self, engine: Engine, render_mode: str | None = None) -> None:
        if render_mode not in (None, "ansi"):
            raise ValueError(f"render_mode must be None or 'ansi', got {render_mode!r}")
        self.world, self._engine = engine.world, engine
        self.render_mode = render_mode
        self._is_seeded = self._has_begun = False
        self.action_space = spaces.Discrete(engine.world.spec.num_codes)
        self.observation_space = observation_space(engine.world.spec)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, Info]:
        """Begin an episode.

        Args:
            seed: Starts the environment's streams anew; None goes on with them.
            options: See the class.

        Raises:
            ValueError: An unknown option or a value that can't be played.
        """
        super().reset(seed=seed)
        if seed is None and not self._is_seeded:
            seed = int(self.np_random.integers(2**31))
        if seed is not None:
            self._engine.seed(np.array([seed % _SEED_LIMIT]))
            self._is_seeded = True
        self._engine.reset(None, options)
        self._has_begun = True
        return self._observation(), self._info()

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, Info]:
        """Choose the next code, a Python or numpy integer.

        Raises:
            ValueError: Not an integer in [0, V); an illegal code in a strict environment.
            ResetNeeded: The episode is over, or none has begun.
        """
        engine = self._engine
        if not self._has_begun or engine.terminated[0] or engine.truncated[0]:
            raise ResetNeeded("the episode is over or has not begun: call reset() before step()")
        reward = engine.step(np.array([integer("action", action)]))
        info = self._info()
        if engine.reported[0]:
            info |= _row(engine.report())
        return (
            self._observation(),
            float(reward[0]),
            bool(engine.terminated[0]),
            bool(engine.truncated[0]),
            info,
        )

    def action_masks(self) -> NDArray[np.bool_]:
        """Return bool [V], the legal codes; all True when no choice is due.

        The name is what sb3-contrib's MaskablePPO looks for.
        """
        self._check_begun()
        return self._engine.legal_mask[0].copy()

    def eligible_ads(self) -> NDArray[np.bool_]:
        """Return bool [N], the ads that this request's user may see now."""
        self._check_begun()
        return self._engine.eligible()[0].copy()

    def render(self) -> str | None:
        """Return the last auction as a table of text if `render_mode` is `"ansi"`."""
        if self.render_mode is None:
            return None
        self._check_begun()
        return auction_text(self._engine.view(0))

    def _check_begun(self) -> None:
        if not self._has_begun:
            raise ResetNeeded("no episode has begun: call reset() first")

    def _observation(self) -> Observation:
        entries = self._engine.observation().items()
        observation = {key: value[0].copy()[()] for key, value in entries}
        observation["action_mask"] = self._mask()
        return observation

    def _mask(self) -> NDArray[np.int8]:
        return self._engine.legal_mask[0].astype(np.int8)

    def _info(self) -> Info:
        return _row(self._engine.info()) | {"action_mask": self._mask()}


def _row(values: Arrays) -> Info:
    """Return the only row of arrays [1], as Python numbers."""
    return {
        key: _row(value) if isinstance(value, dict) else value[0].item()
        for key, value in values.items()
    }
