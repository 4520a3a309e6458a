"""HEPO: hierarchical process rewards, advantages and the two losses (GPR 3.3, Eqs. 6-10).

Dims: B requests, K candidates, L levels (coarse to fine), V codes per level. Levels are time steps.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import (
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModuleBase,
)
from torch import Tensor
from torchrl.objectives import LossModule

from agents.objectives.surrogate import (
    candidate_zscore,
    check_clip,
    check_range,
    check_shape,
    clipped_surrogate,
    keep_valid,
    mean_over_candidates,
    resolve_valid,
)

Surrogate = Callable[..., Tensor]
"""(log_prob, behavior_log_prob, advantage, valid=...) -> scalar loss."""


def process_rewards(
    popularity: Float[Tensor, "B L V"] | Float[Tensor, "B K L V"],
    codes: Int[Tensor, "B K L"],
    legal_mask: Bool[Tensor, "B K L V"],
    scale: Float[Tensor, " coarse"],
) -> Float[Tensor, "B K coarse"]:
    """Return alpha_l max(0, P_l(z_l) - mean over the legal children of P_l) for l < L (Eqs. 6, 7).

    The mean runs over the children of the chosen prefix, z_l among them: a code that is popular
    only because all its siblings are gets nothing.

    Args:
        popularity: P_l(t) in [0, 1], per request, or per candidate where it depends on the prefix.
        codes: The chosen path, in [0, V).
        legal_mask: Row l: the legal codes after z_{1:l-1}.
        scale: alpha_l >= 0 in the unit of the terminal reward, L - 1 entries.

    Returns:
        The process rewards of the L - 1 coarse levels, 0 where the mask row is empty.

    Raises:
        ValueError: A wrong shape, a code outside [0, V) or a negative scale.
    """
    if codes.ndim != 3 or codes.shape[-1] < 1:
        raise ValueError(f"codes must have shape [B, K, L], got {tuple(codes.shape)}")
    num_requests, _, num_levels = codes.shape
    if legal_mask.ndim != 4 or legal_mask.dtype != torch.bool:
        raise ValueError(
            "legal_mask must be bool of shape [B, K, L, V], "
            f"got {legal_mask.dtype} {tuple(legal_mask.shape)}"
        )
    num_codes = legal_mask.shape[-1]
    check_shape("legal_mask", legal_mask, (*codes.shape, num_codes), "B, K, L, V")
    if popularity.ndim == 3:
        check_shape("popularity", popularity, (num_requests, num_levels, num_codes), "B, L, V")
        popularity = popularity.unsqueeze(1).expand(legal_mask.shape)
    check_shape("popularity", popularity, legal_mask.shape, "B, K, L, V")
    check_shape("scale", scale, (num_levels - 1,), "L-1")
    if (scale < 0).any():
        raise ValueError(f"scale must not be negative, got {scale.tolist()}")
    if codes.numel() and (codes.min() < 0 or codes.max() >= num_codes):
        raise ValueError(f"codes must lie in [0, {num_codes}), got [{codes.min()}, {codes.max()}]")

    coarse = slice(0, num_levels - 1)
    legal = legal_mask[..., coarse, :]
    score = popularity[..., coarse, :]
    chosen = score.gather(-1, codes[..., coarse, None]).squeeze(-1)
    count = legal.sum(-1)
    sibling_mean = torch.where(legal, score, 0.0).sum(-1) / count.clamp_min(1)
    delta = torch.where(count > 0, chosen - sibling_mean, 0.0)
    return scale * delta.clamp_min(0.0)


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
    if value.ndim != 3 or value.shape[-1] < 1:
        raise ValueError(f"value must have shape [B, K, L], got {tuple(value.shape)}")
    num_levels = value.shape[-1]
    check_shape("terminal_reward", terminal_reward, value.shape[:2], "B, K")
    check_shape("process_reward", process_reward, (*value.shape[:2], num_levels - 1), "B, K, L-1")
    check_range("discount", discount, 0.0, 1.0)
    check_range("gae_lambda", gae_lambda, 0.0, 1.0)
    check_range("eps", eps, 0.0)
    mask = resolve_valid(valid, value)

    value = keep_valid(value.detach(), mask)
    terminal_reward = keep_valid(terminal_reward, mask)
    reward = torch.cat([keep_valid(process_reward, mask), terminal_reward.unsqueeze(-1)], -1)

    running = terminal_reward
    returns = [running]
    for level in reversed(range(num_levels - 1)):
        running = reward[..., level] + discount * running
        returns.append(running)

    trace = (
        terminal_reward - value[..., -1] if through_terminal else torch.zeros_like(terminal_reward)
    )
    advantage = [candidate_zscore(terminal_reward, eps, mask)]
    for level in reversed(range(num_levels - 1)):
        delta = reward[..., level] + discount * value[..., level + 1] - value[..., level]
        trace = delta + discount * gae_lambda * trace
        advantage.append(trace)
    return torch.stack(advantage[::-1], -1), torch.stack(returns[::-1], -1)


def value_loss(
    value: Float[Tensor, "B K L"],
    value_target: Float[Tensor, "B K L"],
    valid: Bool[Tensor, "B K"] | None = None,
) -> Float[Tensor, ""]:
    """Return the mean over valid candidates of sum_l (V(s, z_{1:l-1}) - G_l)^2 (Eq. 10).

    Raises:
        ValueError: A wrong shape.
    """
    if value.ndim != 3:
        raise ValueError(f"value must have shape [B, K, L], got {tuple(value.shape)}")
    check_shape("value_target", value_target, value.shape, "B, K, L")
    mask = resolve_valid(valid, value)
    error = keep_valid(value, mask) - keep_valid(value_target.detach(), mask)
    return mean_over_candidates(error.square(), mask)


class HEPOAdvantage(TensorDictModuleBase):
    """Writes HEPO's advantages and value targets into a rollout, as torchrl's GAE does.

    Reads `popularity` [B, L, V] (or [B, K, L, V]), `codes` [B, K, L], `legal_mask` [B, K, L, V],
    `terminal_reward` [B, K], `state_value` [B, K, L, 1] and `valid` [B, K]. Writes `advantage` and
    `value_target` [B, K, L, 1], and `process_reward` [B, K, L-1].
    """

    def __init__(
        self,
        *,
        discount: float = 1.0,
        gae_lambda: float = 0.95,
        process_reward_scale: float | Sequence[float] = 1.0,
        eps: float = 1e-6,
        through_terminal: bool = False,
    ) -> None:
        """Store Eq. 7's alpha (for all coarse levels, or L - 1 of them) and Eq. 8's constants."""
        super().__init__()
        check_range("discount", discount, 0.0, 1.0)
        check_range("gae_lambda", gae_lambda, 0.0, 1.0)
        self.discount = discount
        self.gae_lambda = gae_lambda
        self.process_reward_scale = process_reward_scale
        self.eps = eps
        self.through_terminal = through_terminal
        self.in_keys = [
            "popularity", "codes", "legal_mask", "terminal_reward", "state_value", "valid",
        ]  # fmt: skip
        self.out_keys = ["advantage", "value_target", "process_reward"]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the same TensorDict with the out-keys set."""
        value = tensordict["state_value"].squeeze(-1)
        scale = torch.as_tensor(self.process_reward_scale, dtype=value.dtype, device=value.device)
        reward = process_rewards(
            tensordict["popularity"].to(value.dtype),
            tensordict["codes"],
            tensordict["legal_mask"],
            scale.expand(value.shape[-1] - 1),
        )
        advantage, returns = hepo_advantages(
            reward,
            tensordict["terminal_reward"],
            value,
            self.discount,
            self.gae_lambda,
            self.eps,
            self.through_terminal,
            tensordict["valid"],
        )
        tensordict.set("process_reward", reward)
        tensordict.set("advantage", advantage.unsqueeze(-1))
        return tensordict.set("value_target", returns.unsqueeze(-1))


