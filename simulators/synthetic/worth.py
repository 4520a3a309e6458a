"""What a world pays for: lists that know little of the user, against the best ad of each request.

A comparison of policies means something only where it matters whom an ad is shown to. Gains are
(value - logging) / (best - logging): 0 is what production shows, 1 the best ad of every request.

Dims: B requests, R train requests, T test requests, N ads, G groups of requests, U users.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.cluster import KMeans
from torch import Tensor

from gpr_rl.schema import Action
from simulators.rewards import Outcome, final_value
from simulators.synthetic.evaluator import TruthEvaluator
from simulators.world import World
from simulators.world.eligibility import Targeting
from simulators.world.tables import BID_TYPES

WIDTHS = (1, 5, 40)
"""k of served@k: of the first k ads of a list, the one that the rankers value most is served."""
MOST_CONSTANT, LEAST_TRUTH = 0.2, 0.5
NUM_CLUSTERS = 32
FAVOURITE = "favourite"
_PRIOR = 20.0
"""Requests that everybody's mean counts for in a group's mean."""
_PAIRS = 32_768
"""(request, ad) pairs scored at a time: as many as the cache holds."""


class NotPersonalError(ValueError):
    """A world in which it does not matter enough whom an ad is shown to; `worth` is its worth."""

    def __init__(self, message: str, worth: dict[str, Any]) -> None:
        super().__init__(message)
        self.worth = worth


Scorer = Callable[[Int[Tensor, " B"]], Float[Tensor, "B N"]]
"""Gives each ad's place in the lists of requests: the higher, the earlier."""


def measure_worth(world: World, *, num_train: int = 1_200, num_test: int = 600) -> dict[str, Any]:
    """Return what lists, production, the rankers and the truth are worth to each other.

    Returns:
        `gain`: by list (`constant`, `signature`, `cluster`, `popularity`, `logging`, `favourite`)
        and k, the gain of what is served, `rankers@k` and `truth@k`. A list is one order of ads
        for everybody, for users who may see the same ads, or for users of a kind; `logging` is
        what production would rank first, `favourite` the rankers' own order. Further `production`
        and `best`, their values under the truth; `best_ads` (ads in effect, exp of the entropy, of
        the best by the rankers); `personal_share`; and `impressions`, each bid type's share in the
        log.
    """
    truth = TruthEvaluator(world)
    train, test = spaced(world, "train", num_train), spaced(world, "test", num_test)
    popularity = torch.bincount(
        world.request_ad[world.request_ids("train")], minlength=world.num_ads
    )
    scorers: dict[str, Scorer] = {
        **list_scorers(world, train),
        "popularity": lambda ids: popularity.float().expand(len(ids), -1),
        "logging": truth.logging_distribution,
    }
    return _measured(world, truth, test, scorers) | {"impressions": _impressions(world)}


def grade_regime(world: World, num_requests: int = 300) -> dict[str, float | str]:
    """Say whether optimising the rankers helps under the truth; see `regime_of`."""
    test = spaced(world, "test", num_requests)
    return regime_of(_measured(world, TruthEvaluator(world), test, {}))


def regime_of(worth: dict[str, Any]) -> dict[str, float | str]:
    """Return what `measure_worth` says of the rankers' favourite.

    Returns:
        Mean true final value of what production shows (`logging`), of the rankers' favourite
        (`proxy_argmax`) and of the truly best ad; `share`, the favourite's gain; and `regime`:
        `good` when it beats production, else `hacking`.
    """
    logging, best = worth["production"], worth["best"]
    share = worth["gain"][FAVOURITE]["truth@1"]
    return {
        "logging": logging,
        "proxy_argmax": logging + share * (best - logging),
        "best": best,
        "share": share,
        "regime": "good" if share > 0.0 or best <= logging else "hacking",
    }


