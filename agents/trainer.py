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
from torch import Tensor
from torchrl.record.loggers import Logger

from agents.actor_critic import ActorCriticModel
from agents.candidates import keep_valid, mean_over_candidates
from agents.placing import beside
from agents.registry import Method, make_method
from agents.rollout import (
    NonFiniteError,
    Reward,
    World,
    as_reward,
    reward_unit,
    score_reference,
    timed_rollout,
)
from agents.train_config import TrainConfig
from agents.training.clock import Clock
from agents.training.policy_update import PolicyUpdate
from agents.training.schedule import make_schedule
from agents.training.staleness import fresh, staleness
from agents.training.state import TrainRun, TrainState
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
    `staleness` (updates since the policy that drew the oldest candidates),
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
    world = beside(world, model)
    run = TrainRun(world, as_reward(reward), config, seed, method)
    chosen, learning_rate = make_method(method, config, world.trie.num_levels)
    schedule = make_schedule(world, config, seed)
    model.eval()
    with _named_errors(method, 0, schedule(0)):
        scale = config.reward_scale or reward_unit(model, run, schedule(0))
    model.hte.reward_scale.fill_(scale)
    state = TrainState.start(model, learning_rate, run)
    is_first = state.shards.rank == 0
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
        if on_step is not None and is_first:
            on_step(state.step - 1, measures)
        if logger is not None and is_first:
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
    source = state.reference if method.is_offline else state.model
    shards = state.shards
    parts = [
        timed_rollout(source, run, ids, state.step, keep_graph=on_policy, clock=clock)
        for ids in shards.split(request_ids)
    ]
    if method.is_offline:
        for part in parts:
            part["policy_version"].zero_()
    for part in parts if not method.is_offline else ():
        fresh(part, state.step, config.max_staleness, strict=True)
    seen: dict[str, float] = {}
    if state.baseline is not None:
        batch = shards.join(parts)
        seen["ad_count"] = state.baseline.subtract(batch)
        shards.spread(batch, parts)
    with clock("model"):
        whole = method.uses_reference or config.kl_penalty
        few = max(1, _KL_REQUESTS // shards.num_shards)
        held = [part if whole else part[:few] for part in parts]
        settings = state.reference, config.temperature, config.precision
        held = [score_reference(part, *settings) for part in held]
    if method.advantage is not None and method.prepare is not None:
        for part in parts:
            method.prepare(part, run.world, run.seed)
    batch = shards.join(parts)
    if method.advantage is not None:
        method.advantage(batch)
        if "weight" in batch and "advantage" in batch:
            batch["advantage"] = batch["advantage"] * batch["weight"][..., None, None]
        shards.spread(batch, parts)
    seen["staleness"] = float(staleness(batch, state.step).max())
    measures = _rollout_measures(batch) | seen
    kl = [mean_over_candidates(part["reference_kl"], part["valid"]) for part in held]
    measures["kl"] = shards.mean(kl, [part["valid"].sum() for part in held]).item()
    with clock("update"):
        if method.uses_critic:
            measures |= _critic_measures(batch)
            measures["critic_loss"] = state.critic.update(parts, batch, state.step)
        if not warm_up:
            update = PolicyUpdate(state, run, method, starts_attached=on_policy)
            measures |= update(parts, batch)
    return measures | clock.measures()


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
