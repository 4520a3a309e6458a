"""REINFORCE with the other candidates as baseline (RLOO; Kool et al. 2019, Ahmadian et al. 2024).

Dims: B requests, K candidates, L levels.
"""

from jaxtyping import Bool, Float
from torch import Tensor

from agents.candidates import check_shape, over_candidates, resolve_valid
from agents.objectives.surrogate import SurrogateConfig, SurrogateLoss, surrogate_inputs
from agents.objectives.terminal import LevelAdvantage, at_every_level, candidate_centred
from agents.registry import PLAIN_SPACE, Method, register_method

_MAX_LOG_RATIO = 20.0


def leave_one_out_advantages(
    terminal_reward: Float[Tensor, "B K"],
    num_levels: int,
    valid: Bool[Tensor, "B K"] | None = None,
) -> Float[Tensor, "B K L"]:
    """Return R less the mean of the request's other valid candidates, repeated at every level.

    Nothing here divides by a deviation: R must be scaled across requests. A single candidate gets
    0. Arguments and errors: see `grpo_advantages`.
    """
    check_shape("terminal_reward", terminal_reward, "B, K")
    mask = resolve_valid(valid, terminal_reward)
    return at_every_level(_leave_one_out(terminal_reward, mask), num_levels)


def _leave_one_out(reward: Tensor, mask: Tensor) -> Tensor:
    count = mask.sum(-1, keepdim=True)
    # R - mean of the others = (R - mean of all) n / (n - 1), exactly 0 where all are equal.
    return candidate_centred(reward, mask) * count / (count - 1).clamp_min(1)


class LeaveOneOutAdvantage(LevelAdvantage):
    """Writes `advantage` [B, K, L, 1] from `terminal_reward` [B, K], `valid` [B, K] and `codes`."""

    def __init__(self) -> None:
        super().__init__(_leave_one_out)


def reinforce_surrogate(
    log_prob: Float[Tensor, "B K L"],
    behavior_log_prob: Float[Tensor, "B K L"],
    advantage: Float[Tensor, "B K L"],
    valid: Bool[Tensor, "B K"] | None = None,
    reduction: str = "mean",
) -> Float[Tensor, "..."]:
    """Return -mean_candidates sum_l rho_l A_l with ratios that no clip bounds.

    Where the policy still is the behaviour the gradient is REINFORCE's, -A grad log pi; in later
    epochs the ratio corrects for the difference. A ratio above e^20 is taken as e^20, so that it
    can't overflow. Arguments and errors: see `clipped_surrogate`.
    """
    log_prob, behavior, advantage, mask = surrogate_inputs(
        log_prob, behavior_log_prob, advantage, valid
    )
    ratio = (log_prob - behavior).clamp_max(_MAX_LOG_RATIO).exp()
    return -over_candidates(ratio * advantage, mask, reduction)


@register_method("reinforce", config=SurrogateConfig, search_space=PLAIN_SPACE)
def reinforce(config: SurrogateConfig, num_levels: int) -> Method:
    """REINFORCE with the mean of the other candidates as baseline; no clip, no critic."""
    return Method(LeaveOneOutAdvantage(), SurrogateLoss.of(config, reinforce_surrogate))
