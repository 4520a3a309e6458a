"""No sample is older than it may be, whatever a collector did with the weights.

Dims: B requests.
"""

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor


class StaleError(RuntimeError):
    """Candidates were drawn by a policy that is older than allowed."""


def staleness(data: TensorDictBase, version: int) -> Tensor:
    """Return how many updates ago the policy was, that drew each request's candidates, [B].

    Raises:
        ValueError: The candidates carry no version, or one that does not exist yet.
    """
    if "policy_version" not in data:
        raise ValueError("the candidates have no policy_version: draw them with make_code_actor")
    age = version - data["policy_version"]
    if (age < 0).any():
        newest = int(data["policy_version"].max())
        raise ValueError(f"policy_version is {newest}, newer than the policy's own, {version}")
    return age


def fresh(
    data: TensorDict, version: int, max_staleness: int, *, strict: bool = False
) -> TensorDict:
    """Return the requests whose candidates are at most `max_staleness` updates old.

    What is left may still be older than the policy: the ratios of HEPO, GRPO and PPO correct for
    that, as for every epoch after the first.

    Args:
        data: Candidates of `GroupCandidates`, batch [B].
        version: Of the policy now (`next_version`).
        max_staleness: Updates.
        strict: Refuse older ones instead of dropping them.

    Raises:
        StaleError: There is an older one, if `strict`; names the ages.
        ValueError: See `staleness`.
    """
    age = staleness(data, version)
    too_old = age > max_staleness
    if strict and too_old.any():
        raise StaleError(
            f"{int(too_old.sum())} of {len(data)} requests are older than {max_staleness} updates, "
            f"the oldest {int(age.max())}: did the workers get the new weights?"
        )
    return data[torch.logical_not(too_old)]
