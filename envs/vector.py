"""B environments as one Gymnasium vector environment, without a Python loop over them.

Dims: B environments (rows), N ads, V codes per level.
"""

from pathlib import Path
from typing import Any, Unpack

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from envs.arguments import (
    Seeds,
    known_mode,
    positive_integer,
    reset_rows,
    row_actions,
    row_seeds,
)
from envs.days import DayArguments, Days
from envs.engine import Arrays
from envs.gym import SingleEnv
from envs.requests import Episodes
from envs.spaces import observation_space
from simulators.world import World

Observations = dict[str, NDArray]
Infos = dict[str, Any]


class VectorEnv(gymnasium.vector.VectorEnv[Observations, NDArray[np.int64], NDArray]):
    """B rows of one engine behind Gymnasium's vector interface; the subclasses say of which.

    Row i behaves as the single environment that is seeded with row i's seed; observations, infos
    and the three autoreset modes are laid out as `gymnasium.vector.SyncVectorEnv` does, so either
    can take the other's place. All arrays are fresh: writing into them changes nothing here.

    **Autoreset.** `DISABLED` (the default): rows that ended wait for
    `reset(options={"reset_mask": terminated | truncated})`. A row that is stepped before that
    stays where it is, with reward 0 and its `terminated` and `truncated` as they were; rows that
    an illegal code ended early can so be carried along to the end of the others. `ResetNeeded`
    is raised where all rows have ended and, if `strict`, where any has (`SyncVectorEnv` refuses
    any). `NEXT_STEP`: the step after an end resets the row, whatever the action, with reward 0.
    `SAME_STEP`: the row is reset at once; its last observation and info are in
    `infos["final_obs"]` (an object array of dictionaries, Gymnasium's layout, the one thing here
    that is built row by row) and `infos["final_info"]`.

    **Candidates.** With `candidates=K`, K neighbouring rows propose ads for one request: they are
    seeded alike (row i with s + i // K), begin together and end together. A row that an illegal
    code ended early gets reward 0 until the others have ended.

    **Infos.** Every key has a mask `_key`, bool [B]: which rows have it. The others hold 0. A key
    that no row has is absent. `components` is such a dictionary itself.

    **TorchRL.** `GymWrapper(env, categorical_action_encoding=True)` resets rows by `reset_mask`.
    Leave the mode `DISABLED`: with `SAME_STEP` it drops the last observation of `Dict` spaces.
    Its action spec knows no mask: append the transform `ActionMask`. Its `set_seed` resets, which
    counts as an episode.
    """

    engine_class: type[Any]

    def __init__(
        self,
        num_envs: int = 1,
        world: str | Path | World = "tiny",
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.DISABLED,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        **arguments: Unpack[DayArguments],
    ) -> None:
        """Load the world (once per process).

        Args:
            num_envs: B, at least 1.
            world: A name, a world's directory, or a `World`.
            autoreset_mode: `AutoresetMode`, its value or its name, such as `"SAME_STEP"`.
            max_episode_steps: Truncate rows after so many steps, as `TimeLimit` does.
            render_mode: None, or `"ansi"` for `render`.
            arguments: As the single environment takes them: `reward`, `split`, ... Rows of a
                `strict` one are not stepped after their end (`DISABLED` only). And `candidates`.

        Raises:
            ValueError: An unknown mode, a limit below 1; another wrong argument.
        """
        engine = self.engine_class(world, positive_integer("num_envs", num_envs), **arguments)
        if render_mode not in (None, "ansi"):
            raise ValueError(f"render_mode must be None or 'ansi', got {render_mode!r}")
        self.render_mode = render_mode
        self.autoreset_mode = known_mode(autoreset_mode)
        if max_episode_steps is not None:
            max_episode_steps = positive_integer("max_episode_steps", max_episode_steps)
        self.metadata = SingleEnv.metadata | {"autoreset_mode": self.autoreset_mode}
        self.world = engine.world
        self.num_envs = engine.num_rows
        self.single_action_space = Discrete(engine.world.spec.num_codes)
        self.single_observation_space = observation_space(engine.world.spec)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self._engine = engine
        self._max_steps = max_episode_steps
        self._begun = False
        self._every = np.ones(self.num_envs, dtype=np.bool_)
        self._is_seeded = np.zeros(self.num_envs, dtype=np.bool_)
        self._done = np.zeros(self.num_envs, dtype=np.bool_)
        self._num_steps = np.zeros(self.num_envs, dtype=np.int64)

    def reset(
        self, *, seed: Seeds = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, Infos]:
        """Begin the next episode of all rows, or of some.

        Args:
            seed: s starts row i's stream anew with s + i; one entry per row is taken as it is.
                None, here or as an entry, goes on with the row's own stream (drawn by chance
                before its first seed).
            options: `reset_mask`, bool [B], resets the rows where it is True; the others keep
                their state and observation and have no info. The rest goes to the engine, such as
                `request_id`, an integer or [B].

        Raises:
            ValueError: Seeds, mask or options that are not as above.
            ResetNeeded: A mask before the first reset of all rows.
        """
        options = dict(options or {})
        rows = self._every
        if "reset_mask" in options:
            rows = reset_rows(options.pop("reset_mask"), self.num_envs)
        if not self._begun and not rows.all():
            raise ResetNeeded("no episode has begun: call reset() without reset_mask first")
        self._seed(seed, rows)
        self._engine.reset(_some(rows), options or None)
        self._begun = True
        self._done[rows] = False
        self._num_steps[rows] = 0
        return self._observation(), _batched(self._info(), rows)

    def step(
        self, actions: NDArray[np.integer]
    ) -> tuple[Observations, NDArray, NDArray, NDArray, Infos]:
        """Choose the next code of every row.

        Args:
            actions: Integers [B] in [0, V); not read where the row has ended.

        Returns:
            Observations, rewards float64 [B], terminated bool [B], truncated bool [B], infos.

        Raises:
            ValueError: Actions of another shape or kind; an illegal code if `strict`.
            ResetNeeded: No episode has begun, or see "Autoreset" above.
        """
        self._check_begun()
        ended, engine = self._done, self._engine
        if self.autoreset_mode is AutoresetMode.DISABLED:
            self._check_not_over()
        acting = ~ended
        reward = engine.step(row_actions(actions, self.num_envs), _some(acting))
        reported = engine.reported & acting
        self._num_steps += acting
        if self.autoreset_mode is AutoresetMode.NEXT_STEP and ended.any():
            engine.reset(ended)
            self._num_steps[ended] = 0
        terminated, truncated = engine.terminated.copy(), engine.truncated.copy()
        if self._max_steps is not None:
            truncated |= self._num_steps >= self._max_steps
        self._done = terminated | truncated
        if self.autoreset_mode is AutoresetMode.SAME_STEP and self._done.any():
            infos = self._renew(reported)
        else:
            infos = _batched(engine.report(), reported) if reported.any() else {}
        infos |= _batched(self._info(), self._every)
        return self._observation(), reward.astype(np.float64), terminated, truncated, infos

    def action_masks(self) -> NDArray[np.bool_]:
        """Return bool [B, V], the legal codes; all True where an episode is over."""
        self._check_begun()
        return self._engine.legal_mask.copy()

    def eligible_ads(self) -> NDArray[np.bool_]:
        """Return bool [B, N], the ads that each row's user may see now."""
        self._check_begun()
        return self._engine.eligible().copy()

    def render(self) -> tuple[str, ...] | None:
        """Return every row's last auction as a table of text if `render_mode` is `"ansi"`."""
        if self.render_mode is None:
            return None
        self._check_begun()
        return tuple(self._engine.view(row) for row in range(self.num_envs))

    def _renew(self, reported: NDArray[np.bool_]) -> Infos:
        """Reset the rows that ended and return what their last step said, and others' reports."""
        done, engine = self._done, self._engine
        final = _batched(self._info(), done)
        infos: Infos = {"final_obs": self._final_observation(), "_final_obs": done.copy()}
        if reported.any():
            report = engine.report()
            final |= _batched(report, reported & done)
            infos |= _batched(report, reported & ~done)
        infos |= {"final_info": final, "_final_info": done.copy()}
        engine.reset(_some(done))
        self._num_steps[done] = 0
        self._done = np.zeros_like(done)
        return infos

    def _final_observation(self) -> NDArray[np.object_]:
        """Return the observation of every row that ended, and None for the others."""
        index = np.flatnonzero(self._done)
        entries = self._engine.observation() | {"action_mask": self._mask()}
        values = zip(*(entry[index] for entry in entries.values()), strict=True)
        final = np.full(self.num_envs, None, dtype=np.object_)
        final[index] = [dict(zip(entries, row, strict=True)) for row in values]
        return final

    def _observation(self) -> Observations:
        observation = {key: np.array(value) for key, value in self._engine.observation().items()}
        return observation | {"action_mask": self._mask()}

    def _info(self) -> Arrays:
        return self._engine.info() | {"action_mask": self._mask()}

    def _mask(self) -> NDArray[np.int8]:
        return self._engine.legal_mask.astype(np.int8)

    def _check_begun(self) -> None:
        if not self._begun:
            raise ResetNeeded("no episode has begun: call reset() first")

    def _check_not_over(self) -> None:
        if self._done.all():
            raise ResetNeeded("all episodes are over: call reset() before step()")
        if self._engine.strict and self._done.any():
            raise ResetNeeded(
                f"the episode of row {int(self._done.argmax())} is over: call "
                "reset(options={'reset_mask': ...}) before step()"
            )

    def _seed(self, seed: Seeds, rows: NDArray[np.bool_]) -> None:
        """Seed those of `rows` that were given a seed or never had one."""
        engine = self._engine
        seeds, given = row_seeds(seed, self.num_envs, engine.candidates)
        rows = rows & (given | ~self._is_seeded)
        if rows.any():
            by_chance = rows & ~given
            if by_chance.any():
                groups = np.any(by_chance.reshape(-1, engine.candidates), axis=1)
                drawn = np.zeros(len(groups), dtype=np.int64)
                drawn[groups] = self.np_random.integers(2**31, size=int(groups.sum()))
                seeds[by_chance] = engine.by_row(drawn)[by_chance]
            engine.seed(seeds, _some(rows))
            self._is_seeded |= rows