def check_personal(worth: dict[str, Any]) -> None:
    """Refuse a world that pays for a list of ads for everybody, or misleads who learns from it.

    Raises:
        NotPersonalError: The constant list earns more than `MOST_CONSTANT` of the gain under the
            rankers, or the rankers' favourite less than `LEAST_TRUTH` of it under the truth.
    """
    constant = worth["gain"]["constant"]["rankers@1"]
    favourite = worth["gain"][FAVOURITE]["truth@1"]
    if constant > MOST_CONSTANT:
        raise NotPersonalError(
            "one list of ads for everybody must earn at most "
            f"{MOST_CONSTANT:g} of the gain under the rankers, got {constant:.2f}",
            worth,
        )
    if favourite < LEAST_TRUTH:
        raise NotPersonalError(
            f"the rankers' favourite must earn at least {LEAST_TRUTH:g} of the gain under the "
            f"truth, got {favourite:.2f}",
            worth,
        )


def spaced(world: World, split: str, number: int) -> Int[Tensor, " R"]:
    """Return up to `number` requests of a split, evenly spaced in time."""
    ids = world.request_ids(split)
    return ids[torch.linspace(0, len(ids) - 1, min(number, len(ids))).long()]


def _chunks(world: World, request_id: Int[Tensor, " R"]) -> tuple[Tensor, ...]:
    return request_id.split(max(1, _PAIRS // world.num_ads))


def list_scorers(
    world: World,
    request_id: Int[Tensor, " R"],
    reward: Callable[[Outcome], Float[Tensor, "B N"]] = final_value,
) -> dict[str, Scorer]:
    """Return lists by each ad's mean reward over the requests of a group that may see it.

    The groups: everybody (`constant`), users whom the same ads admit (`signature`), and users of a
    kind (`cluster`); a group's mean is drawn towards everybody's.
    """
    parts = [(reward(world.outcome_all(p)), world.eligible(p)) for p in _chunks(world, request_id)]
    legal = torch.cat([may for _, may in parts]).float()
    value = torch.cat([value for value, _ in parts]) * legal
    mean = value.sum(0) / legal.sum(0).clamp_min(1)
    scorers: dict[str, Scorer] = {"constant": lambda ids: mean.expand(len(ids), -1)}
    for name, group in (("signature", _signatures(world)), ("cluster", _clusters(world))):
        of_request = group[world.request_user[request_id.numpy()]]
        member = torch.nn.functional.one_hot(of_request, int(group.max()) + 1).T.float()
        table = (member @ value + _PRIOR * mean) / (member @ legal + _PRIOR)
        scorers[name] = partial(_of_group, world, group, table)
    return scorers


def _of_group(
    world: World, group: Int[Tensor, " U"], table: Float[Tensor, "G N"], ids: Int[Tensor, " B"]
) -> Float[Tensor, "B N"]:
    return table[group[world.request_user[ids.numpy()]]]


def _signatures(world: World) -> Int[Tensor, " U"]:
    """Return which users the same ads admit, on whatever day; all where ads target nobody."""
    number = torch.zeros(len(world.users), dtype=torch.int64)
    if not isinstance(world.legality, Targeting):
        return number
    columns = {name: world.user_column(name) for name in ("age", "gender", "region", "device")}
    admits = torch.zeros(len(number), world.num_ads, dtype=torch.bool)
    for day in range(world.info.num_days):
        admits |= world.legality.eligible(number + day, **columns)
    packed = np.packbits(admits.numpy(), axis=1)
    return torch.from_numpy(np.unique(packed, axis=0, return_inverse=True)[1].reshape(-1))


def _clusters(world: World) -> Int[Tensor, " U"]:
    """Return kinds of users: k-means of the mean content of what they viewed and clicked."""
    events = world.events
    liked = events[(events["kind"] == 0) | (events["action"] >= int(Action.CLICK))]
    liked = liked[liked["timestamp"] < world.info.num_log_days * 86_400]
    item = liked["item_id"] + np.where(liked["kind"] == 0, world.num_ads, 0)
    user = torch.from_numpy(liked["user_id"].to_numpy(np.int64, copy=True))
    total = torch.zeros(len(world.users), world.item_embedding.shape[1])
    total.index_add_(0, user, world.item_embedding[torch.tensor(item.to_numpy())])
    content = torch.nn.functional.normalize(total, dim=-1).numpy().round(4)
    number = min(NUM_CLUSTERS, len(np.unique(content, axis=0)))
    found = KMeans(number, n_init=1, random_state=world.info.seed).fit_predict(content)
    return torch.from_numpy(found.astype(np.int64))


def _measured(
    world: World, truth: TruthEvaluator, test: Int[Tensor, " T"], scorers: dict[str, Scorer]
) -> dict[str, Any]:
    total: dict[tuple[str, str, int], Tensor] = defaultdict(lambda: torch.zeros(()).double())
    best_ad, log_value, may = [], [], []
    for part in _chunks(world, test):
        legal = world.eligible(part)
        proxy = final_value(world.outcome_all(part))
        value = {"rankers": proxy, "truth": final_value(truth.outcome_all(part))}
        legal_proxy = proxy.masked_fill(~legal, -torch.inf)
        logging = truth.logging_distribution(part)
        for side, v in value.items():
            best = v.masked_fill(~legal, -torch.inf).amax(-1)
            total["best", side, 0] += best.double().sum()
            total["production", side, 0] += (logging * v).double().sum()
        score = {name: scorer(part) for name, scorer in scorers.items()} | {FAVOURITE: proxy}
        for name, scores in score.items():
            widest = min(WIDTHS[-1], world.num_ads)
            first = scores.masked_fill(~legal, -torch.inf).topk(widest).indices
            for k in WIDTHS:
                place = legal_proxy.gather(1, first[:, :k]).argmax(-1, keepdim=True)
                served = first.gather(1, place)
                for side, v in value.items():
                    total[name, side, k] += v.gather(1, served).double().sum()
        best_ad.append(legal_proxy.argmax(-1))
        log_value.append(proxy.clamp_min(1e-9).log())
        may.append(legal)
    mean = {key: float(x) / len(test) for key, x in total.items()}

    def gain(name: str, side: str, k: int) -> float:
        low, high = mean["production", side, 0], mean["best", side, 0]
        return (mean[name, side, k] - low) / (high - low) if high > low else 0.0

    impressions = torch.bincount(torch.cat(best_ad), minlength=world.num_ads).double()
    return {
        "gain": {
            name: {f"{side}@{k}": gain(name, side, k) for k in WIDTHS for side in value}
            for name in (*scorers, FAVOURITE)
        },
        "production": mean["production", "truth", 0],
        "best": mean["best", "truth", 0],
        "best_ads": float(torch.special.entr(impressions / impressions.sum()).sum().exp()),
        "personal_share": personal_share(torch.cat(log_value), torch.cat(may)),
    }


def personal_share(log_value: Float[Tensor, "T N"], legal: Bool[Tensor, "T N"]) -> float:
    """Return the share of the variance between a request's ads that the ad alone doesn't explain.

    The log value is fitted by a term of the request and one of the ad (least squares over the
    eligible pairs, by turns); the request's term is left out of the variance.
    """
    x, weight = log_value.double(), legal.double()
    ad = torch.zeros(x.shape[1], dtype=torch.float64)
    for _ in range(20):
        request = ((x - ad) * weight).sum(1) / weight.sum(1).clamp_min(1)
        ad = ((x - request[:, None]) * weight).sum(0) / weight.sum(0).clamp_min(1)
    within, left = x - request[:, None], x - request[:, None] - ad
    return float(((left**2) * weight).sum() / ((within**2) * weight).sum().clamp_min(1e-12))


def _impressions(world: World) -> dict[str, float]:
    shown = np.bincount(world.bid_type[world.request_ad].numpy(), minlength=len(BID_TYPES))
    return dict(zip(BID_TYPES, (shown / shown.sum()).tolist(), strict=True))
