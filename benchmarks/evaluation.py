"""What a policy is worth on held-out requests, exactly where a catalogue is small enough.

The distribution over all paths is computed in full, so expected values carry no sampling noise
and methods differ by what they are, not by their luck.

Dims: E requests, N ads, P paths, K list entries, L levels, V codes.
"""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from agents.placing import beside, device_of
from agents.rollout import Reward, as_reward
from gpr_rl.decoding import beam_search
from gpr_rl.metrics import ndcg, ordered_pair_ratio
from gpr_rl.models import HHD
from gpr_rl.random import Purpose, uniform
from gpr_rl.schema import Action
from simulators.markets import truth_of
from simulators.rewards import RewardSpec
from simulators.world import World
from simulators.world.history import DAY_S
from simulators.world.tables import BID_TYPES

_CHUNK = 8
SERVED = (1, 5, 10)
"""k of served@k beside the whole beam: the best by the rankers of a policy's first k."""


@dataclass(frozen=True)
class EvaluationSet:
    """E held-out requests with everything that all methods are measured by."""

    request_id: Tensor  # int64 [E]
    eligible: Tensor  # bool [E, N]
    path_ad: Tensor  # int64 [E, P], the ad a path resolves to, -1 where illegal
    path_of_ad: Tensor  # int64 [N]
    value: Tensor  # float32 [E, N], reward under the rankers
    ecpm: Tensor  # float32 [E, N], under the rankers
    truth: Tensor | None  # float32 [E, N], reward under the hidden truth
    logging: Tensor  # float32 [E, N], probability of the policy that wrote the logs
    is_small: Tensor | None = None  # bool [E, N], ads of advertisers with a small budget
    bid_type: Tensor | None = None  # int64 [N], index in `BID_TYPES`
    user: Tensor | None = None  # int64 [E], whose requests they are

    def tensors(self) -> dict[str, Tensor]:
        """Return what `EvaluationSet.from_tensors` takes, for saving."""
        return {name: x.contiguous() for name, x in vars(self).items() if x is not None}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "EvaluationSet":
        """Rebuild from `tensors()`; a world without a truth has none."""
        return cls(**{name: tensors.get(name) for name in cls.__dataclass_fields__})  # type: ignore[arg-type]

    def tables(self) -> list[tuple[str, Tensor]]:
        """Return the reward of every ad under the rankers (`proxy`) and the truth, [E, N]."""
        truth = [] if self.truth is None else [("truth", self.truth)]
        return [("proxy", self.value), *truth]

    def proxy_best(self) -> Tensor:
        """Return the ad that the rankers like best, int64 [E]."""
        return self.value.masked_fill(~self.eligible, -torch.inf).argmax(-1)


def make_evaluation_set(
    world: World, reward: RewardSpec | Reward, num_requests: int, split: str = "test"
) -> EvaluationSet:
    """Score all ads for a fixed, keyed choice of `num_requests` requests of a split, on the CPU.

    The rankers are asked where the world is (`World.to`).

    Raises:
        RewardError: What `agents.rollout.as_reward` can't read.
    """
    reward, ranked, world = as_reward(reward), world, world.to("cpu")  # type: ignore[assignment]
    pool = world.request_ids(split)
    draw = uniform(world.info.seed, Purpose.EVALUATION, pool)
    ids = pool[draw.argsort()[:num_requests]].sort().values
    truth = truth_of(world)
    eligible = world.eligible(ids)
    tables: dict[str, list[Tensor]] = defaultdict(list)
    for part, legal in zip(ids.split(64), eligible.split(64), strict=True):
        outcome = ranked.outcome_all(part).to("cpu")
        tables["value"].append(reward(outcome)[0])
        tables["ecpm"].append(outcome.ecpm)
        tables["path_ad"].append(world.trie.restrict(legal).path_ad)
        if outcome.small_advertiser is not None:
            tables["is_small"].append(outcome.small_advertiser)
        if truth is not None:
            tables["truth"].append(reward(truth.outcome_all(part))[0])
            tables["logging"].append(truth.logging_distribution(part))
        else:  # exposures of an imported log are taken as uniform over what was promoted
            tables["logging"].append(legal / legal.sum(-1, keepdim=True))
    found = {name: torch.cat(parts) for name, parts in tables.items()}
    return EvaluationSet.from_tensors(
        {
            "request_id": ids,
            "eligible": eligible,
            "path_of_ad": _path_of_ad(world),
            "bid_type": world.bid_type,
            "user": torch.from_numpy(world.request_user[ids.numpy()]).long(),
            **found,
        }
    )


