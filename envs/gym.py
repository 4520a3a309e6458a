"""One ad request, and a day of them, as Gymnasium environments."""

from pathlib import Path
from typing import Any, Unpack

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from envs.arguments import integer
from envs.days import DayArguments, Days
from envs.engine import Arrays
from envs.requests import Episodes
from envs.spaces import observation_space
from simulators.world import World

Observation = dict[str, Any]
Info = dict[str, Any]
_SEED_LIMIT = 2**63


class SingleEnv(gymnasium.Env[Observation, np.int64]):
    """An engine of one row; the subclasses say of which, and are the specifications."""

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 - so in Gymnasium
    engine_class: type[Any]

    def __init__(
        self,
        world: str | Path | World = "tiny",
        *,
        render_mode: str | None = None,
        **arguments: Unpack[DayArguments],
    ) -> None:
        """Load the world (once per process); see the class for the arguments."""
        engine = self.engine_class(world, 1, **arguments)
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
        return self._engine.view(0)

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


class AdRequestEnv(SingleEnv):
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
    `reset(seed=s)` the n-th episode's request is a function of s, n and the split alone. Each
    reset counts as an episode, also `reset(options={"request_id": i})`, which plays request i (of
    any split).

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
    | `reward`         | `final_value` | see `simulators.rewards.RewardMix.of`                   |
    |                  |               | such as `["module:function=0.5", "ecpm"]`               |
    | `split`          | `"train"`     | `train`, `validation` or `test`                         |
    | `illegal_reward` | -1.0          | reward of an illegal code                               |
    | `strict`         | False         | raise `IllegalActionError` at an illegal code instead   |
    | `world_seed`     | 0             | seed of a named world                                   |
    | `render_mode`    | None          | or `"ansi"`: `render()` gives the chosen ad as a table  |

    ## Version history

    v0: first version.
    """

    engine_class = Episodes


class AdDayEnv(SingleEnv):
    """Answer the ad requests of a day, while budgets run out and users tire.

    ## Description

    Users ask for an ad, one after the other, from midnight to midnight. The agent spells an ad's
    semantic ID for each, L codes from coarse to fine. The ad enters the request's auction; if it
    wins, the user sees it, may click at once and may convert later, and the advertiser is charged
    on the event that it bids for. What happened is part of what later requests of the same user
    show, and an advertiser without money left disappears from the legal codes.

    Users come by their activity, the hour and the scene (in worlds made of real logs: as copies
    of the same day's logged requests). Before midnight the past is the world's log; organic views
    of the day are the log's. Clicks and conversions are drawn from the hidden truth in a world
    that has one, otherwise from the rankers; rewards come from the frozen rankers in both.

    ## Action space, observation space

    Those of `AdRequestEnv`, so the same policies play both.

    ## Reward

    0 until a request's last level, then the ad's reward under the rankers: by default
    `final_value` (GPR Eq. 5, in eCPM units, not scaled). 0 if the ad wins no slot. An illegal code
    gives `illegal_reward`; the request stays unfilled and the day goes on.

    ## Starting state

    Midnight of a day of the split, drawn uniformly, nothing spent. After `reset(seed=s)` the n-th
    day is a function of s, n and the actions. `reset(options={"day": d})` plays day d. The first
    observation is the first request that some ad may answer.

    ## Episode end

    Truncated at midnight, never terminated. Requests without an eligible ad (targeting, dates,
    budgets, pacing) are passed over and counted in `num_unfilled`: a house ad is shown, which
    earns nothing. A day without any other request is truncated by the first step, whatever the
    action. The last observation is the day's last request as seen at midnight, the path chosen
    last, all codes unmasked.

    ## Info

    Always: `request_id` (number in the day), `user_id`, `timestamp` (seconds since the world's
    day 0), `day`, `action_mask`, `illegal` (the last action was), and of the day so far:
    `impressions`, `clicks`, `conversions`, `revenue` (charges, in currency: an eCPM is 1,000 times
    as much), `advertiser_surplus` (the bids of events less what was charged), `user_value` (clicks
    plus conversions), `gmv` (prices of what was bought), `num_unfilled`, `num_illegal`;
    `open_clicks` at midnight (clicks whose conversion may still come, 0 before).
    With a request's last level also: `answered_request_id`, `ad_id` (-1 after an illegal code),
    `pctr`, `pcvr`, `ecpm`, `final_value`, `components` (unweighted rewards by name; NaN where not
    applicable), `slot` (-1: lost the auction), `price` (per paid event), `charge` (what the
    request's ads paid at once, in currency) and `clicked`.

    ## Arguments

    Those of `AdRequestEnv`, and:

    | argument               | default         | meaning                                          |
    |------------------------|-----------------|--------------------------------------------------|
    | `auction`              | `"first_price"` | or `"second_price"`, `"gsp"`                     |
    | `num_slots`            | 1               | S, ads shown per request                         |
    | `reserve_cpm`          | 0.0             | least eCPM that takes part                       |
    | `position_effect`      | exp(-0.25 s)    | click rate of slot s relative to slot 0          |
    | `num_rivals`           | 0               | further candidates of every auction, drawn by    |
    |                        |                 | how often the log shows them                     |
    | `pacing`               | `"none"`        | or `"throttling"`, `"pid"`                       |
    | `num_requests`         | None            | requests of a day; None: as the world has        |
    | `conversion_delay_s`   | 14,400          | mean delay from click to conversion              |
    | `attribution_window_s` | 86,400          | a later conversion counts for nobody             |

    ## Version history

    v0: first version.
    """

    engine_class = Days


def _row(values: Arrays) -> Info:
    """Return the only row of arrays [1], as Python numbers."""
    return {
        key: _row(value) if isinstance(value, dict) else value[0].item()
        for key, value in values.items()
    }
