"""The ablations of the alignment suite: one name, one change (GPR 3.3).

`--ablate NAME ...` adds, for every method that an ablation concerns, a row `METHOD+NAME` beside the
row without it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

HEPO = ("hepo", "hepo_terminal")
ACTOR_CRITIC = (*HEPO, "ppo")


@dataclass(frozen=True)
class Ablation:
    """One change."""

    summary: str
    """For the report."""
    methods: tuple[str, ...]
    """Which rows it is made for."""
    training: Mapping[str, object] = field(default_factory=dict)
    """Fields of `TrainConfig` that it sets."""
    start: str = "vaft"
    """What RL starts from: `vaft` (the shared warm start), `mtp` (without value-aware fine-tuning),
    `fresh_critic` (the warm start with an untrained HTE) or `none` (an untrained model)."""
    rankers: str = "frozen"
    """What RL is trained on: `frozen` (the rankers that all rows are measured by) or `pessimistic`
    (the mean of an ensemble less its spread)."""
    markets: tuple[str, ...] = ("base",)
    """Where it is run."""


ABLATIONS: dict[str, Ablation] = {
    "no_process_reward": Ablation("process rewards off", HEPO, {"process_reward_scale": 0.0}),
    "uncapped": Ablation("deltas below zero count", HEPO, {"process_reward": "uncapped"}),
    "potential": Ablation("potential-based process rewards", HEPO, {"process_reward": "potential"}),
    "shuffled_popularity": Ablation(
        "popularity on the wrong codes", HEPO, {"popularity": "shuffled"}
    ),
    "prefix_popularity": Ablation(
        "popularity among what matches the prefix", HEPO, {"popularity": "prefix"}
    ),
    "critic_warmup_30": Ablation(
        "30 steps of critic warm-up, counted in the budget",
        ACTOR_CRITIC,
        {"critic_warmup_steps": 30},
    ),
    "critic_warmup_100": Ablation(
        "100 steps of critic warm-up, counted in the budget",
        ACTOR_CRITIC,
        {"critic_warmup_steps": 100},
    ),
    "critic_replay": Ablation(
        "the critic learns from the last 8 steps, 8 updates a step",
        ACTOR_CRITIC,
        {"critic_replay": 8, "critic_updates": 8},
    ),
    "fresh_critic": Ablation("the HTE not pre-trained", ACTOR_CRITIC, start="fresh_critic"),
    "through_terminal": Ablation(
        "R into the coarse levels, at hepo's own learning rate",
        ("hepo",),
        {"through_terminal": True},
    ),
    "zscore_all_levels": Ablation(
        "the z-score at every level, no critic", HEPO, {"terminal_at_all_levels": True}
    ),
    "mean_only": Ablation("no division by the deviation", (*HEPO, "grpo"), {"terminal": "mean"}),
    "batch_zscore": Ablation(
        "z-score over the batch instead of the request", (*HEPO, "grpo"), {"terminal": "batch"}
    ),
    "critic_moves_trunk": Ablation(
        "the value loss moves the HSD", ACTOR_CRITIC, {"critic_moves_trunk": True}
    ),
    "lambda_0": Ablation("GAE's lambda 0", ACTOR_CRITIC, {"gae_lambda": 0.0}),
    "lambda_50": Ablation("GAE's lambda 0.5", ACTOR_CRITIC, {"gae_lambda": 0.5}),
    "lambda_100": Ablation("GAE's lambda 1", ACTOR_CRITIC, {"gae_lambda": 1.0}),
    **{
        f"candidates_{k}": Ablation(
            f"K = {k} with {n} requests: {k * n:,} evaluations a step",
            ("hepo_terminal", "grpo"),
            {"num_candidates": k, "num_requests": n},
        )
        for k, n in ((4, 256), (8, 128), (40, 26))
    },
    "beam": Ablation(
        "candidates from a beam, as in the paper",
        (*HEPO, "grpo", "rspo", "raft"),
        {"behavior": "beam"},
    ),
    "ad_baseline": Ablation(
        "an ad's own mean reward is taken off", (*ACTOR_CRITIC, "grpo", "rspo"), {"baseline": "ad"}
    ),
    "gumbel": Ablation(
        "candidates without replacement, importance-weighted",
        (*HEPO, "grpo"),
        {"behavior": "gumbel"},
    ),
    "arr": Ablation(
        "a quarter of the requests rehearse users' current states",
        ACTOR_CRITIC,
        {"arr_share": 0.25},
        markets=("base", "drift"),
    ),
    "no_warm_start": Ablation("from an untrained model", ACTOR_CRITIC, start="none"),
    "no_vaft": Ablation("from MTP, without value-aware fine-tuning", ACTOR_CRITIC, start="mtp"),
    "kl_0": Ablation("KL penalty 0", ACTOR_CRITIC, {"kl_penalty": 0.0}),
    "kl_05": Ablation("KL penalty 0.05", ACTOR_CRITIC, {"kl_penalty": 0.05}),
    "kl_50": Ablation("KL penalty 0.5", ACTOR_CRITIC, {"kl_penalty": 0.5}),
    "pessimistic": Ablation(
        "trained on an ensemble's mean less its spread, against reward hacking",
        ("hepo_terminal", "ppo"),
        rankers="pessimistic",
        markets=("base", "sparse_logs"),
    ),
}
