"""What a training run is made of: its configuration, and the methods one can choose.

A method is a pair of TorchRL modules: one writes advantages (or pairs) into the rollout, once per
step; the other turns the rollout and the current `logits` into losses, once per epoch. The loop,
the rollouts, the critic's schedule and the budget of ranker evaluations are the same for all.

    @register_method("mine", learning_rate=1e-3)
    def mine(config: TrainConfig, num_levels: int) -> Method:
        return Method(GRPOAdvantage(), MyLoss(make_policy_head()))
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tensordict.nn import TensorDictModuleBase
from torchrl.objectives import LossModule

from agents.actor_critic import make_policy_head
from agents.objectives.dpo import DPOLoss, PreferencePairs
from agents.objectives.ecpo import ecpo_surrogate
from agents.objectives.gbpo import gbpo_surrogate
from agents.objectives.grpo import GRPOAdvantage
from agents.objectives.hepo import HEPOAdvantage, HEPOLoss, Surrogate
from agents.objectives.ppo import LevelGAE, LevelSummedPPOLoss
from agents.objectives.rspo import RSPOLoss
from agents.objectives.surrogate import check_clip, check_range
from agents.rollout import RolloutConfig


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RolloutConfig):
    """One training run. Every default that the paper leaves open says so."""

    num_steps: int = 100
    """Rollout batches, the critic's warm-up included: the budget of ranker evaluations is
    num_steps x num_requests x num_candidates for every method. Not given in the paper."""
    num_requests: int = 64
    """B, requests per step. Not given in the paper."""
    num_epochs: int = 2
    """Policy updates per step, each over the whole batch. Not given in the paper."""
    learning_rate: float | None = None
    """Adam's, for HSD and PTD. None: the method's own (1e-3; hepo as printed 3e-4)."""
    max_grad_norm: float = 1.0
    """The policy's gradient is scaled down to this norm. Not given in the paper."""
    clip: float = 0.2
    """epsilon of Eq. 9. Not given in the paper."""
    discount: float = 1.0
    """gamma of Eq. 8. Not given in the paper; an episode is only L steps long."""
    gae_lambda: float = 0.95
    """lambda of Eq. 8. Not given in the paper."""
    process_reward_scale: float = 1.0
    """alpha of Eq. 7 in units of the reward's standard deviation (the reward is divided by it
    before). The paper says "small"; the deltas it multiplies are mostly below 0.3."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy bonus per level and nat (not dpo, rspo). Not in the paper."""
    kl_penalty: float = 0.2
    """Weight of KL(policy || warm start) per level and nat, for methods whose loss has no
    reference of its own (not dpo, rspo). Not in the paper; without it policies collapse
    onto a few ads (`docs/log.md`)."""
    critic_learning_rate: float = 1e-3
    """Adam's, for the HTE. Not given in the paper."""
    critic_updates: int = 4
    """Critic updates per step. Not given in the paper."""
    critic_requests: int = 16
    """Requests per critic update, with all their candidates; the updates walk through the batch.
    Not given in the paper."""
    critic_warmup_steps: int = 15
    """First steps that train the critic only, for methods with a critic; they count in
    num_steps. Departs from the paper, which trains the HTE before RL and is silent on this."""
    dpo_beta: float = 0.5
    """beta of DPO, per nat of the whole path. Not given in the paper."""
    rspo_beta: float = 0.3
    """beta of RSPO, per nat of the whole path. Not given in the source."""
    rspo_delta: float = 1.0
    """delta of RSPO, nats: the reference counts while the mean log-ratio is below it. Not given
    in the source."""
    dpo_num_pairs: int = 4
    """Pairs per request: i-th best against i-th worst by reward. Not given in the paper."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_steps", "num_requests", "num_epochs", "critic_updates"):
            check_range(name, getattr(self, name), 1)
        check_range("critic_requests", self.critic_requests, 1, self.num_requests)
        for name in ("discount", "gae_lambda"):
            check_range(name, getattr(self, name), 0.0, 1.0)
        for name in (
            "process_reward_scale", "entropy_coefficient", "kl_penalty", "critic_warmup_steps",
        ):  # fmt: skip
            check_range(name, getattr(self, name), 0)
        for name in (
            "learning_rate",
            "critic_learning_rate",
            "max_grad_norm",
            "dpo_beta",
            "rspo_beta",
        ):
            value = getattr(self, name)
            if value is not None and not value > 0.0:
                raise ValueError(f"{name} must be above 0, got {value}")
        check_clip(self.clip)
        check_range("dpo_num_pairs", self.dpo_num_pairs, 1, self.num_candidates // 2)


@dataclass(frozen=True)
class Method:
    """What distinguishes a method."""

    advantage: TensorDictModuleBase | None
    """Writes into the rollout what `loss` needs, if anything; with a critic `value_target` too."""
    loss: LossModule
    """Reads the rollout and `logits`; everything named `loss_*` is summed and minimised."""
    uses_critic: bool = False
    """Train the HTE on `value_target`, with its warm-up."""
    uses_reference: bool = False
    """Give the loss `reference_log_probs` [B, K, L, V] of the warm start."""


MethodFactory = Callable[[TrainConfig, int], Method]


@dataclass(frozen=True)
class _Registered:
    factory: MethodFactory
    learning_rate: float


_METHODS: dict[str, _Registered] = {}


def register_method(
    name: str, *, learning_rate: float = 1e-3
) -> Callable[[MethodFactory], MethodFactory]:
    """Make a method available under a name: `register_method("mine")(factory)`.

    Args:
        name: Lower case, as in tables and on the command line.
        learning_rate: Adam's for the policy, unless the configuration sets one.
    """

    def register(factory: MethodFactory) -> MethodFactory:
        _METHODS[name] = _Registered(factory, learning_rate)
        return factory

    return register


def method_names() -> list[str]:
    """Return the registered names, in the order of registration."""
    return list(_METHODS)


def make_method(name: str, config: TrainConfig, num_levels: int) -> tuple[Method, float]:
    """Return the method and the policy's learning rate.

    Raises:
        ValueError: Unknown name.
    """
    if name not in _METHODS:
        raise ValueError(f"unknown method {name!r}; registered: {', '.join(_METHODS)}")
    registered = _METHODS[name]
    return registered.factory(config, num_levels), config.learning_rate or registered.learning_rate


def _hepo(config: TrainConfig, *, through_terminal: bool) -> Method:
    advantage = HEPOAdvantage(
        discount=config.discount,
        gae_lambda=config.gae_lambda,
        process_reward_scale=config.process_reward_scale,
        through_terminal=through_terminal,
    )
    return Method(advantage, _clipped_loss(config), uses_critic=True)


def _clipped_loss(config: TrainConfig, surrogate: Surrogate | None = None) -> HEPOLoss:
    return HEPOLoss(
        make_policy_head(),
        clip=config.clip,
        entropy_coefficient=config.entropy_coefficient,
        surrogate=surrogate,
    )


@register_method("hepo", learning_rate=3e-4)
def hepo(config: TrainConfig, num_levels: int) -> Method:
    """HEPO as printed: the terminal reward reaches coarse levels through the critic only."""
    return _hepo(config, through_terminal=False)


@register_method("hepo_terminal")
def hepo_terminal(config: TrainConfig, num_levels: int) -> Method:
    """HEPO with Eq. 8's sum carried through level L."""
    return _hepo(config, through_terminal=True)


