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


def _change(methods: tuple[str, ...], summary: str, **training: object) -> Ablation:
    """Return an ablation of the training configuration alone."""
    return Ablation(summary=summary, methods=methods, training=training)


def _lambda(value: float) -> Ablation:
    return _change(ACTOR_CRITIC, f"GAE's lambda {value:g}", gae_lambda=value)


def _candidates(num_candidates: int, num_requests: int) -> Ablation:
    return _change(
        ("hepo_terminal", "grpo"),
        f"K = {num_candidates} with {num_requests} requests: the same evaluations",
        num_candidates=num_candidates,
        num_requests=num_requests,
    )


def _kl(weight: float) -> Ablation:
    return _change(ACTOR_CRITIC, f"KL penalty {weight:g}", kl_penalty=weight)


GROUPED = (*HEPO, "grpo")
ABLATIONS: dict[str, Ablation] = {
    "no_process_reward": _change(HEPO, "process rewards off", process_reward_scale=0.0),
    "uncapped": _change(HEPO, "deltas below zero count", process_reward="uncapped"),
    "potential": _change(HEPO, "potential-based process rewards", process_reward="potential"),
    "shuffled_popularity": _change(HEPO, "popularity on the wrong codes", popularity="shuffled"),
    "prefix_popularity": _change(
        HEPO, "popularity among what matches the prefix", popularity="prefix"
    ),
    "critic_warmup_0": _change(ACTOR_CRITIC, "no critic warm-up", critic_warmup_steps=0),
    "critic_warmup_100": _change(
        ACTOR_CRITIC,
        "100 steps of critic warm-up, counted in the budget",
        critic_warmup_steps=100,
    ),
    "critic_replay": _change(
        ACTOR_CRITIC,
        "the critic learns from the last 8 steps, 8 updates a step",
        critic_replay=8,
        critic_updates=8,
    ),
    "fresh_critic": Ablation(
        summary="the HTE not pre-trained", methods=ACTOR_CRITIC, start="fresh_critic"
    ),
    "through_terminal": _change(
        ("hepo",), "R into the coarse levels, at hepo's own learning rate", through_terminal=True
    ),
    "zscore_all_levels": _change(
        HEPO, "the z-score at every level, no critic", terminal_at_all_levels=True
    ),
    "mean_only": _change(GROUPED, "no division by the deviation", terminal="mean"),
    "batch_zscore": _change(
        GROUPED, "z-score over the batch instead of the request", terminal="batch"
    ),
    "critic_moves_trunk": _change(
        ACTOR_CRITIC, "the value loss moves the HSD", critic_moves_trunk=True
    ),
    "lambda_0": _lambda(0.0),
    "lambda_50": _lambda(0.5),
    "lambda_100": _lambda(1.0),
    "candidates_4": _candidates(4, 256),
    "candidates_8": _candidates(8, 128),
    "candidates_40": _candidates(40, 26),
    "beam": _change(GROUPED, "candidates from a beam, as in the paper", behavior="beam"),
    "gumbel": _change(
        GROUPED, "candidates without replacement, importance-weighted", behavior="gumbel"
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
