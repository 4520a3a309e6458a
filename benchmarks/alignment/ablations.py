"""The ablations of the alignment suite: one name, one change (GPR 3.3).

`--ablate NAME ...` adds, for every method that an ablation concerns, a row `METHOD+NAME` beside the
row without it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

HEPO = ("hepo", "hepo_terminal")
ACTOR_CRITIC = (*HEPO, "ppo")


@dataclass(frozen=True, kw_only=True)
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


def _lambda(value: float) -> Ablation:
    return Ablation(
        summary=f"GAE's lambda {value:g}", methods=ACTOR_CRITIC, training={"gae_lambda": value}
    )


def _candidates(num_candidates: int, num_requests: int) -> Ablation:
    return Ablation(
        summary=f"K = {num_candidates} with {num_requests} requests: the same evaluations",
        methods=("hepo_terminal", "grpo"),
        training={"num_candidates": num_candidates, "num_requests": num_requests},
    )


def _kl(weight: float) -> Ablation:
    return Ablation(
        summary=f"KL penalty {weight:g}", methods=ACTOR_CRITIC, training={"kl_penalty": weight}
    )


def _hepo(summary: str, **training: object) -> Ablation:
    return Ablation(summary=summary, methods=HEPO, training=training)


ABLATIONS: dict[str, Ablation] = {
    "no_process_reward": _hepo("process rewards off", process_reward_scale=0.0),
    "uncapped": _hepo("deltas below zero count", process_reward="uncapped"),
    "potential": _hepo("potential-based process rewards", process_reward="potential"),
    "shuffled_popularity": _hepo("popularity on the wrong codes", popularity="shuffled"),
    "prefix_popularity": _hepo("popularity among what matches the prefix", popularity="prefix"),
    "critic_warmup_0": Ablation(
        summary="no critic warm-up", methods=ACTOR_CRITIC, training={"critic_warmup_steps": 0}
    ),
    "critic_warmup_100": Ablation(
        summary="100 steps of critic warm-up, counted in the budget",
        methods=ACTOR_CRITIC,
        training={"critic_warmup_steps": 100},
    ),
    "critic_replay": Ablation(
        summary="the critic learns from the last 8 steps, 8 updates a step",
        methods=ACTOR_CRITIC,
        training={"critic_replay": 8, "critic_updates": 8},
    ),
    "fresh_critic": Ablation(
        summary="the HTE not pre-trained", methods=ACTOR_CRITIC, start="fresh_critic"
    ),
    "through_terminal": Ablation(
        summary="R into the coarse levels, at hepo's own learning rate",
        methods=("hepo",),
        training={"through_terminal": True},
    ),
    "zscore_all_levels": _hepo(
        "the z-score at every level, no critic", terminal_at_all_levels=True
    ),
    "mean_only": Ablation(
        summary="no division by the deviation",
        methods=(*HEPO, "grpo"),
        training={"terminal": "mean"},
    ),
    "batch_zscore": Ablation(
        summary="z-score over the batch instead of the request",
        methods=(*HEPO, "grpo"),
        training={"terminal": "batch"},
    ),
    "critic_moves_trunk": Ablation(
        summary="the value loss moves the HSD",
        methods=ACTOR_CRITIC,
        training={"critic_moves_trunk": True},
    ),
    "lambda_0": _lambda(0.0),
    "lambda_50": _lambda(0.5),
    "lambda_100": _lambda(1.0),
    "candidates_4": _candidates(4, 256),
    "candidates_8": _candidates(8, 128),
    "candidates_40": _candidates(40, 26),
    "beam": Ablation(
        summary="candidates from a beam, as in the paper",
        methods=("hepo", "hepo_terminal", "grpo"),
        training={"behavior": "beam"},
    ),
    "gumbel": Ablation(
        summary="candidates without replacement, importance-weighted",
        methods=("hepo", "hepo_terminal", "grpo"),
        training={"behavior": "gumbel"},
    ),
    "arr": Ablation(
        summary="a quarter of the requests rehearse users' current states",
        methods=("hepo", "hepo_terminal", "ppo"),
        training={"arr_share": 0.25},
        markets=("base", "drift"),
    ),
    "no_warm_start": Ablation(
        summary="from an untrained model", methods=ACTOR_CRITIC, start="none"
    ),
    "no_vaft": Ablation(
        summary="from MTP, without value-aware fine-tuning", methods=ACTOR_CRITIC, start="mtp"
    ),
    "kl_0": _kl(0.0),
    "kl_05": _kl(0.05),
    "kl_50": _kl(0.5),
    "pessimistic": Ablation(
        summary="trained on an ensemble's mean less its spread, against reward hacking",
        methods=("hepo_terminal", "ppo"),
        rankers="pessimistic",
        markets=("base", "sparse_logs"),
    ),
}