@register_method("ppo")
def ppo(config: TrainConfig, num_levels: int) -> Method:
    """PPO by torchrl's ClipPPOLoss and GAE; the reward at the last level only."""
    loss = LevelSummedPPOLoss(
        make_policy_head(),
        num_levels=num_levels,
        clip=config.clip,
        entropy_coefficient=config.entropy_coefficient,
    )
    advantage = LevelGAE(discount=config.discount, gae_lambda=config.gae_lambda)
    return Method(advantage, loss, uses_critic=True)


@register_method("grpo")
def grpo(config: TrainConfig, num_levels: int) -> Method:
    """The within-request z-score at every level; no critic."""
    return Method(GRPOAdvantage(), _clipped_loss(config))


@register_method("dpo")
def dpo(config: TrainConfig, num_levels: int) -> Method:
    """Iterative DPO: fresh pairs from each step's candidates; the warm start is the reference."""
    pairs = PreferencePairs(num_pairs=config.dpo_num_pairs)
    return Method(pairs, DPOLoss(make_policy_head(), beta=config.dpo_beta), uses_reference=True)


@register_method("rspo")
def rspo(config: TrainConfig, num_levels: int) -> Method:
    """GR4AD's list-wise preferences over all candidates; the warm start is the reference."""
    loss = RSPOLoss(make_policy_head(), beta=config.rspo_beta, delta=config.rspo_delta)
    return Method(None, loss, uses_reference=True)


@register_method("ecpo")
def ecpo(config: TrainConfig, num_levels: int) -> Method:
    """OneRec's GRPO with early clipping of bad candidates."""
    surrogate = partial(ecpo_surrogate, clip=config.clip)
    return Method(GRPOAdvantage(), _clipped_loss(config, surrogate))


@register_method("gbpo")
def gbpo(config: TrainConfig, num_levels: int) -> Method:
    """OneRec's gradient-bounded ratio, without a clip, on GRPO's advantages."""
    return Method(GRPOAdvantage(), _clipped_loss(config, gbpo_surrogate))
