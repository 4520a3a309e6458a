"""What is done with fitted rankers: calibration, the scores of the log, each ad's mean value.

Dims: R logged requests, N ads, F rows from row `first` on.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from gpr_rl.schema import Action
from simulators.rankers.network import Calibration
from simulators.rankers.training import RankerTraining, fit_calibration
from simulators.rewards import final_value
from simulators.world.history import DAY_S
from simulators.world.scoring import WorldRankers
from simulators.world.world import World, score_scale, spread

_CHUNK = 2_048


def first_row(world: World, training: RankerTraining) -> int:
    """Return the first logged row whose ranker inputs are kept at hand; the fitted ones are."""
    at_hand = max(0, world.num_requests - 2 * training.max_rows)
    return min(at_hand, max(0, num_fitted_rows(world, training) - training.max_rows))


def num_fitted_rows(world: World, training: RankerTraining) -> int:
    """Return how many logged rows lie before the calibration days; rows are in order of time."""
    calibration_day = world.info.num_log_days - training.num_calibration_days
    return int((world.request_time // DAY_S < calibration_day).sum())


def labels(world: World) -> tuple[Float[Tensor, " R"], Float[Tensor, " R"]]:
    """Return clicked and converted, float32 [R] of 0 and 1."""
    action = world.request_action
    return (action >= Action.CLICK).float(), (action == Action.CONVERSION).float()


def calibrate(world: World, logit: Float[Tensor, "F 2"], training: RankerTraining) -> Calibration:
    """Fit the monotone maps on the last logged days.

    Args:
        world: Whose log it is.
        logit: Raw logits of the rows from `first_row` on.
        training: Says how many days calibrate.
    """
    first = first_row(world, training)
    day = torch.from_numpy(world.request_time // DAY_S)
    calibration_day = world.info.num_log_days - training.num_calibration_days
    rows = torch.nonzero((day >= calibration_day) & (day < world.info.num_log_days))[:, 0]
    rows = rows[rows >= first]
    clicked, converted = labels(world)
    return fit_calibration(
        logit[rows - first], clicked[rows], converted[rows], world.info.has_clicks
    )


def logged_scores(
    world: World, rankers: WorldRankers, known: Float[Tensor, "F 2"]
) -> dict[str, Tensor]:
    """Return what the rankers say of the log, as `World.attach_rankers` takes it.

    Args:
        world: Without these rankers; its `alpha` is set on the way.
        rankers: Calibrated.
        known: Probabilities of the last F logged rows.

    Returns:
        pctr, pcvr, ecpm, final_value [R], alpha [2], reward_scale (std of final_value over the
        logged days, 1 where there is none), ad_value [N] still zero.
    """
    parts = []
    earlier = world.num_requests - len(known)
    for ids in torch.arange(earlier).split(_CHUNK) if earlier else ():
        inputs, past = world.features(ids)
        parts.append(torch.stack(rankers(inputs, past, world.request_ad[ids][:, None]), -1)[:, 0])
    pctr, pcvr = (x.contiguous() for x in torch.cat([*parts, known.float()]).unbind(-1))
    if not world.info.has_clicks:
        pctr = torch.ones_like(pctr)
    if not world.info.has_conversions:
        pcvr = torch.zeros_like(pcvr)
    logged = torch.from_numpy(world.request_time // DAY_S) < world.info.num_log_days
    outcome = world.make_outcome_logged(pctr, pcvr, torch.zeros(2))
    alpha = score_scale(outcome.ecpm[logged, 0], pctr[logged], pcvr[logged])
    outcome = world.make_outcome_logged(pctr, pcvr, alpha)
    value = final_value(outcome)[:, 0]
    scale = spread(value[logged])
    return {
        "pctr": pctr,
        "pcvr": pcvr,
        "ecpm": outcome.ecpm[:, 0],
        "final_value": value,
        "alpha": alpha,
        "reward_scale": scale if scale > 0.0 else torch.ones(()),
        "ad_value": torch.zeros(world.num_ads),
    }


def attach_scored(
    world: World, rankers: WorldRankers, scores: dict[str, Tensor], card: dict
) -> None:
    """Attach rankers with each ad's mean eCPM filled in, by which shared paths are resolved."""
    world.attach_rankers(rankers, scores, card)
    scores["ad_value"] = ad_value(world)
    world.attach_rankers(rankers, scores, card)


def ad_value(world: World, num_requests: int = 256) -> Float[Tensor, " N"]:
    """Return each ad's mean eCPM under the rankers over training requests, float32 [N].

    Zero where no training request has a legal ad.
    """
    ids = world.request_ids("train")
    if len(ids) == 0:
        return torch.zeros(world.num_ads)
    ids = ids[torch.linspace(0, len(ids) - 1, min(num_requests, len(ids))).long()]
    total = sum(world.outcome_all(part).ecpm.sum(0) for part in ids.split(64))
    return torch.as_tensor(total / len(ids))
