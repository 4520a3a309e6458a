"""Grades of frozen rankers on held-out days: overall, by vertical, for new and for old ads.

Dims: R logged requests, H rows of held-out days.
"""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor

from gpr_rl.schema import Action
from simulators.synthetic.evaluator import TruthEvaluator
from simulators.world import World
from simulators.world.history import DAY_S

NUM_BINS = 20
MIN_POSITIVES = 10
"""Fewer positives, or fewer negatives, than this and a group has no AUC."""
NEW_DAYS = 3
"""An ad is new on the day it starts and on this many days after it."""
OVERALL = "overall"

_PRIOR_SUCCESSES = 2.0
"""Clicks, or conversions, at the mean rate that are added to an ad's own."""

Card = dict[str, dict[str, dict[str, float]]]
"""Task (`pctr`, `pcvr`), group (`overall`, `vertical 3`, `new ads`, `old ads`), metric."""

_CHUNK = 2_048


def expected_calibration_error(probability: NDArray, label: NDArray, bins: int = NUM_BINS) -> float:
    """Return the mean |predicted - observed rate| over equal-frequency bins, weighted by size.

    Labels are draws, so a perfect model does not reach 0: compare with the oracle's figure.
    """
    points = reliability(probability, label, bins)
    return float(sum(rows * abs(said - observed) for said, observed, rows in points) / len(label))


def reliability(
    probability: NDArray, label: NDArray, bins: int = NUM_BINS
) -> list[tuple[float, float, int]]:
    """Return (mean prediction, observed rate, rows) of equal-frequency bins, in rising order."""
    parts = np.array_split(np.argsort(probability, kind="stable"), bins)
    return [(float(probability[p].mean()), float(label[p].mean()), len(p)) for p in parts if len(p)]


def grade(
    probability: Float[Tensor, " R"],
    label: Float[Tensor, " R"],
    oracle: Float[Tensor, " R"] | None,
    *,
    min_positives: int = 1,
) -> dict[str, float]:
    """Return the card of one task on some rows with labels 0 or 1.

    That is num_rows, num_positives and, of at least one row, rate, ece, log_loss (nats per row),
    ratio (sum(p)/sum(y)) and, unless positives or negatives are fewer than `min_positives`, auc;
    the same with `_oracle` for the true probability where it is known.
    """
    y = label.double().numpy()
    positives = float(y.sum())
    if len(y) == 0:
        return {"num_rows": 0.0, "num_positives": 0.0}
    card = {"num_rows": float(len(y)), "num_positives": positives, "rate": float(y.mean())}
    sides = {"": probability} if oracle is None else {"": probability, "_oracle": oracle}
    for suffix, values in sides.items():
        p = values.double().numpy()
        card[f"ece{suffix}"] = expected_calibration_error(p, y)
        card[f"log_loss{suffix}"] = float(log_loss(y, np.clip(p, 1e-7, 1 - 1e-7), labels=[0, 1]))
        if positives > 0:
            card[f"ratio{suffix}"] = float(p.sum() / positives)
        if min(positives, len(y) - positives) >= max(min_positives, 1):
            card[f"auc{suffix}"] = float(roc_auc_score(y, p))
    return card


