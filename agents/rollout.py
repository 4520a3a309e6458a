"""Rollouts: candidates of the current policy, scored by the world's frozen rankers (GPR 3.3).

Dims: B requests, K candidates, L levels, V codes per level. A rollout is a TensorDict of batch [B]:

====================  ==================  =========================================================
key                   shape               meaning
====================  ==================  =========================================================
request, context      batch [B]           the request, and its encoding (detached)
popularity            [B, L, V]           P_l(t) of Eq. 6
policy_version        [B]                 the training step whose policy drew the candidates
codes, ad_id, valid   [B, K, L], [B, K]   the paths, the ads they resolve to, and which exist
legal_mask            [B, K, L, V]        legal codes along each path; all True where not valid
logits                [B, K, L, V]        of the policy, over all codes, divided by temperature
log_probs             [B, K, L, V]        of the distribution that drew the codes; -inf if illegal
action_log_prob       [B, K, L]           the same at the drawn codes
entropy               [B, K, L]           of that distribution at every visited prefix, nats
state_value           [B, K, L, 1]        V(s, z_{1:l-1}) in units of the reward scale
weight                [B, K]              importance weights with mean 1 (`gumbel` only)
reward                [B, K]              total reward, in the reward's own unit
terminal_reward       [B, K]              reward / reward scale: what every objective reads
component             nested [B, K]       the unweighted reward components by name
component_weighted    nested [B, K]       what each adds to the reward: weight times component
next                  [B, K, L, 1]        reward, done, terminated, state_value as torchrl's GAE
====================  ==================  =========================================================

Candidates that are not valid hold zeros.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from tensordict import TensorDict
from torch import Tensor

from agents.actor_critic import (
    PRECISIONS,
    ActorCriticModel,
    ReferenceLogProbs,
    categorical_entropy,
    categorical_kl,
    chosen_log_prob,
    lowered,
    masked_log_softmax,
    restored,
)
from agents.candidates import (
    check_above,
    check_choice,
    keep_valid,
    next_values,
    path_transitions,
)
from agents.training.clock import Clock
from gpr_rl.decoding import CodeTrie, beam_search, gumbel_paths, sample_paths, tree_search
from gpr_rl.schema import Candidates, Request
from simulators.rewards import Outcome, RewardMix, RewardSpec

BEHAVIORS = ("sample", "gumbel", "beam", "tree")

Reward = Callable[[Outcome], tuple[Tensor, dict[str, Tensor]]]
"""Total reward [B, K] and its components by name; `simulators.rewards.RewardMix` is one, and the
only one whose components have weights."""


def as_reward(reward: RewardSpec | Reward) -> Reward:
    """Return a reward that gives total and components, of whatever a user passed.

    That is what `RewardMix.of` takes, or a function that returns total and components itself.

    Raises:
        RewardError: Anything else.
    """
    mix = RewardMix.of(reward)  # type: ignore[arg-type]
    if isinstance(reward, RewardMix) or not callable(reward):
        return mix
    (name,) = mix.functions

    def called(outcome: Outcome) -> tuple[Tensor, dict[str, Tensor]]:
        found = reward(outcome)
        if isinstance(found, tuple):
            return found
        return RewardMix({name: lambda _: found}, {name: 1.0})(outcome)

    return called


@runtime_checkable
class World(Protocol):
    """What the agents need of a world."""

    reward_scale: float

    @property
    def trie(self) -> CodeTrie:
        """The ads' paths."""
        ...

    def request(self, request_id: Int[Tensor, " B"]) -> Request:
        """Return B requests."""

    def eligible(self, request_id: Int[Tensor, " B"]) -> Bool[Tensor, "B N"]:
        """Return the ads that each request's user may see."""

    def outcome(self, request_id: Int[Tensor, " B"], ad_id: Int[Tensor, "B K"]) -> Outcome:
        """Return what the frozen rankers say."""

    def request_ids(self, split: str) -> Int[Tensor, " R"]:
        """Return the requests of a split."""


class NonFiniteError(RuntimeError):
    """A reward or a loss is inf or NaN."""


