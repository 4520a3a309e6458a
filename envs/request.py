"""One ad request as a Gymnasium environment."""

import operator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from envs.episodes import Episodes, Reward, as_floats
from envs.spaces import observation_space, request_tensors
from simulators.make import load_world
from simulators.world import World

Observation = dict[str, Any]
Info = dict[str, Any]


class AdRequestEnv(gymnasium.Env[Observation, np.int64]):
    """Choose the ad for one request, code by code.

    ## Description

    A user opens a page that has room for one ad. The agent spells the ad's semantic ID, L codes
    from coarse to fine; frozen rankers then say how likely a click and a conversion are, and what
    the impression earns. Which codes may follow depends on the ads that this user may see now
    (targeting, active dates) and on the codes chosen before. Nothing but the request is random.

    ## Action space

    `Discrete(V)`: the next code. Only those with `action_mask` 1 lead to an eligible ad.

    ## Observation space

    `Dict`; T tokens, A user attributes, C context attributes, L levels, V codes per level. All
    that precedes the request and nothing else: not the rankers' inputs, not the hidden truth, no
    ids.

    | key              | space              | meaning                                           |
    |------------------|--------------------|---------------------------------------------------|
    | `token_kind`     | int64 [T]          | `gpr_rl.schema.TokenType`; 0 is padding, right     |
    | `token_codes`    | int64 [T, L]       | path of an organic item or ad, 0 elsewhere        |
    | `token_action`   | int64 [T]          | `gpr_rl.schema.Action`, what the user did         |
    | `token_time_gap` | int64 [T]          | log2 bucket of the time since the token before    |
    | `token_context`  | int64 [T, C]       | attributes of environment tokens, 0 elsewhere     |
    | `user`           | int64 [A]          | the user's attributes                             |
    | `preference`     | float32 [L, V]     | share of past clicks and conversions per code     |
    | `prompt_length`  | Discrete(T + 1)    | leading tokens that see each other                |
    | `popularity`     | float32 [L, V]     | P_l(t) of GPR Eq. 6, for process rewards          |
    | `prefix`         | int64 [L]          | codes chosen so far, 0 from `level` on            |
    | `level`          | Discrete(L + 1)    | how many codes are chosen                         |
    | `action_mask`    | int8 [V]           | 1 where the code is legal; all 1 at the end       |

    `envs.request_from_observation` turns it into what the models take.

    ## Reward

    0 until the last level, then the reward of the ad: by default `final_value` (GPR Eq. 5: eCPM
    plus weighted pCTR and pCVR, in eCPM units, not scaled). Process rewards belong to the agent.
    An illegal code gives `illegal_reward`.

    ## Starting state

    A request of the split, drawn uniformly; requests without an eligible ad are not drawn. After
    `reset(seed=s)` the n-th episode's request is a function of s and n alone. Each reset counts
    as an episode, also `reset(options={"request_id": i})`, which plays request i (of any split).

    ## Episode end

    Terminated after L codes, or at an illegal one (`info["illegal"]`). Never truncated.

    ## Info

    Always: `request_id`, `user_id`, `timestamp` (seconds since the world's day 0), `action_mask`
    (int8), `illegal`. At the end also `ad_id`, `pctr`, `pcvr`, `ecpm`, `final_value` and
    `components` (unweighted rewards by name; NaN where not applicable); after an illegal code
    `ad_id` is -1 and the numbers are 0.

    ## Arguments

    | argument         | default       | meaning                                                 |
    |------------------|---------------|---------------------------------------------------------|
    | `world`          | `"tiny"`      | a name, a world's directory, or a `World`               |
    | `reward`         | `final_value` | `RewardMix`, function of an `Outcome`, spec or specs    |
    |                  |               | such as `["module:function=0.5", "ecpm"]`               |
    | `split`          | `"train"`     | `train`, `validation` or `test`                         |
    | `illegal_reward` | -1.0          | reward of an illegal code                               |
    | `strict`         | False         | raise `IllegalActionError` at an illegal code instead   |
    | `world_seed`     | 0             | seed of a named world                                   |

    ## Version history

    v0: first version.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - declared so by Gymnasium

    def __init__(
        self,
        world: str | Path | World = "tiny",
        *,
        reward: Reward = None,
        split: str = "train",
        illegal_reward: float = -1.0,
        strict: bool = False,
        world_seed: int = 0,
    ) -> None:
        """Load the world (once per process); see the class for the arguments."""
        self.world = load_world(world, seed=world_seed)
        self._episodes = Episodes(
            self.world, 1, reward=reward, split=split, illegal_reward=illegal_reward, strict=strict
        )
        self._is_seeded = False
        self.action_space = spaces.Discrete(self.world.spec.num_codes)
        self.observation_space = observation_space(self.world.spec)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, Info]:
        """Begin an episode.

        Args:
            seed: Starts the stream of requests anew; None goes on with it.
            options: `{"request_id": i}` plays request i.

        Raises:
            ValueError: An unknown option, an unknown request or one without an eligible ad.
        """
        super().reset(seed=seed)
        if seed is None and not self._is_seeded:
            seed = int(self.np_random.integers(2**31))
        if seed is not None:
            self._episodes.seed(torch.tensor([seed % 2**63]))
            self._is_seeded = True
        options = options or {}
        if set(options) - {"request_id"}:
            raise ValueError(f"options may hold 'request_id' only, got {sorted(options)}")
        if "request_id" in options:
            chosen = _integer("request_id", options["request_id"])
            self._episodes.reset(request_id=torch.tensor([chosen]))
        else:
            self._episodes.reset()
        return self._observation(), self._info()

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, Info]:
        """Choose the next code, a Python or numpy integer.

        Raises:
            ValueError: Not an integer in [0, V); an illegal code in a strict environment.
            ResetNeeded: The episode is over, or none has begun.
        """
        if not self._episodes.awaiting:
            raise ResetNeeded("the episode is over or has not begun: call reset() before step()")
        code = _integer("action", action)
        reward = self._episodes.step(torch.tensor([code]))
        terminated = not bool(self._episodes.awaiting)
        info = self._info()
        if terminated:
            info["ad_id"] = int(self._episodes.ad_id)
            info |= as_floats(self._episodes.outcome, 0)
            info["components"] = as_floats(self._episodes.components, 0)
        return self._observation(), float(reward), terminated, False, info

    def action_masks(self) -> NDArray[np.bool_]:
        """Return bool [V], the legal codes; all True when the episode is over.

        The name is what sb3-contrib's MaskablePPO looks for.
        """
        self._check_begun()
        return self._episodes.legal_mask[0].numpy().copy()

    def eligible_ads(self) -> NDArray[np.bool_]:
        """Return bool [N], the ads that this request's user may see now."""
        self._check_begun()
        return self._episodes.eligible[0].numpy().copy()

    def _check_begun(self) -> None:
        if self._episodes.request is None:
            raise ResetNeeded("no episode has begun: call reset() first")

    def _observation(self) -> Observation:
        episodes = self._episodes
        assert episodes.request is not None
        tensors = request_tensors(episodes.request)
        tensors |= {"prefix": episodes.prefix, "level": episodes.level}
        observation = {key: value[0].numpy().copy()[()] for key, value in tensors.items()}
        observation["action_mask"] = self._mask()
        return observation

    def _mask(self) -> NDArray[np.int8]:
        return self._episodes.legal_mask[0].numpy().astype(np.int8)

    def _info(self) -> Info:
        request = self._episodes.request
        assert request is not None
        return {
            "request_id": int(request.request_id),
            "user_id": int(request.user_id),
            "timestamp": int(request.timestamp),
            "action_mask": self._mask(),
            "illegal": bool(self._episodes.illegal),
        }


def _integer(name: str, value: object) -> int:
    """Return a Python or numpy integer as int; ValueError for anything else."""
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"{name} must be an integer, got {value!r}") from None
