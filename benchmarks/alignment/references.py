"""Rows that RL must be compared with: production, lists that know little of the user, the best ads.

Dims: E held-out requests, N ads, K list entries.
"""

from functools import partial

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.alignment.setup import Setup, rows_frame
from benchmarks.evaluation import (
    concentration_metrics,
    coverage,
    list_metrics,
    personal_metrics,
    pool_metrics,
    popularity_distribution,
    served_metrics,
    value_metrics,
)
from simulators.markets import log_view
from simulators.rankers.cards import item_rates
from simulators.synthetic.worth import list_scorers, spaced

NUM_LIST_REQUESTS = 1_000
"""Train requests that lists are ordered on."""


def reference_rows(setup: Setup, market: str, seed: int, list_size: int) -> list[pd.DataFrame]:
    """Return the rows that need no training."""
    data = setup.data
    best = value_metrics(data, "greedy", ad_id=data.proxy_best())
    if data.truth is not None:
        true_best = data.truth.masked_fill(~data.eligible, -torch.inf).argmax(-1)
        by_truth = value_metrics(data, "greedy", ad_id=true_best)
        best.update({k: v for k, v in by_truth.items() if k.startswith("truth")})
        del best["hacking_gap_greedy"]  # two ads, the best by each measure
    beam = data.value.gather(1, setup.shared.clamp_min(0))
    place = beam.masked_fill(setup.shared < 0, -torch.inf).argmax(-1, keepdim=True)
    reranked = setup.shared.gather(1, place)[:, 0]
    popularity = popularity_distribution(setup.world, data)
    list_row = partial(_list_metrics, setup, list_size)
    found = {
        "logging": value_metrics(data, "expected", distribution=data.logging),
        "popularity": list_row(popularity, popularity),
        "item_mean": list_row(item_mean_value(setup)),
        "vaft_reranked": _one_ad_metrics(setup, reranked),
        "proxy_argmax": _one_ad_metrics(setup, data.proxy_best()),
        "best": best,
    }
    train = spaced(setup.world, "train", NUM_LIST_REQUESTS)
    scorers = list_scorers(setup.world, train, lambda outcome: setup.reward(outcome)[0])
    found |= {name: list_row(scorer(data.request_id)) for name, scorer in scorers.items()}
    return [
        rows_frame(name, seed, 0, "test", metrics, market=market) for name, metrics in found.items()
    ]


def item_mean_value(setup: Setup) -> Float[Tensor, "E N"]:
    """Return the reward of every ad if it were clicked and converted at its own past rates.

    What a ranker is worth that knows the ad and nothing else: rates of the logged days, drawn
    towards the mean of all ads.
    """
    world = setup.world
    pctr, pcvr = item_rates(log_view(world))
    parts = []
    for ids in setup.data.request_id.split(64):
        ads = torch.arange(world.num_ads).expand(len(ids), -1)
        parts.append(setup.reward(world.make_outcome(ids, ads, pctr[ads], pcvr[ads]))[0])
    return torch.cat(parts)


def _one_ad_metrics(setup: Setup, ad_id: Tensor) -> dict[str, float]:
    """Return the metrics of one ad per request, int64 [E]."""
    data = setup.data
    shown = torch.nn.functional.one_hot(ad_id, data.value.shape[1]).float()
    return {
        **value_metrics(data, "expected", distribution=shown),
        **value_metrics(data, "greedy", ad_id=ad_id),
        **personal_metrics(data, shown),
        **concentration_metrics(data, shown, ad_id),
    }


def _list_metrics(
    setup: Setup, list_size: int, score: Tensor, distribution: Tensor | None = None
) -> dict[str, float]:
    """Return the metrics of lists by a score [E, N]; drawn from, or else the first ad is shown."""
    data = setup.data
    ranked = score.masked_fill(~data.eligible, -torch.inf)
    ranked = ranked.argsort(dim=-1, descending=True, stable=True)
    top = ranked[:, :list_size]
    top = top.where(data.eligible.gather(1, top), -1)
    value = data.value.gather(1, top.clamp_min(0)).masked_fill(top < 0, -torch.inf)
    metrics = _one_ad_metrics(setup, ranked[:, 0])
    if distribution is not None:
        metrics |= value_metrics(data, "expected", distribution=distribution)
        metrics |= personal_metrics(data, distribution)
        metrics |= concentration_metrics(data, distribution, ranked[:, 0])
    return {
        **metrics,
        **served_metrics(data, top),
        **list_metrics(data, setup.shared, score.gather(1, setup.shared.clamp_min(0)), ""),
        **list_metrics(data, top, score.gather(1, top.clamp_min(0)), "_own"),
        **pool_metrics(value),
        "coverage": coverage(top, setup.world.num_ads),
    }