def _path_of_ad(world: World) -> Tensor:
    """Return the row of `trie.paths` of every ad, int64 [N]."""
    width = world.info.num_codes
    weight = width ** torch.arange(world.info.num_levels - 1, -1, -1)
    return torch.searchsorted((world.trie.paths * weight).sum(-1), (world.codes * weight).sum(-1))


@torch.no_grad()
def path_log_prob(model: HHD, world: World, request_id: Tensor, eligible: Tensor) -> Tensor:
    """Return log pi(path) of every path, float32 [E, P] on the CPU; -inf where illegal.

    The legal tree is walked level by level, so every prefix is decoded once, on the model's device.
    """
    world, device = beside(world, model), device_of(model)
    return torch.cat(
        [
            _tree_log_prob(model, world, ids, legal.to(device)).cpu()
            for ids, legal in zip(request_id.split(_CHUNK), eligible.split(_CHUNK), strict=True)
        ]
    )


def _tree_log_prob(model: HHD, world: World, request_id: Tensor, eligible: Tensor) -> Tensor:
    """Return `path_log_prob` of few requests, which share what is legal for any of them."""
    trie, batch = world.trie, len(request_id)
    legal = trie.restrict(eligible)
    context = model.encode(world.request(request_id))
    log_prob, _, cache = model.begin(context, valued=False)
    node, total = trie.root(batch, 1), log_prob.new_zeros(batch, 1)
    for level in range(trie.num_levels):
        mask = legal.child_mask(level, node)
        own = log_prob.masked_fill(~mask, -torch.inf).log_softmax(-1)
        parent, code = mask.any(0).nonzero().unbind(1)
        total = total[:, parent] + own[:, parent, code]  # NaN below a prefix that is illegal here
        parent, code = (x.expand(batch, -1) for x in (parent, code))
        node = trie.child(level, node.gather(1, parent), code)
        if level + 1 < trie.num_levels:
            log_prob, _, cache = model.extend(context, cache, parent, code)
    found = total.new_full((batch, trie.num_paths), -torch.inf)
    return found.scatter_(1, node.long() - 1, total.where(total.isfinite(), -torch.inf))


@dataclass(frozen=True)
class Beam:
    """A policy's own list of K ads per request, by log-probability, descending."""

    ad_id: Tensor  # int64 [E, K], -1 where there are fewer legal paths
    log_prob: Tensor  # float32 [E, K]


@torch.no_grad()
def policy_beam(
    model: HHD, world: World, request_id: Tensor, eligible: Tensor, num_candidates: int
) -> Beam:
    """Return the K most probable legal ads of each request under the policy, on the CPU."""
    ads, log_probs = [], []
    world, device = beside(world, model), device_of(model)
    for ids, legal in zip(request_id.split(32), eligible.split(32), strict=True):
        found = beam_search(
            model,
            world.request(ids),
            world.trie,
            num_candidates,
            eligible=legal.to(device),
            renormalize=True,
        )
        ads.append(found.ad_id.cpu())
        log_probs.append(found.log_prob.sum(-1).cpu())
    return Beam(torch.cat(ads), torch.cat(log_probs))


def _pick(table: Tensor, ad_id: Tensor) -> Tensor:
    """Return table[e, ad_id[e, ...]], [E] or [E, K]; ad -1 reads ad 0."""
    index = ad_id.clamp_min(0)
    return table.gather(1, index.reshape(len(table), -1)).view(ad_id.shape)


def value_metrics(
    data: EvaluationSet,
    kind: str,
    *,
    distribution: Tensor | None = None,
    ad_id: Tensor | None = None,
) -> dict[str, float]:
    """Return mean value, regret and share of the gain under rankers and truth, and their gap.

    The share comes with its standard error over requests, `..._share_KIND_se`: that of a ratio of
    two means over the same requests, those of one user taken together.

    Args:
        data: The held-out requests.
        kind: `expected`, `greedy`, `served` and the like; part of the metric's name.
        distribution: float [E, N], probability of every ad; or
        ad_id: int64 [E], the one ad that is shown.
    """
    metrics = {}
    for name, table in data.tables():
        if distribution is not None:
            value = (distribution * table).sum(-1)
        else:
            assert ad_id is not None
            value = _pick(table, ad_id)
        logging = (data.logging * table).sum(-1)
        best = table.masked_fill(~data.eligible, -torch.inf).amax(-1)
        gain = (best - logging).mean()
        share = (value - logging).mean() / gain
        residual = value - logging - share * (best - logging)
        metrics[f"{name}_{kind}"] = float(value.mean())
        metrics[f"{name}_share_{kind}"] = float(share)
        metrics[f"{name}_share_{kind}_se"] = float(_error_of_mean(residual, data.user) / gain)
        metrics[f"{name}_regret_{kind}"] = float((best - value).mean())
    if data.truth is not None:
        gap = metrics[f"proxy_share_{kind}"] - metrics[f"truth_share_{kind}"]
        metrics[f"hacking_gap_{kind}"] = gap
    return metrics


