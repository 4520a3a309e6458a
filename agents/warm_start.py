"""The warm start that every method of a comparison shares: MTP, VAFT, and a trained critic.

MTP learns what users meet next, VAFT weights it by value, and the HTE learns what candidates are
worth, first from the log and then from candidates of the policy scored by the rankers: HEPO lives
by its critic, so the critic is trained before RL (`docs/decisions.md`).

Dims: B requests, P positions, N heads, K candidates.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from agents.placing import beside, device_of
from agents.rollout import Reward, RolloutConfig, RolloutSource, as_reward, reward_unit
from gpr_rl.decoding import sample_paths
from gpr_rl.models import HHD, HHDConfig
from gpr_rl.models.decoder import Context
from gpr_rl.pretraining.auxiliary import AuxiliaryConfig, auxiliary_parts, depth_shares
from gpr_rl.pretraining.mtp import mtp_loss, validate_targets
from gpr_rl.pretraining.trainer import StageConfig, train_stage
from gpr_rl.pretraining.vaft import (
    explained_variance,
    exponential_weight,
    hte_loss,
    vaft_loss,
    vaft_weight,
    weight_by_action,
)
from gpr_rl.pretraining.vsl import VSLConfig, vsl_loss
from gpr_rl.random import Purpose, random_bits, uniform
from gpr_rl.schema import Targets
from simulators.rewards import RewardSpec
from simulators.world import World
from simulators.world.history import DAY_S
from simulators.world.supervision import WindowBatches

_CRITIC_DRAWS = 1 << 40
"""Draws of this stage start here, so that none is one of a later training step."""

OnStage = Callable[[str, int, dict[str, float]], None]
"""Called with a stage's name, the step and what is logged of it."""
Objective = Callable[[Context, Targets], tuple[Tensor, dict[str, float]]]
"""The policy's loss on a batch of windows, and what to log of it."""


@dataclass(frozen=True, kw_only=True)
class WarmStartConfig:
    """Three stages; the paper gives the order, not the sizes."""

    model: HHDConfig = field(default_factory=HHDConfig)
    mtp: StageConfig = field(default_factory=lambda: StageConfig(num_steps=250))
    """GPR 3.1."""
    vaft: StageConfig = field(
        default_factory=lambda: StageConfig(num_steps=100, learning_rate=1e-3)
    )
    """GPR 3.2; the HTE learns from the log in the same steps."""
    critic: StageConfig = field(
        default_factory=lambda: StageConfig(num_steps=60, learning_rate=3e-3)
    )
    """The HTE on sampled candidates of the finished policy, scored by the rankers."""
    vsl: VSLConfig = field(default_factory=VSLConfig)
    """Weights of VSL, which `train_vsl` runs in the place of VAFT for as many steps."""
    exp_temperature: float = 1.0
    """lambda of `train_exp_sft`, in standard deviations of the logged values."""
    num_ecpm_buckets: int = 16
    """Q of the eCPM token, in models made for VSL. Not given in the source."""
    auxiliary: AuxiliaryConfig = field(default_factory=AuxiliaryConfig)
    """Weights of what parts of the model learn beside the stages' losses, in MTP, VAFT and VSL."""
    num_windows: int = 64
    """Windows per supervised step."""
    num_positions: int = 6
    """Supervised requests per window."""
    entropy_weight: float = 0.01
    """Keeps the weights of the MTP heads from collapsing onto the easiest one."""
    num_requests: int = 64
    """Requests per critic step."""
    num_candidates: int = 16
    """Sampled candidates per request of a critic step."""