def check_finite(name: str, value: Tensor) -> None:
    """Raise NonFiniteError unless a scalar is finite."""
    if not torch.isfinite(value):
        raise NonFiniteError(f"{name} must be finite, got {value.item()}")


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How candidates are drawn."""

    num_candidates: int = 16
    """K per request. GPR 3.3 has 40; 16 with more requests learns better at equal rankings."""
    behavior: str = "sample"
    """`sample` (i.i.d. from the policy), `gumbel` (without replacement; candidates get importance
    weights), `beam` (the paper's) or `tree` (V-STAR's search); the last two are no samples."""
    tree_budget: int = 96
    """Prefixes that behaviour `tree` asks the policy about, per request. Not given in the paper."""
    temperature: float = 1.0
    """Divides the logits, in sampling and in the ratios. Not given in the paper."""
    precision: str = "float32"
    """What the model multiplies in: `float32`, or `bf16`. Advantages, losses and the optimizer stay
    in float32."""
    reward_scale: float | None = None
    """Divides the reward, in its unit. None: the world's std of Eq. 5 over logged candidates (in
    training only if Eq. 5 is the reward; see `agents.trainer.train`)."""

    def __post_init__(self) -> None:
        if self.num_candidates < 2:
            raise ValueError(
                f"num_candidates must be at least 2 for a z-score, got {self.num_candidates}"
            )
        check_choice("behavior", self.behavior, BEHAVIORS)
        check_choice("precision", self.precision, PRECISIONS)
        check_above("temperature", self.temperature)
        if self.behavior in ("beam", "tree") and self.temperature != 1.0:
            raise ValueError(
                f"a {self.behavior} has no temperature: it must be 1, got {self.temperature}"
            )
        if self.behavior == "tree" and self.tree_budget < self.num_candidates:
            raise ValueError(
                f"tree_budget must be at least num_candidates = {self.num_candidates}, "
                f"got {self.tree_budget}"
            )
        if self.reward_scale is not None:
            check_above("reward_scale", self.reward_scale)


@dataclass(frozen=True)
class RolloutSource:
    """What a run's rollouts have in common: only the policy, the requests and the step change."""

    world: World
    reward: Reward
    config: RolloutConfig
    seed: int
    """Root of the draws."""


class _Encoded:
    """A policy whose context is at hand, so that decoding does not run the HSD again."""

    def __init__(self, model: ActorCriticModel, context: Any) -> None:
        self._model = model
        self._context = context

    def encode(self, request: Request) -> Any:
        return self._context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def rollout(
    model: ActorCriticModel,
    world: World,
    request_ids: Int[Tensor, " B"],
    reward: RewardSpec | Reward,
    config: RolloutConfig,
    seed: int,
    step: int,
    *,
    keep_graph: bool = False,
) -> TensorDict:
    """Return K scored candidates for each of B requests (keys: see the module's docstring).

    The HSD runs once per request, the rankers once per candidate set. The same seed, training step
    and request give the same draws, whatever else is in the batch. With `keep_graph` the `logits`
    stay attached to the policy's parameters, so that the first update needs no second pass; all
    else is detached either way.

    Raises:
        NonFiniteError: A reward is inf or NaN; the message names the request and the ad.
        RewardError: A reward that `as_reward` can't read.
    """
    source = RolloutSource(world, as_reward(reward), config, seed)
    return timed_rollout(model, source, request_ids, step, keep_graph=keep_graph)


def timed_rollout(
    model: ActorCriticModel,
    source: RolloutSource,
    request_ids: Int[Tensor, " B"],
    step: int,
    *,
    keep_graph: bool = False,
    clock: Clock | None = None,
) -> TensorDict:
    """Return what `rollout` does; `clock` counts `requests`, `model`, `decoding` and `rankers`."""
    world, config, clock = source.world, source.config, clock or Clock()
    with clock("requests"):
        request = world.request(request_ids)
        eligible = world.eligible(request_ids)
    precision, device = config.precision, request_ids.device
    with torch.set_grad_enabled(keep_graph), clock("model"):
        with lowered(precision, device):
            context = model.encode(request)
        context = restored(context, precision)
    with clock("decoding"), lowered(precision, device):
        candidates = _draw(_Encoded(model, context), request, eligible, source, step)
        valid = candidates.valid
        codes = torch.where(valid.unsqueeze(-1), candidates.codes, 0)
        legal_mask = world.trie.restrict(eligible).path_masks(codes) | ~valid[..., None, None]
    with torch.set_grad_enabled(keep_graph), clock("model"):
        with lowered(precision, device):
            logits = model.logits(context, codes)
        logits = restored(logits, precision) / config.temperature
    log_probs = masked_log_softmax(logits.detach(), legal_mask)
    value = keep_valid(restored(candidates.value, precision), valid)
    data = TensorDict(
        {
            "request": request,
            "context": context.detach(),
            "popularity": request.popularity.to(value.dtype),
            "policy_version": torch.full_like(request_ids, step),
            "codes": codes,
            "ad_id": candidates.ad_id,
            "valid": valid,
            "legal_mask": legal_mask,
            "logits": logits,
            "log_probs": log_probs,
            "action_log_prob": keep_valid(chosen_log_prob(log_probs, codes), valid),
            "entropy": keep_valid(categorical_entropy(log_probs, legal_mask), valid),
            "state_value": value.unsqueeze(-1),
        },
        batch_size=request_ids.shape,
    )
    if candidates.log_weight is not None:
        weight = torch.where(valid, candidates.log_weight, -torch.inf).softmax(-1)
        data["weight"] = weight.nan_to_num(0.0) * valid.sum(-1, keepdim=True)
    with clock("rankers"):
        _score(data, source, request_ids, candidates)
    return data


