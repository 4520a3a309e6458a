"""One ad request as a Gymnasium environment."""

from pathlib import Path

from envs.episodes import Episodes
from envs.single import SingleEnv
from simulators.make import load_world
from simulators.rewards import RewardSpec
from simulators.world import World


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
    ) -> None:
        """Load the world (once per process); see the class for the arguments."""
        engine = Episodes(
            load_world(world, seed=world_seed),
            1,
            reward=reward,
            split=split,
            illegal_reward=illegal_reward,
            strict=strict,
        )
        super().__init__(engine, render_mode)
