"""The methods one can choose.

A method is a pair of TorchRL modules: one writes advantages (or pairs) into the rollout, once per
step; the other turns the rollout and the current `logits` into losses, once per epoch. The loop,
the rollouts, the critic's schedule and the budget of ranker evaluations are the same for all.

    @register_method("mine", learning_rate=1e-3)
    def mine(config: TrainConfig, num_levels: int) -> Method:
        return Method(GRPOAdvantage(), MyLoss(make_policy_head()))
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial

from tensordict.nn import TensorDictModuleBase
from torchrl.objectives import LossModule

from agents.actor_critic import make_policy_head
from agents.objectives.dpo import DPOLoss, PreferencePairs, SDPOLoss
from agents.objectives.ecpo import ecpo_surrogate
from agents.objectives.gbpo import gbpo_surrogate
from agents.objectives.grpo import GRPOAdvantage
from agents.objectives.hepo import HEPOAdvantage
from agents.objectives.ppo import LevelGAE, LevelSummedPPOLoss
from agents.objectives.raft import RAFTLoss
from agents.objectives.reinforce import LeaveOneOutAdvantage, reinforce_surrogate
from agents.objectives.rspo import RSPOLoss
from agents.objectives.surrogate import check_range
from agents.objectives.surrogate_loss import Surrogate, SurrogateLoss
from agents.objectives.unified import UnifiedLoss
from agents.train_config import TrainConfig


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
    is_offline: bool = False
    """Draw the candidates from the warm start, not from the policy as it is."""


MethodFactory = Callable[[TrainConfig, int], Method]


SearchSpace = Mapping[str, tuple[int | float, ...]]
"""Fields of `TrainConfig` and the values that tuning may give them."""
LEARNING_RATES = (1e-4, 3e-4, 1e-3, 2e-3)
DEFAULT_SPACE: SearchSpace = {
    "learning_rate": LEARNING_RATES,
    "kl_penalty": (0.05, 0.2, 0.5),
    "clip": (0.1, 0.2, 0.3),
}


@dataclass(frozen=True)
class _Registered:
    factory: MethodFactory
    learning_rate: float
    search_space: SearchSpace


_METHODS: dict[str, _Registered] = {}


def register_method(
    name: str, *, learning_rate: float = 1e-3, search_space: SearchSpace = DEFAULT_SPACE
) -> Callable[[MethodFactory], MethodFactory]:
    """Make a method available under a name: `register_method("mine")(factory)`.

    Args:
        name: Lower case, as in tables and on the command line.
        learning_rate: Adam's for the policy, unless the configuration sets one.
        search_space: What tuning may change. A fair comparison gives every method as many
            combinations.

    Raises:
        ValueError: The space has a field that `TrainConfig` has not.
    """
    unknown = set(search_space) - {field.name for field in fields(TrainConfig)}
    if unknown:
        raise ValueError(f"the search space of {name!r} has unknown fields: {sorted(unknown)}")

    def register(factory: MethodFactory) -> MethodFactory:
        _METHODS[name] = _Registered(factory, learning_rate, search_space)
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
    registered = _find(name)
    return registered.factory(config, num_levels), config.learning_rate or registered.learning_rate


def search_space(name: str) -> SearchSpace:
    """Return what tuning may change of a method; `learning_rate` defaults to its own.

    Raises:
        ValueError: Unknown name.
    """
    return _find(name).search_space


def default_learning_rate(name: str) -> float:
    """Return a method's own learning rate."""
    return _find(name).learning_rate


def _find(name: str) -> _Registered:
    if name not in _METHODS:
        raise ValueError(f"unknown method {name!r}; registered: {', '.join(_METHODS)}")
    return _METHODS[name]


def _space(**own: tuple[int | float, ...]) -> SearchSpace:
    """Return four learning rates, three strengths of the pull to the warm start, three of `own`."""
    pull = {} if any(name.endswith("_beta") for name in own) else DEFAULT_SPACE
    return {
        "learning_rate": LEARNING_RATES,
        **{name: values for name, values in pull.items() if name == "kl_penalty"},
        **own,
    }


def _hepo(config: TrainConfig, *, through_terminal: bool) -> Method:
    advantage = HEPOAdvantage(
        discount=config.discount,
        gae_lambda=config.gae_lambda,
        process_reward_scale=config.process_reward_scale,
        through_terminal=through_terminal or config.through_terminal,
        process_reward=config.process_reward,
        terminal=config.terminal,
        all_levels=config.terminal_at_all_levels,
    )
    return Method(advantage, _clipped_loss(config), uses_critic=True)


def _clipped_loss(config: TrainConfig, surrogate: Surrogate | None = None) -> SurrogateLoss:
    return SurrogateLoss(
        make_policy_head(),
        clip=config.clip,
        entropy_coefficient=config.entropy_coefficient,
        surrogate=surrogate,
    )


