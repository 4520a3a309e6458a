"""B episodes of one request each, side by side: the rules that every environment here shares.

Dims: B environments, N ads, L levels, V codes per level, R requests of a split.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gpr_rl.random import Purpose, uniform
from gpr_rl.schema import Request
from simulators.rewards import RewardFunction, RewardMix, final_value
from simulators.world import World

OUTCOME_KEYS = ("pctr", "pcvr", "ecpm", "final_value")
"""What the rankers say of the ad at the end of an episode."""
Reward = RewardMix | RewardFunction | str | Sequence[str] | None
"""What environments take as a reward; see `make_reward`."""
_DRAW_ROOT = 0  # the environment's seed is a key of the draw, so rows may have different seeds


class IllegalActionError(ValueError):
    """A strict environment was given a code that no eligible ad has."""


def make_reward(reward: Reward) -> RewardMix:
    """Return a `RewardMix` of what a user passed.

    Args:
        reward: A mix (as it is), one function of an `Outcome`, one spec or several specs
            (`name`, `name=weight`, `package.module:function=weight`), or None for `final_value`.

    Raises:
        RewardError: A spec that can't be loaded.
    """
    if isinstance(reward, RewardMix):
        return reward
    if reward is None or isinstance(reward, str):
        return RewardMix.from_specs([reward] if reward else [])
    if callable(reward):
        name = getattr(reward, "__name__", type(reward).__name__)
        return RewardMix({name: reward}, {name: 1.0})
    return RewardMix.from_specs(list(reward))


class Episodes:
    """Draws requests, follows the codes chosen for them, and scores the ads they lead to.

    Rows are independent: each has its own seed, its own episode count and its own level.

    Attributes:
        request: The current requests, batch [B].
        prefix: int64 [B, L], the codes chosen so far, 0 beyond `level`.
        level: int64 [B], how many codes are chosen.
        awaiting: bool [B], True where a choice is due.
        legal_mask: bool [B, V], what may be chosen; all True where none is due.
        ad_id: int64 [B], the ad of a finished episode, otherwise -1.
        illegal: bool [B], True where an illegal choice ended the episode.
        outcome: pctr, pcvr, ecpm, final_value, float32 [B]; 0 where there is no ad.
        components: unweighted rewards by name, float32 [B]; 0 where there is no ad.
    """

    def __init__(
        self,
        world: World,
        num_rows: int,
        *,
        reward: Reward = None,
        split: str = "train",
        illegal_reward: float = -1.0,
        strict: bool = False,
    ) -> None:
        """Start without requests; call `seed`, then `reset`.

        Raises:
            ValueError: An unknown split, or one without requests.
        """
        self.world = world
        self.num_rows = num_rows
        self.reward = make_reward(reward)
        self.illegal_reward = float(illegal_reward)
        self.strict = strict
        self.request_ids = world.request_ids(split)
        if len(self.request_ids) == 0:
            raise ValueError(f"split {split!r} of this world has no request with an eligible ad")
        self._seed = torch.zeros(num_rows, dtype=torch.int64)
        self._episode = torch.zeros(num_rows, dtype=torch.int64)
        self.awaiting = torch.zeros(num_rows, dtype=torch.bool)
        self._every = ~self.awaiting
        self.request: Request | None = None

    def seed(self, seed: Int[Tensor, " B"]) -> None:
        """Start every row's stream of requests anew."""
        self._seed = seed
        self._episode = torch.zeros_like(seed)

    def draw(self) -> Int[Tensor, " B"]:
        """Return every row's next request: a function of its seed and episode count only."""
        u = uniform(_DRAW_ROOT, Purpose.ENVIRONMENT_REQUEST, self._seed, self._episode)
        return self.request_ids[(u * len(self.request_ids)).long()]

    def check_request_ids(self, request_id: Int[Tensor, " n"]) -> None:
        """Raise ValueError for requests that can't be played, naming the first."""
        number = self.world.num_requests
        unknown = (request_id < 0) | (request_id >= number)
        if unknown.any():
            raise ValueError(
                f"request_id must lie in [0, {number}), got {int(request_id[unknown][0])}"
            )
        without = ~self.world.eligible(request_id).any(-1)
        if without.any():
            raise ValueError(f"request {int(request_id[without][0])} has no eligible ad")

    def reset(
        self, rows: Bool[Tensor, " B"] | None = None, request_id: Int[Tensor, " B"] | None = None
    ) -> None:
        """Begin the next episode of `rows` (None: all).

        Args:
            rows: The others stay as they are.
            request_id: Requests to play instead of drawn ones. An episode counts either way.

        Raises:
            ValueError: An unknown request, or one without an eligible ad.
        """
        rows = self._every if rows is None or self.request is None else rows
        if request_id is None:
            request_id = self.draw()
        else:
            self.check_request_ids(request_id[rows])
        if rows.all():
            self._open(self.world.request(request_id))
        elif rows.any():
            assert self.request is not None
            self.request[rows] = self.world.request(request_id[rows])  # type: ignore[index]
            self._open(self.request, rows)
        self._episode = self._episode + rows.long()

    def _open(self, request: Request, rows: Tensor | None = None) -> None:
        """Set the requests, and blank the state of `rows`."""
        self.request = request
        self.eligible = self.world.eligible(request.request_id)
        self._legal = self.world.trie.restrict(self.eligible)
        if rows is None:
            zero = torch.zeros(self.num_rows)
            self.level = torch.zeros(self.num_rows, dtype=torch.int64)
            self.prefix = self.level.new_zeros(self.num_rows, self.world.spec.num_levels)
            self.awaiting, self.illegal = self._every, ~self._every
            self.ad_id = torch.full_like(self.level, -1)
            self.outcome = dict.fromkeys(OUTCOME_KEYS, zero)
            self.components = dict.fromkeys(self.reward.functions, zero)
        else:
            self.level = self.level.masked_fill(rows, 0)
            self.prefix = self.prefix.masked_fill(rows[:, None], 0)
            self.awaiting, self.illegal = self.awaiting | rows, self.illegal & ~rows
            self.ad_id = self.ad_id.masked_fill(rows, -1)
            self.outcome = {k: v.masked_fill(rows, 0.0) for k, v in self.outcome.items()}
            self.components = {k: v.masked_fill(rows, 0.0) for k, v in self.components.items()}
        self._look()

    def _look(self) -> None:
        """Set `legal_mask`. Rows move in step unless episodes ended early: mostly one pass."""
        mask = torch.ones(self.num_rows, self.world.spec.num_codes, dtype=torch.bool)
        for level in range(self.world.spec.num_levels):
            here = self.awaiting & (self.level == level)
            if here.any():
                mask = torch.where(here[:, None], self._legal.mask(self.prefix[:, :level]), mask)
        self.legal_mask = mask

    def step(
        self, action: Int[Tensor, " B"], rows: Bool[Tensor, " B"] | None = None
    ) -> Float[Tensor, " B"]:
        """Choose the next code of `rows` (None: all) and return the rewards, float32.

        A row that awaits no choice stays as it is and gets 0.

        Raises:
            ValueError: An action outside [0, V).
            IllegalActionError: An illegal action, if `strict`; nothing has changed then.
        """
        acting = self.awaiting if rows is None else self.awaiting & rows
        num_codes = self.world.spec.num_codes
        outside = acting & ((action < 0) | (action >= num_codes))
        if outside.any():
            raise ValueError(
                f"action must be an integer in [0, {num_codes}), got {int(action[outside][0])}"
            )
        action = torch.where(acting, action, 0)
        illegal = acting & ~self.legal_mask.gather(1, action[:, None])[:, 0]
        if self.strict and illegal.any():
            raise IllegalActionError(self._describe(action, int(illegal.nonzero()[0])))
        chosen = (torch.arange(self.prefix.shape[1]) == self.level[:, None]) & acting[:, None]
        self.prefix = torch.where(chosen, action[:, None], self.prefix)
        self.level = self.level + acting.long()
        finished = acting & ~illegal & (self.level == self.prefix.shape[1])
        self.awaiting = self.awaiting & ~illegal & ~finished
        self.illegal = self.illegal | illegal
        reward = torch.where(illegal, self.illegal_reward, 0.0)
        if finished.any():
            reward = self._score(finished, reward)
        self._look()
        return reward

    def _describe(self, action: Tensor, row: int) -> str:
        assert self.request is not None
        level = int(self.level[row])
        return (
            f"action {int(action[row])} is illegal in request "
            f"{int(self.request.request_id[row])} after codes {self.prefix[row, :level].tolist()};"
            f" legal: {self.legal_mask[row].nonzero()[:, 0].tolist()}"
        )

    def _score(self, finished: Tensor, reward: Tensor) -> Tensor:
        """Ask the rankers about the ads of `finished` rows, once, and return all rewards."""
        assert self.request is not None
        self.ad_id = torch.where(finished, self._legal.resolve(self.prefix), self.ad_id)
        index = finished.nonzero()[:, 0]
        outcome = self.world.outcome(
            self.request.request_id[index], self.ad_id[index, None], exact=True
        )
        total, components = self.reward(outcome)

        def put(old: Tensor, new: Tensor) -> Tensor:
            return old.index_put((index,), new[:, 0].to(old.dtype))

        said = {key: getattr(outcome, key) for key in OUTCOME_KEYS[:-1]}
        said["final_value"] = final_value(outcome)
        self.outcome = {key: put(self.outcome[key], said[key]) for key in OUTCOME_KEYS}
        self.components = {k: put(self.components[k], v) for k, v in components.items()}
        return put(reward, total)


def as_floats(values: Mapping[str, Tensor], row: int) -> dict[str, float]:
    """Return one row of named tensors as Python floats."""
    return {key: float(value[row]) for key, value in values.items()}
