"""A day of traffic as Gymnasium environments: one, and many side by side."""

from pathlib import Path
from typing import Any

from gymnasium.vector import AutoresetMode

from envs.arguments import positive_integer
from envs.days import Days, day_rules
from envs.single import SingleEnv
from envs.vector import VectorEnv
from simulators.make import load_world
from simulators.rewards import RewardSpec
from simulators.world import World


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

    ## Action space

    `Discrete(V)`: the next code. Only those with `action_mask` 1 lead to an eligible ad.

    ## Observation space

    That of `AdRequestEnv`, so the same policies play both.

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

    | argument               | default         | meaning                                          |
    |------------------------|-----------------|--------------------------------------------------|
    | `world`                | `"tiny"`        | a name, a world's directory, or a `World`        |
    | `reward`               | `final_value`   | as for `AdRequestEnv`                            |
    | `split`                | `"train"`       | whose days: `train`, `validation` or `test`      |
    | `illegal_reward`       | -1.0            | reward of an illegal code                        |
    | `strict`               | False           | raise `IllegalActionError` at an illegal code    |
    | `world_seed`           | 0               | seed of a named world                            |
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
    | `render_mode`          | None            | or `"ansi"`: `render()` gives the last auction   |

    ## Version history

    v0: first version.
    """

    def __init__(
        self,
        world: str | Path | World = "tiny",
        *,
        reward: RewardSpec = None,
        split: str = "train",
        illegal_reward: float = -1.0,
        strict: bool = False,
        world_seed: int = 0,
        render_mode: str | None = None,
        **rules: Any,
    ) -> None:
        """Load the world (once per process); see the class for the arguments."""
        engine = Days(
            load_world(world, seed=world_seed),
            1,
            reward=reward,
            split=split,
            illegal_reward=illegal_reward,
            strict=strict,
            config=day_rules(**rules),
        )
        super().__init__(engine, render_mode)


class AdDayVectorEnv(VectorEnv):
    """B days side by side, in markets of their own; `AdDayEnv` says what each of them is.

    `gymnasium.make_vec("envs:gpr_rl/AdDay-v0", num_envs=B)` makes it. Row i of `reset(seed=s)`
    plays the days of `AdDayEnv` seeded with s + i.
    """

    def __init__(
        self,
        num_envs: int = 1,
        world: str | Path | World = "tiny",
        *,
        reward: RewardSpec = None,
        split: str = "train",
        illegal_reward: float = -1.0,
        strict: bool = False,
        world_seed: int = 0,
        autoreset_mode: AutoresetMode | str = AutoresetMode.DISABLED,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        **rules: Any,
    ) -> None:
        """Load the world (once per process); see `AdDayEnv` and `VectorEnv` for arguments."""
        engine = Days(
            load_world(world, seed=world_seed),
            positive_integer("num_envs", num_envs),
            reward=reward,
            split=split,
            illegal_reward=illegal_reward,
            strict=strict,
            config=day_rules(**rules),
        )
        super().__init__(
            engine,
            autoreset_mode=autoreset_mode,
            max_episode_steps=max_episode_steps,
            strict=strict,
            render_mode=render_mode,
        )
