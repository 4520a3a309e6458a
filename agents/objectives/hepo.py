"""HEPO: hierarchical process rewards, advantages and value targets (GPR 3.3, Eqs. 6-10).

Dims: B requests, K candidates, L levels (coarse to fine), V codes per level. Levels are time steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from agents.candidates import check_choice, check_range, check_shape, keep_valid, resolve_valid
from agents.critic import CriticConfig
from agents.modules.keys import KeyedModule
from agents.objectives.process_rewards import (
    PROCESS_REWARDS,
    popularity_deltas,
    potential_rewards,
    prefix_popularity,
    process_rewards,
    shuffle_popularity,
)
from agents.objectives.surrogate import SurrogateConfig, SurrogateLoss
from agents.objectives.terminal import (
    TERMINALS,
    TerminalConfig,
    candidate_zscore,
    terminal_advantage,
)
from agents.registry import Method, register_method, tuning_space
from agents.rollout import World
from simulators.world.history import past_successes

POPULARITIES = ("codes", "prefix", "shuffled")


@dataclass(frozen=True, kw_only=True)
class HEPOConfig(SurrogateConfig, TerminalConfig, CriticConfig):
    """The dials of hepo and hepo_terminal."""

    process_reward_scale: float | tuple[float, ...] = 1.0
    """alpha of Eq. 7, for all coarse levels or L - 1 of them, in units of the reward's standard
    deviation (the reward is divided by it before). The paper says "small"; the deltas it
    multiplies are mostly below 0.3."""
    process_reward: str = "capped"
    """`capped` (Eq. 7), `uncapped` (delta may be negative) or `potential` (differences of
    potentials, which can't change the optimum)."""
    popularity: str = "codes"
    """`codes` (Eq. 6), `prefix` (among successes that match the chosen prefix) or `shuffled` (a
    control: the same numbers on the wrong codes)."""
    terminal_at_all_levels: bool = False
    """HEPO: the terminal advantage and the process rewards to come at every level, no critic."""
    through_terminal: bool = False
    """HEPO as printed: carry Eq. 8's sum through level L, as `hepo_terminal` does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        scale = self.process_reward_scale
        for alpha in scale if isinstance(scale, tuple) else (scale,):
            check_range("process_reward_scale", alpha, 0)
        check_choice("process_reward", self.process_reward, PROCESS_REWARDS)
        check_choice("popularity", self.popularity, POPULARITIES)


def hepo_advantages(
    process_reward: Float[Tensor, "B K coarse"],
    terminal_reward: Float[Tensor, "B K"],
    value: Float[Tensor, "B K L"],
    discount: float,
    gae_lambda: float,
    eps: float = 1e-6,
    through_terminal: bool = False,
    valid: Bool[Tensor, "B K"] | None = None,
) -> tuple[Float[Tensor, "B K L"], Float[Tensor, "B K L"]]:
    """Return the advantages of Eq. 8 and the value targets G of Eq. 10.

    Coarse levels l < L: A_l = sum_{k=0}^{L-l-1} (gamma lambda)^k delta_{l+k} with
    delta_l = r_l + gamma V(s, z_{1:l}) - V(s, z_{1:l-1}). The sum ends at level L - 1: the terminal
    reward reaches the coarse levels through the critic only. Level L: the z-score of R within the
    request. G_l = sum_{k=0}^{L-l} gamma^k r_{l+k}, R included as r_L.

    Args:
        process_reward: r_l of Eq. 7 for l < L, in the unit of `terminal_reward`.
        terminal_reward: R of Eq. 5, scaled across requests.
        value: value[..., l-1] = V(s, z_{1:l-1}), same unit. Used as a constant.
        discount: gamma in [0, 1].
        gae_lambda: lambda in [0, 1].
        eps: Added to the population standard deviation of the z-score.
        through_terminal: Also add level L to the sums, delta_L = R - V(s, z_{1:L-1}) (no V after
            the last code). An ablation: ordinary GAE at the coarse levels.
        valid: Candidates that count, all by default; the others get 0 in both results.

    Raises:
        ValueError: A wrong shape, discount or gae_lambda outside [0, 1], or eps < 0.
    """
    check_shape("value", value, "B, K, L")
    num_levels = value.shape[-1]
    check_shape("terminal_reward", terminal_reward, "B, K", value.shape[:2])
    check_shape("process_reward", process_reward, "B, K, L-1", (*value.shape[:2], num_levels - 1))
    check_range("discount", discount, 0.0, 1.0)
    check_range("gae_lambda", gae_lambda, 0.0, 1.0)
    check_range("eps", eps, 0.0)
    mask = resolve_valid(valid, value)

    value = keep_valid(value.detach(), mask)
    terminal_reward = keep_valid(terminal_reward, mask)
    reward = torch.cat([keep_valid(process_reward, mask), terminal_reward.unsqueeze(-1)], -1)

    delta = reward[..., :-1] + discount * value[..., 1:] - value[..., :-1]
    last = torch.zeros_like(value[..., -1:])
    if through_terminal:
        last = reward[..., -1:] - value[..., -1:]
    delta = torch.cat([delta, last], -1)
    advantage = _discounted_sums(delta, discount * gae_lambda)
    advantage[..., -1] = candidate_zscore(terminal_reward, eps, mask)
    return advantage, _discounted_sums(reward, discount)


class HEPOAdvantage(KeyedModule):
    """Writes HEPO's advantages and value targets into a rollout, as torchrl's GAE does.

    Shapes: see `agents.rollout`; `popularity` may be [B, K, L, V]. Writes `advantage` and
    `value_target` [B, K, L, 1], and `process_reward` [B, K, L-1]. With a `value_network` it writes
    `state_value` before, without a gradient; else that must be there.
    """

    reads = ("popularity", "codes", "legal_mask", "terminal_reward", "state_value", "valid")
    writes = ("advantage", "value_target", "process_reward")

    def __init__(
        self,
        value_network: TensorDictModuleBase | None = None,
        *,
        discount: float = 1.0,
        gae_lambda: float = 0.95,
        process_reward_scale: float | Sequence[float] = 1.0,
        eps: float = 1e-6,
        through_terminal: bool = False,
        process_reward: str = "capped",
        terminal: str = "zscore",
        all_levels: bool = False,
    ) -> None:
        """Store Eq. 7's alpha (for all coarse levels, or L - 1 of them) and Eq. 8's constants.

        `value_network` writes `state_value` [B, K, L, 1], in units of the reward scale
        (`agents.actor_critic.make_critic`); it is not a part of the module.

        Ablations: `process_reward` is `capped` (Eq. 7), `uncapped` or `potential`; `terminal` is
        `zscore` (Eq. 8), `mean` or `batch`; `all_levels` gives every level the terminal advantage
        and the process rewards still to come, without the critic (with alpha 0 this is GRPO).
        """
        super().__init__()
        check_range("discount", discount, 0.0, 1.0)
        check_range("gae_lambda", gae_lambda, 0.0, 1.0)
        check_choice("process_reward", process_reward, PROCESS_REWARDS)
        check_choice("terminal", terminal, TERMINALS)
        self.discount = discount
        self.gae_lambda = gae_lambda
        self.process_reward_scale = process_reward_scale
        self.eps = eps
        self.through_terminal = through_terminal
        self.process_reward = process_reward
        self.terminal = terminal
        self.all_levels = all_levels
        self.take_values(value_network)

    def write(self, data: TensorDictBase) -> TensorDictBase:
        """Set advantage, value target and process reward."""
        value = data["state_value"].squeeze(-1)
        terminal_reward = data["terminal_reward"]
        valid = resolve_valid(data["valid"], terminal_reward)
        reward, shaping = self._process_rewards(data, value)
        total, constants = terminal_reward + shaping, (self.discount, self.gae_lambda, self.eps)
        advantage, returns = hepo_advantages(
            reward, total, value, *constants, self.through_terminal, valid
        )
        last = terminal_advantage(self.terminal, terminal_reward, self.eps, valid)
        advantage[..., -1] = last
        if self.all_levels:
            to_come = keep_valid(torch.cat([reward, torch.zeros_like(reward[..., :1])], -1), valid)
            advantage = last.unsqueeze(-1) + _discounted_sums(to_come, self.discount)
        data.set("process_reward", reward)
        data.set("advantage", advantage.unsqueeze(-1))
        return data.set("value_target", returns.unsqueeze(-1))

    def _process_rewards(
        self, data: TensorDictBase, value: Tensor
    ) -> tuple[Tensor, Tensor | float]:
        """Return the rewards of the coarse levels, and what the last level's gets on top."""
        scale = torch.as_tensor(self.process_reward_scale, dtype=value.dtype, device=value.device)
        scale = scale.expand(value.shape[-1] - 1)
        popularity = data["popularity"].to(value.dtype)
        codes, legal_mask = data["codes"], data["legal_mask"]
        if self.process_reward == "capped":
            return process_rewards(popularity, codes, legal_mask, scale), 0.0
        delta = scale * popularity_deltas(popularity, codes, legal_mask)
        if self.process_reward == "potential":
            return potential_rewards(delta, self.discount)
        return delta, 0.0


def _discounted_sums(reward: Tensor, discount: float) -> Tensor:
    """Return sum_{k >= l} discount^{k-l} r_k at every level, [B, K, L]."""
    sums = [reward[..., -1]]
    for level in reversed(range(reward.shape[-1] - 1)):
        sums.append(reward[..., level] + discount * sums[-1])
    return torch.stack(sums[::-1], -1)


def set_popularity(data: TensorDict, world: World, seed: int, *, kind: str) -> None:
    """Put another popularity than Eq. 6's in its place: `prefix` or `shuffled`."""
    request_ids = data["request"].request_id
    if kind == "shuffled":
        data["popularity"] = shuffle_popularity(data["popularity"], request_ids, seed)
    elif kind == "prefix":
        past, valid = past_successes(world, request_ids)
        popularity = prefix_popularity(past, valid, data["codes"], data["legal_mask"].shape[-1])
        data["popularity"] = popularity.to(data["popularity"].dtype)


HEPOLoss = SurrogateLoss
"""HEPO's is the surrogate loss as it stands: Eq. 9 for the actor, Eq. 10 for the critic."""

_SPACE = tuning_space(process_reward_scale=(0.3, 1.0, 3.0))


@register_method("hepo", config=HEPOConfig, learning_rate=3e-4, search_space=_SPACE)
def hepo(config: HEPOConfig, num_levels: int) -> Method:
    """HEPO as printed: the terminal reward reaches coarse levels through the critic only."""
    advantage = HEPOAdvantage(
        discount=config.discount,
        gae_lambda=config.gae_lambda,
        process_reward_scale=config.process_reward_scale,
        through_terminal=config.through_terminal,
        process_reward=config.process_reward,
        terminal=config.terminal,
        all_levels=config.terminal_at_all_levels,
    )
    return Method(
        advantage,
        SurrogateLoss.of(config),
        uses_critic=not config.terminal_at_all_levels,
        prepare=partial(set_popularity, kind=config.popularity),
    )


@register_method("hepo_terminal", config=HEPOConfig, search_space=_SPACE)
def hepo_terminal(config: HEPOConfig, num_levels: int) -> Method:
    """HEPO with Eq. 8's sum carried through level L."""
    return hepo(replace(config, through_terminal=True), num_levels)