class AdRequestVectorEnv(VectorEnv):
    """B ad requests side by side; `AdRequestEnv` says what each of them is.

    `gymnasium.make_vec("envs:gpr_rl/AdRequest-v0", num_envs=B)` makes it. Row i of
    `reset(seed=s)` plays the requests of `AdRequestEnv` seeded with s + i: integers and masks
    are equal bit for bit, floats to 1e-6. An illegal code ends its own row only.
    """

    engine_class = Episodes


class AdDayVectorEnv(VectorEnv):
    """B days side by side, in markets of their own; `AdDayEnv` says what each of them is.

    `gymnasium.make_vec("envs:gpr_rl/AdDay-v0", num_envs=B)` makes it. Row i of `reset(seed=s)`
    plays the days of `AdDayEnv` seeded with s + i.
    """

    engine_class = Days


def _some(rows: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """Return None, which means all, where all are meant: engines are quicker then."""
    return None if rows.all() else rows


def _batched(values: Arrays, rows: NDArray[np.bool_]) -> Infos:
    """Return copies of `values` with `_key` masks, 0 outside `rows`; scalars as Python's types."""
    if not rows.any():
        return {}
    infos: Infos = {}
    for key, value in values.items():
        if isinstance(value, dict):
            infos[key] = _batched(value, rows)
        else:
            wide = {"f": np.float64, "i": np.int64}.get(value.dtype.kind, value.dtype)
            array = np.array(value, dtype=wide if value.ndim == 1 else value.dtype)
            if not rows.all():
                array[~rows] = 0
            infos[key] = array
        infos[f"_{key}"] = rows.copy()
    return infos