_HEPO_SPACE = _space(process_reward_scale=(0.3, 1.0, 3.0))
_DPO_SPACE = _space(dpo_beta=(0.2, 0.5, 1.0), dpo_num_pairs=(2, 4, 8))
_EPOCHS_SPACE = _space(num_epochs=(1, 2, 4))


@register_method("hepo", learning_rate=3e-4, search_space=_HEPO_SPACE)
def hepo(config: TrainConfig, num_levels: int) -> Method:
    """HEPO as printed: the terminal reward reaches coarse levels through the critic only."""
    return _hepo(config, through_terminal=False)


@register_method("hepo_terminal", search_space=_HEPO_SPACE)
def hepo_terminal(config: TrainConfig, num_levels: int) -> Method:
    """HEPO with Eq. 8's sum carried through level L."""
    return _hepo(config, through_terminal=True)


@register_method("ppo", search_space=_space(gae_lambda=(0.5, 0.95, 1.0)))
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
    return Method(GRPOAdvantage(terminal=config.terminal), _clipped_loss(config))


@register_method("grpo_mean")
def grpo_mean(config: TrainConfig, num_levels: int) -> Method:
    """GRPO without the division by the deviation."""
    return Method(GRPOAdvantage(terminal="mean"), _clipped_loss(config))


@register_method("reinforce", search_space=_EPOCHS_SPACE)
def reinforce(config: TrainConfig, num_levels: int) -> Method:
    """REINFORCE with the mean of the other candidates as baseline; no clip, no critic."""
    return Method(LeaveOneOutAdvantage(), _clipped_loss(config, reinforce_surrogate))


@register_method("raft", search_space=_space(raft_num_best=(1, 2, 4)))
def raft(config: TrainConfig, num_levels: int) -> Method:
    """Imitation of each request's best candidates."""
    check_range("raft_num_best", config.raft_num_best, 1, config.num_candidates)
    return Method(None, RAFTLoss(make_policy_head(), num_best=config.raft_num_best))


@register_method("dpo", search_space=_DPO_SPACE)
def dpo(config: TrainConfig, num_levels: int) -> Method:
    """Iterative DPO: fresh pairs from each step's candidates; the warm start is the reference."""
    check_range("dpo_num_pairs", config.dpo_num_pairs, 1, config.num_candidates // 2)
    pairs = PreferencePairs(num_pairs=config.dpo_num_pairs)
    return Method(pairs, DPOLoss(make_policy_head(), beta=config.dpo_beta), uses_reference=True)


@register_method("dpo_offline", search_space=_DPO_SPACE)
def dpo_offline(config: TrainConfig, num_levels: int) -> Method:
    """DPO on pairs of the warm start's candidates, never of the policy's own."""
    return replace(dpo(config, num_levels), is_offline=True)


@register_method(
    "sdpo", search_space=_space(dpo_beta=(0.2, 0.5, 1.0), sdpo_num_negatives=(3, 7, 15))
)
def sdpo(config: TrainConfig, num_levels: int) -> Method:
    """S-DPO: each request's best candidate against several worse ones at once."""
    check_range("sdpo_num_negatives", config.sdpo_num_negatives, 1, config.num_candidates - 1)
    loss = SDPOLoss(
        make_policy_head(), beta=config.dpo_beta, num_negatives=config.sdpo_num_negatives
    )
    return Method(None, loss, uses_reference=True)


_RSPO_SPACE = _space(rspo_beta=(0.1, 0.3, 1.0), rspo_delta=(0.3, 1.0, 3.0))


@register_method("rspo", search_space=_RSPO_SPACE)
def rspo(config: TrainConfig, num_levels: int) -> Method:
    """GR4AD's list-wise preferences over all candidates; the warm start is the reference."""
    loss = RSPOLoss(make_policy_head(), beta=config.rspo_beta, delta=config.rspo_delta)
    return Method(None, loss, uses_reference=True)


@register_method(
    "vsl_rspo", search_space=_space(rspo_beta=(0.1, 0.3, 1.0), unified_weight=(0.03, 0.1, 0.3))
)
def vsl_rspo(config: TrainConfig, num_levels: int) -> Method:
    """GR4AD's unified stage: value-aware imitation and RSPO in one step."""
    loss = UnifiedLoss(
        make_policy_head(),
        beta=config.rspo_beta,
        delta=config.rspo_delta,
        weight=config.unified_weight,
    )
    return Method(None, loss, uses_reference=True)


@register_method("ecpo")
def ecpo(config: TrainConfig, num_levels: int) -> Method:
    """OneRec's GRPO with early clipping of bad candidates."""
    surrogate = partial(ecpo_surrogate, clip=config.clip)
    return Method(GRPOAdvantage(terminal=config.terminal), _clipped_loss(config, surrogate))


@register_method("gbpo", search_space=_EPOCHS_SPACE)
def gbpo(config: TrainConfig, num_levels: int) -> Method:
    """OneRec's gradient-bounded ratio, without a clip, on GRPO's advantages."""
    advantage = GRPOAdvantage(terminal=config.terminal)
    return Method(advantage, _clipped_loss(config, gbpo_surrogate))
