"""The one loop that trains a policy by reinforcement learning, whatever the method (GPR 3.3).

Per step: B requests (the same for every method), K candidates each from the current policy, scored
once by the rankers; then `num_epochs` policy updates over that batch, and, for methods with a
critic, `critic_updates` updates of the HTE on the states stored in the rollout.

Dims: B requests, K candidates, L levels, V codes per level.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.record.loggers import Logger

from agents.actor_critic import (
    ActorCriticModel,
    PolicyLogits,
    categorical_kl,
    masked_log_softmax,
)
from agents.candidates import keep_valid, mean_over_candidates
from agents.clock import Clock
from agents.critic import attached_value_loss
from agents.registry import Method, make_method
from agents.rollout import (
    NonFiniteError,
    Reward,
    World,
    as_reward,
    check_finite,
    reward_unit,
    score_reference,
    timed_rollout,
)
from agents.schedule import make_schedule
from agents.train_config import TrainConfig
from agents.train_state import TrainRun, TrainState
from gpr_rl.models import HHD
from gpr_rl.pretraining.auxiliary import has_parts, parts_losses
from gpr_rl.random import Purpose, random_bits
from simulators.rewards import RewardSpec

_KL_REQUESTS = 16  # per step, where the KL is only measured: the reference costs an HSD pass

OnStep = Callable[[int, dict[str, float]], None]


def train(
    model: ActorCriticModel,
    world: World,
    method: str,
    config: TrainConfig,
    seed: int,
    *,
    reward: RewardSpec | Reward = None,
    on_step: OnStep | None = None,
    checkpoint_path: str | Path | None = None,
    checkpoint_every: int = 25,
    resume: bool = False,
    logger: Logger | None = None,
) -> list[dict[str, float]]:
    """Train `model` in place and return one dict of measures per step.

    The model as handed in is the warm start: the reference of DPO and of every KL. The same
    arguments give the same bits, also when interrupted and resumed. No global seed is read.

    Measures: `reward` (mean, in its unit), each component before and after its weight as
    `component/NAME` and `component_weighted/NAME` (means over the candidates that it applies to;
    left out where it applies to none), `entropy` and `kl` to the warm start (nats per path, exact
    at the visited prefixes; `kl` over 16 of the requests unless the loss needs the reference),
    `entropy/LEVEL`, `ad_count` (how often the candidates' ads were drawn before, where a baseline
    per ad is taken off), `distinct_share` of the candidates, `equal_share` of the requests whose
    candidates all earn the same, `loss`, `grad_norm`, `gradient/LEVEL` (norm at the level's logits,
    before clipping), `clip_fraction` or what else the method's loss reports (means over the
    epochs), `num_epochs` run and `behavior_kl` (of the policy before the last one run from the
    candidates' distribution, nats per path), `critic_loss`,
    `explained_variance/LEVEL` and `value_error/LEVEL` (root mean square, in units of the reward
    scale; of the values the advantages used; level 1 is the coarsest; the share is left out where
    the targets are constant), `step_s` and `time/SECTION_s` (requests, model, decoding, rankers,
    update).

    `method` is one of `agents.methods.method_names`, `seed` the root of the draws of requests and
    candidates. `reward` is what is optimised (`as_reward`), Eq. 5 by default. Another one is
    divided by its std over the first batch of the warm start (one more batch of ranker evaluations,
    for any method), unless the configuration has a `reward_scale`; a constant one is left as it is.
    `on_step` is called after each step with its number (from 0) and measures; a `logger` of torchrl
    (`torchrl.record.loggers.get_logger`) gets them at every step, from 1 on. `checkpoint_path`, a
    safetensors file, is replaced every `checkpoint_every` steps and at the end; with `resume` the
    run goes on from it if it exists.

    Raises:
        ValueError: Unknown method, fewer train requests than a batch, a checkpoint that is damaged
            or was made with other settings (named).
        NonFiniteError: A reward, loss or gradient is inf or NaN; names step, method and requests.
    """
    run = TrainRun(world, as_reward(reward), config, seed, method)
    chosen, learning_rate = make_method(method, config, world.trie.num_levels)
    schedule = make_schedule(world, config, seed)
    model.eval()
    with _named_errors(method, 0, schedule(0)):
        scale = config.reward_scale or reward_unit(model, run, schedule(0))
    model.hte.reward_scale.fill_(scale)
    state = TrainState.start(model, learning_rate, run)
    if resume and checkpoint_path is not None and Path(checkpoint_path).exists():
        state.load(checkpoint_path, run)
    scaled = replace(run, config=replace(config, reward_scale=float(model.hte.reward_scale)))
    while state.step < config.num_steps:
        started = time.perf_counter()
        request_ids = schedule(state.step)
        with _named_errors(method, state.step, request_ids):
            measures = _step(state, scaled, chosen, request_ids)
        measures["step_s"] = time.perf_counter() - started
        state.history.append(measures)
        state.step += 1
        if on_step is not None:
            on_step(state.step - 1, measures)
        if logger is not None:
            logger.log_metrics(measures, step=state.step)
        last = state.step == config.num_steps
        if checkpoint_path is not None and (last or state.step % checkpoint_every == 0):
            state.save(checkpoint_path, run)
    return state.history


@contextmanager
def _named_errors(method: str, step: int, request_ids: Tensor) -> Iterator[None]:
    """Say in which run and where a number stopped being finite."""
    try:
        yield
    except NonFiniteError as error:
        raise NonFiniteError(
            f"method {method!r}, step {step}: {error}; request ids {request_ids.tolist()}"
        ) from error


def _step(
    state: TrainState, run: TrainRun, method: Method, request_ids: Tensor
) -> dict[str, float]:
    clock, config = Clock(), run.config
    warm_up = method.uses_critic and state.step < config.critic_warmup_steps
    on_policy = not (warm_up or method.is_offline)
    data = timed_rollout(
        state.reference if method.is_offline else state.model,
        run,
        request_ids,
        state.step,
        keep_graph=on_policy,
        clock=clock,
    )
    seen = {} if state.baseline is None else {"ad_count": state.baseline.subtract(data)}
    with clock("model"):
        part = data if method.uses_reference or config.kl_penalty else data[:_KL_REQUESTS]
        part = score_reference(part, state.reference, config.temperature)
    if method.advantage is not None:
        if method.prepare is not None:
            method.prepare(data, run.world, run.seed)
        method.advantage(data)
        if "weight" in data and "advantage" in data:
            data["advantage"] = data["advantage"] * data["weight"][..., None, None]
    measures = _rollout_measures(data) | seen
    measures["kl"] = mean_over_candidates(part["reference_kl"], part["valid"]).item()
    with clock("update"):
        if method.uses_critic:
            measures |= _critic_measures(data)
            measures["critic_loss"] = state.critic.update(data, state.step)
        if not warm_up:
            measures |= _update_policy(state, data, method, run, starts_attached=on_policy)
    return measures | clock.measures()


def _update_policy(
    state: TrainState, data: TensorDict, method: Method, run: TrainRun, starts_attached: bool
) -> dict[str, float]:
    """Run the epochs, the first on the rollout's own pass if it may; return the mean reports."""
    config = run.config
    policy_logits = PolicyLogits(state.model, temperature=config.temperature)
    parameters = state.model.policy_parameters()
    moves_trunk = method.uses_critic and config.critic_moves_trunk
    parts = has_parts(state.model)
    reports: list[dict[str, float]] = []
    for epoch in range(config.num_epochs):
        attached = epoch == 0 and starts_attached and not (moves_trunk or parts)
        batch = data.copy() if attached else policy_logits(data.copy())
        gradient = _watch_gradient(batch["logits"])
        log_probs = masked_log_softmax(batch["logits"], batch["legal_mask"])
        moved = _path_kl(batch, batch["log_probs"], log_probs.detach())
        behavior_kl = 0.0 if epoch == 0 and starts_attached else moved.item()
        if epoch > 0 and config.kl_stop is not None and behavior_kl > config.kl_stop:
            break
        out = method.loss(batch)
        if config.kl_penalty and not method.uses_reference:
            kl = _path_kl(batch, log_probs, batch["reference_log_probs"])
            out["loss_kl"] = config.kl_penalty * kl
        if moves_trunk:
            out["loss_critic"] = attached_value_loss(state.model, batch)
        if parts:
            out["loss_parts"] = _parts_loss(state, batch, run, epoch)
        losses = [value for key, value in out.items() if key.startswith("loss_")]
        loss = torch.stack(losses).sum()
        check_finite("the policy loss", loss)
        state.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        check_finite("the policy gradient's norm", norm)
        state.optimizer.step()
        report = {k: v.item() for k, v in out.items() if v.numel() == 1 and k != "entropy"}
        reports.append(report | {"loss": loss.item(), "grad_norm": norm.item()} | gradient)
    means = {key: sum(r[key] for r in reports) / len(reports) for key in reports[0]}
    return means | {"num_epochs": float(len(reports)), "behavior_kl": behavior_kl}


def _watch_gradient(logits: Tensor) -> dict[str, float]:
    """Return what will hold, after the backward pass, its norm at the logits of every level."""
    found: dict[str, float] = {}

    def keep(gradient: Tensor) -> None:
        norms = gradient.square().sum((0, 1, 3)).sqrt()
        found.update({f"gradient/{level}": x for level, x in enumerate(norms.tolist(), 1)})

    logits.register_hook(keep)
    return found


def _parts_loss(state: TrainState, batch: TensorDict, run: TrainRun, epoch: int) -> Tensor:
    """Return what the model's parts learn of every request's first candidate (`auxiliary_parts`).

    That is a draw of the policy, so the parts follow what it has become, and no reward enters.
    """
    bits = random_bits(
        run.seed, Purpose.REFINING_NOISE, torch.tensor(state.step), torch.tensor(epoch)
    )
    generator = torch.Generator().manual_seed(int(bits))
    assert isinstance(state.model, HHD)
    first = batch["codes"][:, :1], batch["valid"][:, :1]
    losses = parts_losses(state.model, batch["context"], *first, generator)
    return torch.as_tensor(run.config.auxiliary.total(losses))


def _path_kl(data: TensorDict, log_probs: Tensor, other: Tensor) -> Tensor:
    """Return KL(log_probs || other) per path at the visited prefixes, nats."""
    kl = categorical_kl(log_probs, other, data["legal_mask"])
    return mean_over_candidates(kl, data["valid"])


def _rollout_measures(data: TensorDict) -> dict[str, float]:
    valid = data["valid"]
    count = valid.sum().clamp_min(1)
    ordered = torch.where(valid, data["ad_id"], -1).sort(-1).values
    opens = ordered[:, 1:] != ordered[:, :-1]
    distinct = opens.sum() + (ordered[:, 0] >= 0).sum()  # every request's first ad counts
    reward = data["terminal_reward"]
    spread = torch.where(valid, reward, -torch.inf).amax(1) > torch.where(
        valid, reward, torch.inf
    ).amin(1)
    by_level = keep_valid(data["entropy"], valid).sum((0, 1)) / count
    measures = {
        "reward": (data["reward"].sum() / count).item(),
        "entropy": by_level.sum().item(),
        **{f"entropy/{level}": x for level, x in enumerate(by_level.tolist(), 1)},
        "distinct_share": (distinct / count).item(),
        "equal_share": 1.0 - spread.float().mean().item(),
    }
    for key in ("component", "component_weighted"):
        for name, component in data[key].items():
            applies = valid & ~component.isnan()
            if applies.any():
                measures[f"{key}/{name}"] = component[applies].mean().item()
    return measures


def _critic_measures(data: TensorDict) -> dict[str, float]:
    """Return 1 - Var(target - V) / Var(target) and the RMSE per level, over valid candidates."""
    valid = data["valid"]
    target = data["value_target"].squeeze(-1)[valid]
    error = target - data["state_value"].squeeze(-1)[valid]
    total = target.var(0, correction=0)
    share = 1.0 - error.var(0, correction=0) / total
    rmse = error.square().mean(0).sqrt()
    explained = {
        f"explained_variance/{i}": x for i, x in enumerate(share.tolist(), 1) if total[i - 1] > 0
    }
    return explained | {f"value_error/{i}": x for i, x in enumerate(rmse.tolist(), 1)}