def _error_of_mean(x: Tensor, user: Tensor | None) -> Tensor:
    """Return the standard error of a mean over requests [E]; a user's requests are not independent.

    Each user's deviations are summed before they are squared (clusters); without users each request
    is one.
    """
    group = torch.arange(len(x)) if user is None else user.unique(return_inverse=True)[1]
    number = int(group.max()) + 1
    total = x.new_zeros(number).index_add_(0, group, x - x.mean())
    return total.square().sum().sqrt() / len(x) * (number / max(1, number - 1)) ** 0.5


def served_metrics(data: EvaluationSet, ad_id: Tensor) -> dict[str, float]:
    """Return the values of what is served of a list (int64 [E, K], -1 none), best first.

    `served` is the best of the list by the rankers, `served_k` the best of its first k, for k of
    `SERVED`.
    """
    value = _pick(data.value, ad_id).masked_fill(ad_id < 0, -torch.inf)
    metrics: dict[str, float] = {}
    for kind, k in [(f"served_{k}", k) for k in SERVED] + [("served", ad_id.shape[1])]:
        place = value[:, :k].argmax(-1, keepdim=True)
        metrics |= value_metrics(data, kind, ad_id=ad_id.gather(1, place)[:, 0])
    return metrics


def personal_metrics(data: EvaluationSet, distribution: Tensor) -> dict[str, float]:
    """Return how much of a policy's gain is in whom it shows an ad to, in shares of the gain.

    That is its value less that of serving everybody its own mix of impressions, restricted to the
    ads that a request may see. `distribution` is float [E, N].
    """
    mix = distribution.mean(0) * data.eligible
    mix = mix / mix.sum(-1, keepdim=True).clamp_min(1e-12)
    own = value_metrics(data, "own", distribution=distribution)
    for_all = value_metrics(data, "own", distribution=mix)
    names = [name for name, _ in data.tables()]
    return {
        f"{name}_personal_share": own[f"{name}_share_own"] - for_all[f"{name}_share_own"]
        for name in names
    }


def concentration_metrics(
    data: EvaluationSet, distribution: Tensor, first: Tensor
) -> dict[str, float]:
    """Return how widely a policy spreads its requests over ads and advertisers.

    Args:
        data: The held-out requests.
        distribution: float [E, N], probability of every ad.
        first: int64 [E], the ad that each request is served first.

    Returns:
        `effective_ads`: exp(entropy) of the impressions over ads, all requests together;
        `distinct_first_share`: distinct first ads per request; `impressions_cpm`, `_cpc` and
        `_ocpa`: their shares of the impressions; `small_advertiser_share` of the impressions,
        where the world knows budgets.
    """
    impressions = distribution.double().mean(0)
    entropy = -(impressions * impressions.clamp_min(1e-300).log()).sum()
    metrics = {
        "effective_ads": float(entropy.exp()),
        "distinct_first_share": len(first.unique()) / len(first),
    }
    if data.bid_type is not None:
        by_type = torch.zeros(len(BID_TYPES), dtype=torch.float64)
        by_type.index_add_(0, data.bid_type, impressions)
        metrics |= {
            f"impressions_{name.lower()}": float(share)
            for name, share in zip(BID_TYPES, by_type, strict=True)
        }
    if data.is_small is not None:
        metrics["small_advertiser_share"] = float((distribution * data.is_small).sum(-1).mean())
    return metrics


def list_metrics(
    data: EvaluationSet, ad_id: Tensor, score: Tensor, suffix: str
) -> dict[str, float]:
    """Return nDCG and OPR of lists of ads (int64 [E, K]) ranked by `score` [E, K], gain eCPM."""
    valid = ad_id >= 0
    gain = _pick(data.ecpm, ad_id)
    return {
        f"ndcg{suffix}": float(ndcg(score, gain, valid).nanmean()),
        f"opr{suffix}": float(ordered_pair_ratio(score, gain, valid).nanmean()),
    }