@torch.no_grad()
def _draw(
    policy: _Encoded, request: Request, eligible: Tensor, source: RolloutSource, step: int
) -> Candidates:
    trie, config = source.world.trie, source.config
    k = config.num_candidates
    if config.behavior == "beam":
        return beam_search(policy, request, trie, k, eligible, renormalize=True)
    if config.behavior == "tree":
        budget = config.tree_budget
        return tree_search(policy, request, trie, k, budget, source.seed, step, eligible)
    draw = gumbel_paths if config.behavior == "gumbel" else sample_paths
    return draw(policy, request, trie, k, source.seed, step, eligible, config.temperature)


@torch.no_grad()
def score_reference(
    data: TensorDict,
    reference: ActorCriticModel,
    temperature: float = 1.0,
    precision: str = "float32",
) -> TensorDict:
    """Write what a frozen policy says of a rollout's paths; return the rollout.

    Adds `reference_log_probs` [B, K, L, V] and `reference_kl` [B, K, L], the exact
    KL(policy || reference) at every visited prefix, nats, 0 where not valid.
    """
    ReferenceLogProbs(reference, temperature=temperature, precision=precision)(data)
    kl = categorical_kl(data["log_probs"], data["reference_log_probs"], data["legal_mask"])
    return data.set("reference_kl", keep_valid(kl, data["valid"]))


def reward_unit(
    model: ActorCriticModel, source: RolloutSource, request_ids: Int[Tensor, " B"]
) -> float:
    """Return what the reward is divided by when nothing else is said.

    For Eq. 5 alone it is the world's standard deviation over logged candidates; for any other
    reward it is measured over candidates of the given requests (one batch of evaluations).
    """
    if source.reward == RewardMix.from_specs([]):
        return source.world.reward_scale
    unscaled = replace(source, config=replace(source.config, reward_scale=1.0))
    data = timed_rollout(model, unscaled, request_ids, 0)
    spread = data["reward"][data["valid"]].std(correction=0).item()
    return spread if spread > 0.0 else 1.0


@torch.no_grad()
def _score(
    data: TensorDict, source: RolloutSource, request_ids: Tensor, candidates: Candidates
) -> None:
    """Write the reward, its components, and the transition torchrl's GAE reads."""
    world, reward = source.world, source.reward
    valid = candidates.valid
    total, components = reward(world.outcome(request_ids, candidates.ad_id))
    bad = valid & ~total.isfinite()
    if bad.any():
        row, column = bad.nonzero()[0].tolist()
        ad_id = candidates.ad_id[row, column].item()
        name = f"the reward of ad {ad_id} for request {request_ids[row].item()}"
        check_finite(name, total[row, column])
    value = data["state_value"]
    total = keep_valid(total.to(value.dtype), valid)
    data["reward"] = total
    data["terminal_reward"] = total / (source.config.reward_scale or world.reward_scale)
    weighted = reward.weighted(components) if isinstance(reward, RewardMix) else components
    for key, parts in (("component", components), ("component_weighted", weighted)):
        data[key] = TensorDict(
            {name: keep_valid(x.to(value.dtype), valid) for name, x in parts.items()},
            batch_size=total.shape[:1],
        )
    data["next"] = path_transitions(data["terminal_reward"], value.shape[2])
    data["next", "state_value"] = next_values(value)