def build_model(world: World, config: HHDConfig, seed: int) -> HHD:
    """Return an untrained HHD of the world's shape, on its device.

    The weights depend on `seed` alone.

    Raises:
        ValueError: The model takes external knowledge, which no stage of training passes.
    """
    if config.knowledge_dim:
        raise ValueError(
            "knowledge_dim must be 0: warm start, rollouts and evaluation pass no external "
            f"knowledge, got {config.knowledge_dim}"
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = HHD(config, world.spec)
    model.hte.reward_scale.fill_(world.reward_scale)
    return model.to(getattr(world, "device", "cpu"))


def _train_windows(
    name: str,
    objective: Objective,
    model: HHD,
    world: World,
    config: WarmStartConfig,
    seed: int,
    on_stage: OnStage | None,
) -> None:
    """Run a supervised stage: `mtp`, or one on the windows after it with the HTE beside it."""
    sizes = config.num_windows, config.num_positions, config.model.num_mtp_heads
    logs = world.to("cpu")
    assert isinstance(logs, World)
    batches, device = WindowBatches(logs, seed, *sizes), device_of(model)
    after_mtp = name != "mtp"
    first_step = config.mtp.num_steps if after_mtp else 0
    validate_targets(*batches(0))

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        tokens, targets = (part.to(device) for part in batches(first_step + step))
        context = model.window(tokens, targets.position)
        total, logged = objective(context, targets)
        if after_mtp:
            critic = logged_critic_loss(model, world, context, targets)
            total, logged = total + critic, {"critic": float(critic.detach()), **logged}
        bits = random_bits(seed, Purpose.REFINING_NOISE, torch.tensor(first_step + step))
        generator = torch.Generator().manual_seed(int(bits))
        parts = auxiliary_parts(model, context, targets, generator)
        logged |= {f"auxiliary/{part}": float(x.detach()) for part, x in parts.items()}
        logged |= {f"auxiliary/{part}": float(x) for part, x in depth_shares(context).items()}
        return total + config.auxiliary.total(parts), logged

    parameters = [model.policy_parameters(), model.hte_parameters()]
    train_stage(
        parameters if after_mtp else parameters[:1],
        loss,
        config.vaft if after_mtp else config.mtp,
        on_stage and partial(on_stage, name),
        name=name,
        requests_of_step=lambda step: batches.request_ids(first_step + step),
    )


def train_mtp(
    model: HHD, world: World, config: WarmStartConfig, seed: int, on_stage: OnStage | None = None
) -> None:
    """Run stage 1 (GPR Eq. 3) in place."""

    def objective(context: Context, targets: Targets) -> tuple[Tensor, dict[str, float]]:
        logits = model.window_logits(context, targets.codes)
        return mtp_loss(logits, targets, model.head_logits, config.entropy_weight), {}

    _train_windows("mtp", objective, model, world, config, seed, on_stage)


def train_vaft(
    model: HHD, world: World, config: WarmStartConfig, seed: int, on_stage: OnStage | None = None
) -> None:
    """Run stage 2 (GPR Eq. 4) in place, and the HTE on logged values beside it."""

    def objective(context: Context, targets: Targets) -> tuple[Tensor, dict[str, float]]:
        logits = model.window_logits(context, targets.codes)
        weights = weight_by_action(vaft_weight(targets), targets)
        logged = {f"weight/{action}": float(weight) for action, weight in weights.items()}
        return vaft_loss(logits, targets, model.head_logits, config.entropy_weight), logged

    _train_windows("vaft", objective, model, world, config, seed, on_stage)


def train_exp_sft(
    model: HHD, world: World, config: WarmStartConfig, seed: int, on_stage: OnStage | None = None
) -> None:
    """Run exponentially reward-weighted likelihood in place, in VAFT's stead; no simulator."""
    scale = config.exp_temperature * world.reward_scale

    def objective(context: Context, targets: Targets) -> tuple[Tensor, dict[str, float]]:
        logits = model.window_logits(context, targets.codes)
        weight = exponential_weight(targets, scale)
        return mtp_loss(logits, targets, model.head_logits, config.entropy_weight, weight), {}

    _train_windows("exp_sft", objective, model, world, config, seed, on_stage)


def train_vsl(
    model: HHD, world: World, config: WarmStartConfig, seed: int, on_stage: OnStage | None = None
) -> None:
    """Run GR4AD's VSL in place in VAFT's stead: same windows, same steps, the HTE beside it.

    Raises:
        ValueError: The model has no eCPM token.
    """
    head = model.ecpm_head
    if head is None:
        raise ValueError("VSL needs a model with num_ecpm_buckets of at least 2, got 0")
    logged = torch.tensor(world.request_time < world.info.num_log_days * DAY_S)
    head.fit_buckets(world.logged["ecpm"][logged])

    def objective(context: Context, targets: Targets) -> tuple[Tensor, dict[str, float]]:
        policy, parts = vsl_loss(
            model.window_logits(context, targets.codes),
            model.ecpm_logits(context, targets.codes[:, :, 0]),
            head.bucket(targets.ecpm[..., 0]),
            targets,
            model.head_logits,
            config.vsl,
            config.entropy_weight,
        )
        return policy, {name: float(part.detach()) for name, part in parts.items()}

    _train_windows("vsl", objective, model, world, config, seed, on_stage)


def logged_critic_loss(model: HHD, world: World, context: Context, targets: Targets) -> Tensor:
    """Return the HTE's loss on logged values; it judges head 1, which is the policy."""
    first = slice(0, 1)
    return hte_loss(
        model.hte(context, targets.codes[:, :, first]),
        targets.final_value[..., first] / world.reward_scale,
        targets.pctr[..., first],
        targets.pcvr[..., first],
        targets.valid[..., first],
    )


def train_critic(
    model: HHD,
    world: World,
    config: WarmStartConfig,
    seed: int,
    reward: RewardSpec | Reward,
    on_stage: OnStage | None = None,
) -> None:
    """Train the HTE alone on the finished policy's candidates under the rankers.

    From here on the HTE counts in units of this reward.
    """
    reward, world = as_reward(reward), beside(world, model)
    pool, row = world.request_ids("train"), torch.arange(config.num_requests)

    def request_ids(step: int) -> Tensor:
        draw = uniform(seed, Purpose.CRITIC, torch.tensor(step), row)
        return pool[(draw * len(pool)).long()]

    drawn = RolloutConfig(num_candidates=config.num_candidates)
    scale = reward_unit(model, RolloutSource(world, reward, drawn, seed), request_ids(0))
    model.hte.reward_scale.fill_(scale)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        ids = request_ids(step)
        request = world.request(ids)
        with torch.no_grad():
            draw, eligible = _CRITIC_DRAWS + step, world.eligible(ids)
            candidates = sample_paths(
                model, request, world.trie, config.num_candidates, seed, draw, eligible
            )
            context = model.encode(request)
            outcome = world.outcome(ids, candidates.ad_id)
            total, _ = reward(outcome)
        output = model.hte(context, candidates.codes)
        scaled = total / scale
        loss = hte_loss(output, scaled, outcome.pctr, outcome.pcvr, candidates.valid)
        explained = explained_variance(output.value.detach(), scaled, candidates.valid)
        return loss, {f"explained_variance/{i}": x for i, x in enumerate(explained.tolist(), 1)}

    train_stage(
        [model.hte_parameters()],
        loss,
        config.critic,
        on_stage and partial(on_stage, "critic"),
        name="critic",
        requests_of_step=request_ids,
    )


def warm_start(
    world: World,
    config: WarmStartConfig,
    seed: int,
    reward: RewardSpec | Reward = None,
    on_stage: OnStage | None = None,
) -> HHD:
    """Return a policy with its critic after all three stages, in evaluation mode.

    `seed` is the root of the initial weights and of every draw, `reward` what the critic learns to
    expect (`agents.rollout.as_reward`; Eq. 5 by default). The model is on the world's device
    (`World.to`).
    """
    reward = as_reward(reward)
    model = build_model(world, config.model, seed)
    train_mtp(model, world, config, seed, on_stage)
    train_vaft(model, world, config, seed, on_stage)
    train_critic(model, world, config, seed, reward, on_stage)
    return model.eval()