def _heldout(world: World) -> Int[Tensor, " H"]:
    """Return the logged rows of the days that nothing was fitted on."""
    day = torch.from_numpy(world.request_time // DAY_S)
    return torch.nonzero(day >= world.info.num_log_days)[:, 0]


def _tasks(
    world: World, request_id: Int[Tensor, " H"]
) -> dict[str, tuple[Bool[Tensor, " H"], Bool[Tensor, " H"]]]:
    """Return per task its trials and labels: a conversion is tried by a click, where known."""
    action = world.request_action[request_id]
    clicked, converted = action >= Action.CLICK, action == Action.CONVERSION
    every = torch.ones_like(clicked)
    tasks = {}
    if world.info.has_clicks:
        tasks["pctr"] = every, clicked
    if world.info.has_conversions or not world.info.has_clicks:
        tasks["pcvr"] = clicked if world.info.has_clicks else every, converted
    return tasks


def _oracle(world: World, request_id: Int[Tensor, " H"]) -> dict[str, Float[Tensor, " H"]]:
    """Return the true pctr and pcvr of logged rows; nothing in a world without a known truth."""
    if not world.info.has_truth:
        return {}
    truth = TruthEvaluator(world)
    parts = [truth.outcome(ids, world.request_ad[ids][:, None]) for ids in request_id.split(_CHUNK)]
    return {
        task: torch.cat([getattr(part, task)[:, 0] for part in parts]) for task in ("pctr", "pcvr")
    }


def _groups(world: World, request_id: Int[Tensor, " H"]) -> dict[str, Bool[Tensor, " H"]]:
    """Return the groups of a card: all rows, each vertical, new and old ads, by the shown ad."""
    ad = world.request_ad[request_id].numpy()
    vertical = world.ads["vertical"].to_numpy()[ad]
    day = world.request_time[request_id.numpy()] // DAY_S
    new = day - world.ads["first_day"].to_numpy()[ad] <= NEW_DAYS
    groups = {OVERALL: np.ones(len(ad), dtype=bool)}
    groups |= {f"vertical {v}": vertical == v for v in np.unique(world.ads["vertical"])}
    groups |= {"new ads": new, "old ads": ~new}
    return {name: torch.from_numpy(rows) for name, rows in groups.items()}


def overall_card(world: World, logged: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Return each task's grades over all held-out rows; a task without a trial is left out.

    `auc_item_mean` is that of a model that knows the shown ad and nothing else (`item_rates`).
    `logged` holds pctr and pcvr of all logged rows, float [R].
    """
    ids = _heldout(world)
    every = {OVERALL: torch.ones(len(ids), dtype=torch.bool)}
    card = _card(world, ids, logged, _oracle(world, ids), every, min_positives=1)
    of_ad = dict(zip(("pctr", "pcvr"), item_rates(world), strict=True))
    by_ad = {task: rates[world.request_ad] for task, rates in of_ad.items()}
    by_mean = _card(world, ids, by_ad, {}, every, min_positives=1)
    return {
        task: groups[OVERALL]
        | {
            f"{name}_item_mean": grade
            for name, grade in by_mean[task][OVERALL].items()
            if name == "auc"
        }
        for task, groups in card.items()
        if groups
    }


def item_rates(world: World) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Return each ad's clicks per impression and conversions per click in the logged days.

    They are drawn towards the mean of all ads.
    """
    day = torch.from_numpy(world.request_time[: len(world.request_ad)] // DAY_S)
    logged = day < world.info.num_log_days
    ad, action = world.request_ad[logged], world.request_action[logged]
    shown, clicked, converted = (
        torch.bincount(ad[action >= least], minlength=world.num_ads).float()
        for least in (Action.IMPRESSION, Action.CLICK, Action.CONVERSION)
    )
    trials = clicked if world.info.has_clicks else shown
    pctr = _shrunk(clicked, shown) if world.info.has_clicks else torch.ones_like(shown)
    return pctr, _shrunk(converted, trials)


def _shrunk(count: Tensor, trials: Tensor) -> Tensor:
    """Return rates drawn towards the mean one, which is 0 where nothing ever succeeded."""
    mean = count.sum() / trials.sum().clamp_min(1)
    return (count + _PRIOR_SUCCESSES) / (trials + _PRIOR_SUCCESSES / mean) if mean > 0 else count


def ranker_card(world: World, *, with_oracle: bool = True) -> Card:
    """Return the grades of a world's rankers by task and group; groups without rows are left out.

    `with_oracle` adds the truth's own figures where it is known.
    """
    ids = _heldout(world)
    oracle = _oracle(world, ids) if with_oracle else {}
    groups = _groups(world, ids)
    return _card(world, ids, world.logged, oracle, groups, min_positives=MIN_POSITIVES)


def _card(
    world: World,
    request_id: Int[Tensor, " H"],
    logged: Mapping[str, Tensor],
    oracle: Mapping[str, Tensor],
    groups: Mapping[str, Tensor],
    *,
    min_positives: int,
) -> Card:
    card: Card = {}
    for task, (trial, label) in _tasks(world, request_id).items():
        said, true = logged[task][request_id], oracle.get(task)
        chosen = {name: inside & trial for name, inside in groups.items()}
        card[task] = {
            name: grade(
                said[rows],
                label[rows].float(),
                None if true is None else true[rows],
                min_positives=min_positives,
            )
            for name, rows in chosen.items()
            if rows.any()
        }
    return card


def ranker_reliability(
    world: World, bins: int = NUM_BINS
) -> dict[str, list[tuple[float, float, int]]]:
    """Return each task's reliability diagram over all held-out rows; see `reliability`."""
    ids = _heldout(world)
    return {
        task: reliability(
            world.logged[task][ids][trial].double().numpy(), label[trial].double().numpy(), bins
        )
        for task, (trial, label) in _tasks(world, ids).items()
    }
