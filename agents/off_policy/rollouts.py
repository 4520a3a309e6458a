"""Making logs with propensities: of a world's traffic, of a policy, of a table of probabilities.

Clicks and conversions come from a truth that the caller hands over (evaluation code may, training
code has none); without one the reward is what the frozen rankers expect.

Dims: n rows, B requests, K candidates, N ads.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from agents.actor_critic import ActorCriticModel, chosen_log_prob, masked_log_softmax
from agents.off_policy.estimators import PropensityError, refuse
from agents.off_policy.logged import UNKNOWN, LogError, LoggedFeedback
from agents.rollout import Reward, as_reward
from gpr_rl.decoding import sample_paths
from gpr_rl.random import Purpose, uniform
from gpr_rl.schema import Action
from simulators.rewards import Outcome, RewardSpec
from simulators.world import World

_CHUNK = 256


@runtime_checkable
class Truth(Protocol):
    """What realised clicks are drawn from: `simulators.synthetic.evaluator.TruthEvaluator`."""

    def outcome(self, request_id: Int[Tensor, " B"], ad_id: Int[Tensor, "B K"]) -> Outcome:
        """Return the true outcome of candidates."""


@dataclass(frozen=True)
class Feedback:
    """What comes of the ads that a log shows.

    Raises:
        RewardError: A reward that `agents.rollout.as_reward` can't read.
    """

    reward: RewardSpec | Reward = "ecpm"
    """Of an outcome, see `as_reward`; with realised clicks its probabilities are 0 or 1."""
    truth: Truth | None = None
    """Clicks and conversions are drawn from it, keyed by (seed, request, draw, candidate); None:
    the reward is the expected one under the frozen rankers, and nothing is drawn."""

    def __post_init__(self) -> None:
        as_reward(self.reward)


EXPECTED_ECPM = Feedback()


def log_of_world(
    world: World, request_id: Int[Tensor, " B"], reward: RewardSpec | Reward = "ecpm"
) -> LoggedFeedback:
    """Return what the production system showed in requests `request_id`, and what came of it.

    The reward is that of the realised outcome; by default revenue, the charge in eCPM units (CPM:
    the bid; CPC: 1000 bid click; OCPA: 1000 bid conversion).

    Raises:
        LogError: The world has no propensities (worlds from real logs); names the first request.
        RewardError: See `Feedback`.
    """
    reward = as_reward(reward)
    events = world.events.loc[world.events["kind"] == 1]
    ids = request_id.numpy()
    propensity = torch.from_numpy(events["propensity"].to_numpy(dtype=np.float64)[ids])
    if propensity.isnan().any():
        raise LogError(
            f"world {world.info.name!r} has no propensity for request "
            f"{request_id[propensity.isnan()][0].item()}: nobody knows how its ads were chosen"
        )
    action = world.request_action[request_id]
    happened = (action >= Action.CLICK).long(), (action == Action.CONVERSION).long()
    position = torch.from_numpy(events["position"].to_numpy(dtype=np.int64)[ids])
    shown = world.request_ad[request_id]
    return _make_log(world, request_id, shown, propensity, reward, happened, position)


def log_of_policy(
    policy: Any,
    world: World,
    request_id: Int[Tensor, " B"],
    *,
    seed: int,
    draw: int = 0,
    num_candidates: int = 1,
    temperature: float = 1.0,
    feedback: Feedback = EXPECTED_ECPM,
) -> LoggedFeedback:
    """Return K independent draws of a policy per request, each a row and a slate of its own.

    An ad's propensity is the probability of its path: a path shows one ad, the best legal one that
    has it. Requests without a legal ad have no row.

    `seed` is the root of the draws of paths, clicks and conversions, `draw` tells which draw it is
    for these requests. `policy` is one of `gpr_rl.decoding.policy`, K is `num_candidates`.
    """
    request, legal = world.request(request_id), world.eligible(request_id)
    found = sample_paths(
        policy, request, world.trie, num_candidates, seed, draw, legal, temperature
    )
    rows = request_id[:, None].expand_as(found.ad_id)[found.valid]
    candidate = torch.arange(num_candidates).expand_as(found.ad_id)[found.valid]
    propensity = found.log_prob.double().sum(-1).exp()[found.valid].clamp_max(1.0)
    ad_id = found.ad_id[found.valid]
    happened = _happened(feedback.truth, rows, ad_id, seed, torch.tensor(draw), candidate)
    return _make_log(world, rows, ad_id, propensity, feedback.reward, happened)


def log_of_distribution(
    world: World,
    request_id: Int[Tensor, " B"],
    probability: Float[Tensor, "B N"],
    *,
    seed: int,
    draw: int = 0,
    feedback: Feedback = EXPECTED_ECPM,
) -> LoggedFeedback:
    """Return one row per request, its ad drawn from a table of probabilities.

    The other arguments are those of `log_of_policy`.

    Raises:
        PropensityError: A row that does not sum to one.
    """
    noise = uniform(seed, Purpose.LOGGED_AD, request_id, torch.tensor(draw))
    ad_id, propensity = draw_ad(probability, noise)
    first = torch.zeros_like(ad_id)
    happened = _happened(feedback.truth, request_id, ad_id, seed, torch.tensor(draw), first)
    return _make_log(world, request_id, ad_id, propensity, feedback.reward, happened)


@torch.no_grad()
def policy_probability(
    policy: ActorCriticModel,
    world: World,
    request_id: Int[Tensor, " n"],
    ad_id: Int[Tensor, " n"],
    temperature: float = 1.0,
) -> Float[Tensor, " n"]:
    """Return the probability with which a policy would show logged ads: the estimators' `target`.

    It is that of the ad's path among legal codes, and 0 for an ad that is illegal or whose path
    shows another ad. Float64. `temperature` divides the logits, as in sampling.
    """
    parts = []
    for ids, ads in zip(request_id.split(_CHUNK), ad_id.split(_CHUNK), strict=True):
        codes = world.codes[ads][:, None]
        legal = world.trie.restrict(world.eligible(ids))
        shown = legal.resolve(codes)[:, 0] == ads
        mask = legal.path_masks(codes) | ~shown[:, None, None, None]
        logits = policy.logits(policy.encode(world.request(ids)), codes) / temperature
        log_prob = masked_log_softmax(logits.double(), mask)
        path = chosen_log_prob(log_prob, codes)[:, 0].sum(-1).exp()
        parts.append(path.where(shown, 0.0))
    return torch.cat(parts)


def draw_ad(
    probability: Float[Tensor, "B N"], noise: Float[Tensor, " B"]
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """Return an ad per row by inverse CDF on `noise` in (0, 1), and its probability in float64.

    Raises:
        PropensityError: A row has a negative entry or does not sum to one (within 1e-4).
    """
    probability = probability.double()
    total = probability.sum(-1)
    bad = ((total - 1).abs() > 1e-4) | (probability < 0).any(-1)
    refuse(bad, total, "probabilities", "be >= 0 and sum to 1", PropensityError)
    probability = probability / total[:, None]
    cumulative = probability.cumsum(-1)
    threshold = noise.double() * cumulative[:, -1]
    below = threshold.minimum(cumulative[:, -1].nextafter(threshold.new_zeros(())))
    ad_id = torch.searchsorted(cumulative, below[:, None], right=True)
    return ad_id[:, 0], probability.gather(1, ad_id)[:, 0]


def _happened(
    truth: Truth | None, request_id: Tensor, ad_id: Tensor, seed: int, *keys: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Return clicks and conversions drawn from a truth, int64 [n] each; None without one."""
    if truth is None:
        return None
    outcome = truth.outcome(request_id, ad_id[:, None])[:, 0]
    click = uniform(seed, Purpose.LOGGED_CLICK, request_id, *keys) < outcome.pctr
    converted = uniform(seed, Purpose.LOGGED_CONVERSION, request_id, *keys) < outcome.pcvr
    return click.long(), (click & converted).long()


def _make_log(
    world: World,
    request_id: Tensor,
    ad_id: Tensor,
    propensity: Tensor,
    reward: RewardSpec | Reward,
    happened: tuple[Tensor, Tensor] | None,
    position: Tensor | None = None,
) -> LoggedFeedback:
    """Return rows that are a slate each; unless something happened the rankers' reward counts."""
    if happened is None:
        outcome = world.outcome(request_id, ad_id[:, None])
        click = conversion = torch.full_like(ad_id, UNKNOWN)
    else:
        click, conversion = happened
        realised = click.float()[:, None], conversion.float()[:, None]
        outcome = world.make_outcome(request_id, ad_id[:, None], *realised)
    total, _ = as_reward(reward)(outcome)
    ids = request_id.numpy()
    return LoggedFeedback(
        request_id=request_id,
        user_id=torch.from_numpy(world.request_user[ids]),
        timestamp=torch.from_numpy(world.request_time[ids]),
        ad_id=ad_id,
        codes=world.codes[ad_id],
        position=torch.zeros_like(ad_id) if position is None else position,
        propensity=propensity.double(),
        reward=total[:, 0].double(),
        click=click,
        conversion=conversion,
        slate_id=torch.arange(len(ad_id)),
    )