def pool_metrics(value: Tensor) -> dict[str, float]:
    """Return what a list's rewards [E, K] are on average and at most; -inf where it is shorter."""
    known = value.where(value > -torch.inf, torch.nan)
    return {
        "avg_final_value": float(known.nanmean(-1).mean()),
        "max_final_value": float(value.amax(-1).mean()),
        "pool_min": float(known.nan_to_num(torch.inf).min()),
        "pool_max": float(value.max()),
    }


def coverage(ad_id: Tensor, num_ads: int) -> float:
    """Return the share of the catalogue that is in any of the lists (int64 [E, K], -1 none)."""
    return len(ad_id[ad_id >= 0].unique()) / num_ads


def illegal_rate(data: EvaluationSet, ad_id: Tensor) -> float:
    """Return the share of decoded ads (int64 [E, K], -1 none) that the user may not see."""
    decoded = ad_id >= 0
    legal = _pick(data.eligible, ad_id) & decoded
    return float(1.0 - legal.sum() / decoded.sum().clamp_min(1))


def evaluate_model(
    model: HHD,
    world: World,
    data: EvaluationSet,
    shared: Tensor,
    warm_log_prob: Tensor | None,
    num_candidates: int,
) -> dict[str, float]:
    """Return all metrics of a policy.

    Args:
        model: The policy.
        world: Its world.
        data: Held-out requests.
        shared: int64 [E, K], the list of ads that all methods rank (the warm start's beam).
        warm_log_prob: float [E, P] of the warm start, for the KL; None for the warm start itself.
        num_candidates: K of the policy's own beam.
    """
    log_prob = path_log_prob(model, world, data.request_id, data.eligible)
    probability = log_prob.exp()
    by_ad = ad_distribution(probability, data)
    beam = policy_beam(model, world, data.request_id, data.eligible, num_candidates)
    greedy = policy_beam(model, world, data.request_id, data.eligible, 1)
    values = _pick(data.value, beam.ad_id).masked_fill(beam.ad_id < 0, -torch.inf)
    score = log_prob.gather(1, data.path_of_ad[shared.clamp_min(0)])
    metrics = {
        **value_metrics(data, "expected", distribution=by_ad),
        **value_metrics(data, "greedy", ad_id=greedy.ad_id[:, 0]),
        **served_metrics(data, beam.ad_id),
        **personal_metrics(data, by_ad),
        **concentration_metrics(data, by_ad, greedy.ad_id[:, 0]),
        **list_metrics(data, shared, score, ""),
        **list_metrics(data, beam.ad_id, beam.log_prob, "_own"),
        **pool_metrics(values),
        "coverage": coverage(beam.ad_id, world.num_ads),
        "illegal_rate": illegal_rate(data, torch.cat([beam.ad_id, greedy.ad_id], dim=1)),
        "illegal_mass": float((1.0 - by_ad.where(data.eligible, 0.0).sum(-1)).abs().max()),
        "entropy": float(-(probability * log_prob.nan_to_num(neginf=0.0)).sum(-1).mean()),
    }
    if warm_log_prob is not None:
        gap = (log_prob - warm_log_prob).nan_to_num(nan=0.0, neginf=0.0, posinf=0.0)
        metrics["kl_to_warm_start"] = float((probability * gap).sum(-1).mean())
    return metrics


def ad_distribution(probability: Tensor, data: EvaluationSet) -> Tensor:
    """Return the probability of every ad, [E, N], from that of every path, [E, P]."""
    by_ad = torch.zeros_like(data.value)
    legal = probability.where(data.path_ad >= 0, 0.0)
    return by_ad.scatter_add_(1, data.path_ad.clamp_min(0), legal)


def popularity_distribution(world: World, data: EvaluationSet) -> Tensor:
    """Return the legal ads' share of past clicks and conversions in the logged days, [E, N]."""
    logged = torch.from_numpy(world.request_time // DAY_S) < world.info.num_log_days
    success = (world.request_action >= Action.CLICK) & logged
    count = torch.bincount(world.request_ad[success], minlength=world.num_ads).float()
    weight = (count + 1e-3) * data.eligible
    return weight / weight.sum(-1, keepdim=True)
