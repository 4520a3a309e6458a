"""Off-policy evaluation: logs with propensities, and what another policy would have earned.

`rollouts` makes logs, `logged` writes and reads them, `estimators` judges single ads, `slate`
several positions.
"""

from agents.off_policy.estimators import (
    Estimate,
    PropensityError,
    direct_method,
    doubly_robust,
    ips,
    snips,
)
from agents.off_policy.logged import LogError, LoggedFeedback, read_parquet
from agents.off_policy.rollouts import (
    Feedback,
    log_of_distribution,
    log_of_policy,
    log_of_world,
    policy_probability,
)
from agents.off_policy.slate import (
    cascade_doubly_robust,
    slate_direct_method,
    slate_independent_ips,
    slate_reward_ips,
    slate_standard_ips,
)

__all__ = [
    "Estimate",
    "Feedback",
    "LogError",
    "LoggedFeedback",
    "PropensityError",
    "cascade_doubly_robust",
    "direct_method",
    "doubly_robust",
    "ips",
    "log_of_distribution",
    "log_of_policy",
    "log_of_world",
    "policy_probability",
    "read_parquet",
    "slate_direct_method",
    "slate_independent_ips",
    "slate_reward_ips",
    "slate_standard_ips",
    "snips",
]
