"""Rankers on a world's log: the rows to fit and calibrate on, scores, each ad's value.

Dims: R logged requests, N ads, F rows from row `first` on.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gpr_rl.schema import Action
from simulators.rankers.cards import overall_card
from simulators.rankers.frozen import FrozenRankers, build_rankers, freeze
from simulators.rankers.network import Calibration
from simulators.rankers.training import LoggedRows, RankerTraining, fit_calibration, fit_rankers
from simulators.rewards import ecpm, final_value
from simulators.world import World
from simulators.world.history import DAY_S
from simulators.world.scoring import WorldRankers

_CHUNK = 2_048


@dataclass(frozen=True)
class RankerLog:
    """The F latest logged rows of a world: the first ones are fitted on, later ones calibrate."""

    world: World
    training: RankerTraining
    first: int
    """Of R rows; earlier ones are not kept at hand."""
    num_fitted: int
    """Of the F rows; the others lie on the calibration days or later. Rows are in order of time."""
    rows: LoggedRows

    @classmethod
    def of(cls, world: World, training: RankerTraining) -> "RankerLog":
        """Build the inputs of the rows that fit and calibrate."""
        calibration_day = world.info.num_log_days - training.num_calibration_days
        num_fitted = int((world.request_time // DAY_S < calibration_day).sum())
        first = max(
            0, min(world.num_requests - 2 * training.max_rows, num_fitted - training.max_rows)
        )
        ids = torch.arange(first, world.num_requests)
        ad, action = world.request_ad[ids], world.request_action[ids]
        labels = (action >= Action.CLICK).float(), (action == Action.CONVERSION).float()
        rows = LoggedRows.build(world.features, world.group, ids, ad, labels)
        return cls(world, training, first, num_fitted - first, rows)

    def fit(self, seed: int, rows: LoggedRows) -> tuple[FrozenRankers, Float[Tensor, "F 2"]]:
        """Return rankers fitted on some rows and calibrated, and their raw logits of all F."""
        rankers = build_rankers(self.world, seed)
        fit_rankers(
            rankers,
            rows,
            has_clicks=self.world.info.has_clicks,
            config=self.training,
            generator=torch.Generator().manual_seed(seed),
        )
        logit = self.rows.all_logits(rankers)
        return freeze(self.world, rankers, self.calibrate(logit)), logit

    def calibrate(self, logit: Float[Tensor, "F 2"]) -> Calibration:
        """Fit the monotone maps on the last logged days, given raw logits of the rows."""
        day = torch.from_numpy(self.world.request_time[self.first :] // DAY_S)
        rows = self.rows
        known = torch.nonzero(day < self.world.info.num_log_days)[:, 0]
        known = known[known >= self.num_fitted]
        clicked, converted = rows.clicked[known], rows.converted[known]
        return fit_calibration(logit[known], clicked, converted, self.world.info.has_clicks)

    def ranked(self, rankers: WorldRankers, known: Float[Tensor, "F 2"]) -> World:
        """Return the world with calibrated rankers as its reward simulator, and their grades.

        `known` are their probabilities of the rows. The grades are of held-out days.
        """
        world = self.world
        parts = []
        for ids in torch.arange(self.first).split(_CHUNK) if self.first else ():
            inputs, past = world.features(ids)
            said = rankers(inputs, past, world.request_ad[ids][:, None])
            parts.append(torch.stack(said, -1)[:, 0])
        pctr, pcvr = (x.contiguous() for x in torch.cat([*parts, known.float()]).unbind(-1))
        if not world.info.has_clicks:
            pctr = torch.ones_like(pctr)
        if not world.info.has_conversions:
            pcvr = torch.zeros_like(pcvr)
        scores = {"pctr": pctr, "pcvr": pcvr} | _values(world, pctr, pcvr)
        scores["ad_value"] = ad_value(world, rankers)
        card = overall_card(world, scores)
        return world.replace(rankers=rankers, logged=scores, ranker_card=card)


def _values(world: World, pctr: Tensor, pcvr: Tensor) -> dict[str, Tensor]:
    """Return ecpm and final_value [R] of the log, the logged days' scale and alpha [2].

    alpha is 0.1 std(eCPM) / std(target).
    """
    logged = torch.from_numpy(world.request_time // DAY_S) < world.info.num_log_days
    ids = torch.arange(world.num_requests)
    outcome = world.make_outcome(ids, world.request_ad[:, None], pctr[:, None], pcvr[:, None])
    of_target = torch.stack([spread(pctr[logged]), spread(pcvr[logged])])
    relative = 0.1 * spread(outcome.ecpm[logged, 0]) / of_target.clamp_min(1e-9)
    alpha = torch.where(of_target > 1e-9, relative, 0.0)  # GPR Eq. 5; 0 for a constant target
    outcome.alpha = alpha.expand_as(outcome.alpha)
    value = final_value(outcome)[:, 0]
    scale = spread(value[logged])
    return {
        "ecpm": outcome.ecpm[:, 0],
        "final_value": value,
        "alpha": alpha,
        "reward_scale": scale if scale > 0.0 else torch.ones(()),
    }


def spread(x: Float[Tensor, " R"]) -> Float[Tensor, ""]:
    """Return the standard deviation; 0 of fewer than two numbers."""
    return x.std() if len(x) > 1 else x.new_zeros(())


def ad_value(world: World, rankers: WorldRankers, num_requests: int = 256) -> Float[Tensor, " N"]:
    """Return each ad's mean eCPM under rankers over training requests, float32 [N].

    Shared paths resolve to the ad with the highest. Zero where no training request has a legal ad.
    """
    ids = world.request_ids("train")
    total = torch.zeros(world.num_ads)
    if len(ids) == 0:
        return total
    ids = ids[torch.linspace(0, len(ids) - 1, min(num_requests, len(ids))).long()]
    for part in ids.split(64):
        ads = torch.arange(world.num_ads).expand(len(part), -1)
        pctr, pcvr = rankers(*world.features(part), ads)
        total = total + ecpm(pctr, pcvr, world.bid[ads], world.bid_type[ads]).sum(0)
    return total / len(ids)