class HEPOLoss(LossModule):
    """Eq. 9 for the actor and Eq. 10 for the critic, as a torchrl loss.

    Serves every method of this form: HEPO, GRPO; ECPO and GBPO with their own surrogate. The two
    losses never meet: the critic reads the rollout's detached state, so it can't move the HSD, and
    the advantage is a constant, so the policy can't move the critic.

    Reads what the networks read, and `codes`, `action_log_prob` [B, K, L], `advantage`
    [B, K, L, 1], `valid` [B, K]; with a critic `value_target` [B, K, L, 1]. Writes
    `loss_objective`, `loss_entropy` and `loss_critic` (where they apply), `entropy` (nats, summed
    over levels) and `clip_fraction`.
    """

    actor_network: ProbabilisticTensorDictModule | ProbabilisticTensorDictSequential
    critic_network: TensorDictModuleBase | None

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictModule | ProbabilisticTensorDictSequential,
        critic_network: TensorDictModuleBase | None = None,
        *,
        clip: float = 0.2,
        entropy_coefficient: float = 0.0,
        level_weight: Sequence[float] | None = None,
        surrogate: Surrogate | None = None,
    ) -> None:
        """Store the networks (shared, not copied) and the constants.

        Args:
            actor_network: Gives a masked categorical [B, K, L, V] through `get_dist`.
            critic_network: Writes `state_value` [B, K, L, 1].
            clip: epsilon of Eq. 9, in (0, 1).
            entropy_coefficient: Weight of the entropy bonus, per level and nat.
            level_weight: c_l of Eq. 9, L entries; 1 by default.
            surrogate: Another function in place of Eq. 9, for instance `gbpo_surrogate`; `clip`
                then only counts the `clip_fraction`, and there are no level weights.
        """
        super().__init__()
        check_clip(clip)
        check_range("entropy_coefficient", entropy_coefficient, 0.0)
        self.actor_network = actor_network
        self.critic_network = critic_network
        self.clip = clip
        self.entropy_coefficient = entropy_coefficient
        self.surrogate = surrogate or self._clipped
        self.level_weight = level_weight
        self.in_keys = ["codes", "action_log_prob", "advantage", "valid", *actor_network.in_keys]
        self.out_keys = ["loss_objective", "entropy", "clip_fraction"]

    @property
    def functional(self) -> bool:
        """False: the networks keep their own parameters."""
        return False

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the losses and their diagnostics; `tensordict` is left as it is."""
        tensordict = tensordict.copy()
        valid = tensordict["valid"]
        behavior = tensordict["action_log_prob"]
        distribution = self.actor_network.get_dist(tensordict)
        log_prob = distribution.log_prob(tensordict["codes"])
        out = TensorDict()
        out["loss_objective"] = self.surrogate(
            log_prob, behavior, tensordict["advantage"].squeeze(-1), valid=valid
        )
        entropy = mean_over_candidates(distribution.entropy(), valid)
        if self.entropy_coefficient:
            out["loss_entropy"] = -self.entropy_coefficient * entropy
        if self.critic_network is not None:
            out["loss_critic"] = self.loss_critic(tensordict)
        with torch.no_grad():
            ratio = keep_valid(log_prob - behavior, valid).exp()
            clipped = ((ratio - 1).abs() > self.clip).to(ratio.dtype)
            out["clip_fraction"] = mean_over_candidates(clipped, valid) / ratio.shape[-1]
            out["entropy"] = entropy.detach()
        return out

    def _clipped(
        self, log_prob: Tensor, behavior: Tensor, advantage: Tensor, *, valid: Tensor
    ) -> Tensor:
        weight = None if self.level_weight is None else log_prob.new_tensor(self.level_weight)
        return clipped_surrogate(log_prob, behavior, advantage, self.clip, weight, valid)

    def loss_critic(self, tensordict: TensorDictBase) -> Tensor:
        """Return Eq. 10 alone, for critic updates between policy updates."""
        if self.critic_network is None:
            raise ValueError("loss_critic needs a critic_network, got None")
        value = self.critic_network(tensordict.detach())["state_value"].squeeze(-1)
        return value_loss(value, tensordict["value_target"].squeeze(-1), tensordict["valid"])
