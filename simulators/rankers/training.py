"""Fits rankers on a world's log, calibrates them, and scores the log and the ads with them.

Dims: R logged requests, F of them from row `first` on, B batch, N ads.
"""

from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from tensordict import TensorClass
from torch import Tensor, nn

from gpr_rl.schema import Action
from simulators.rankers.cards import overall_card
from simulators.rankers.frozen import FrozenRankers, build_rankers
from simulators.rankers.network import Calibration, Rankers
from simulators.rewards import ecpm, final_value
from simulators.world import World
from simulators.world.features import Features, RankerInput, WorldRankers
from simulators.world.history import DAY_S

_CHUNK = 2_048
_BATCHES_PER_EPOCH, _SMALLEST_BATCH = 100, 64


@dataclass(frozen=True, kw_only=True)
class RankerTraining:
    """How the rankers are fitted."""

    num_epochs: int = 6
    """At most: the epoch that is best on the calibration days is kept."""
    batch_size: int = 2_048
    """At most: a small log has about a hundred batches an epoch."""
    learning_rate: float = 3e-3
    weight_decay: float = 1.0
    """Of AdamW."""
    max_rows: int = 1_000_000
    """Rows used at most, the latest ones."""
    num_calibration_days: int = 1
    """Last days of the log, kept out of the fit, on which the probabilities are calibrated."""


class LoggedRows(TensorClass):
    """Ranker inputs of R logged (request, shown ad) rows, batch [R]."""

    inputs: RankerInput
    counts: Tensor  # float32 [R, 1, 3F], or 3F + 2 with repeats
    ad_id: Tensor  # int64 [R, 1]
    clicked: Tensor  # float32 [R], 1 for clicks and conversions
    converted: Tensor  # float32 [R]

    @classmethod
    def build(
        cls,
        features: Features,
        group: Tensor,
        request_id: Tensor,
        ad_id: Tensor,
        labels: tuple[Tensor, Tensor],
    ) -> "LoggedRows":
        """Build all rows, chunk by chunk, keeping only the counts of the ad that was shown."""
        num_rows, start = len(request_id), 0
        for ids, ads in zip(request_id.split(_CHUNK), ad_id.split(_CHUNK), strict=True):
            row, past = features(ids)
            count = past.of(group, ads[:, None])
            if start == 0:  # filled in place: a list of chunks would need the memory twice
                inputs = cast(RankerInput, row[:1].expand(num_rows).clone())
                counts = count.new_empty(num_rows, *count.shape[1:])
            stop = start + len(ids)
            inputs[start:stop], counts[start:stop], start = row, count, stop
        return cls(inputs, counts, ad_id[:, None], *labels, batch_size=[num_rows])

    def logits(self, rankers: Rankers, rows: Tensor) -> Tensor:
        """Return raw logits [B, 2] of the rows `rows` (int64 [B])."""
        return rankers(self.inputs[rows], self.counts[rows], self.ad_id[rows])[:, 0]


def fit_rankers(
    rankers: Rankers,
    rows: LoggedRows,
    *,
    held_out: LoggedRows,
    has_clicks: bool,
    config: RankerTraining,
    generator: torch.Generator,
) -> None:
    """Train both towers by log-loss and keep the epoch that is best on `held_out`, if it has rows.

    A conversion is a trial of a click; its loss is a mean over all rows, clicked or not, so that
    few conversions do not outweigh the clicks in what both towers share. In a world without clicks
    every shown ad is a trial for the conversion. The rankers are trained in place; the generator
    gives the order of the rows.
    """
    optimizer = torch.optim.AdamW(
        rankers.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    rows = rows[max(0, len(rows) - config.max_rows) :]
    size = min(config.batch_size, max(_SMALLEST_BATCH, len(rows) // _BATCHES_PER_EPOCH))
    order = partial(torch.randperm, len(rows), generator=generator)
    steps = config.num_epochs * (len(rows) // size + 1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, steps)
    best, least = None, torch.inf
    for _ in range(config.num_epochs):
        for batch in order().split(size):
            loss = _log_loss(rankers, rows, batch, has_clicks) / len(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if len(held_out):
            with torch.no_grad():
                parts = torch.arange(len(held_out)).split(4 * _CHUNK)
                total = sum(_log_loss(rankers, held_out, p, has_clicks).item() for p in parts)
            if total < least:
                best, least = deepcopy(rankers.state_dict()), total
    if best is not None:
        rankers.load_state_dict(best)
    rankers.eval()


def _log_loss(rankers: Rankers, rows: LoggedRows, batch: Tensor, has_clicks: bool) -> Tensor:
    """Return the log-loss of both tasks, summed over a batch of rows; nats."""
    bce = partial(nn.functional.binary_cross_entropy_with_logits, reduction="sum")
    logit, clicked, converted = (
        rows.logits(rankers, batch),
        rows.clicked[batch],
        rows.converted[batch],
    )
    if not has_clicks:
        return bce(logit[:, 1], converted)
    return bce(logit[:, 0], clicked) + bce(logit[:, 1], converted, weight=clicked)


def _centred_knots(logit: NDArray, label: NDArray) -> tuple[NDArray, NDArray]:
    """Return raw and calibrated logits at the centres of isotonic regression's steps."""
    if len(logit) == 0:  # no trial on the calibration days: the logit stays as it is
        return np.zeros(1), np.zeros(1)
    logit = logit.astype(np.float64)
    fitted = IsotonicRegression(out_of_bounds="clip").fit_transform(logit, label)
    level, step = np.unique(fitted, return_inverse=True)
    size = np.bincount(step)
    centre = np.bincount(step, weights=logit) / size
    inside = (level > 0) & (level < 1)
    if not inside.any():  # all labels alike: only shift
        rate = (label.sum() + 0.5) / (len(label) + 1)
        level, centre = np.array([rate]), np.array([logit.mean()])
        inside = np.array([True])
    level, centre = level[inside], centre[inside]
    if len(level) == 1:
        shift = np.log(level / (1 - level)) - centre
        centre = np.r_[centre, centre + 1.0]
        return centre, centre + shift
    return centre, np.log(level / (1 - level))


def fit_calibration(
    logit: Tensor, clicked: Tensor, converted: Tensor, has_clicks: bool
) -> Calibration:
    """Fit the monotone maps on later days: all rows for clicks, clicked rows for conversions."""
    trial = (clicked > 0) if has_clicks else torch.ones_like(clicked, dtype=torch.bool)
    pairs = [
        _centred_knots(logit[:, 0].numpy(), clicked.numpy()),
        _centred_knots(logit[trial, 1].numpy(), converted[trial].numpy()),
    ]
    width = max(len(knots) for knots, _ in pairs)
    padded = []
    for knots, values in pairs:  # extend the last segment so that both tasks have one length
        extra = 1.0 + np.arange(width - len(knots))
        padded.append((np.r_[knots, knots[-1] + extra], np.r_[values, values[-1] + extra]))
    return Calibration(
        torch.from_numpy(np.stack([k for k, _ in padded])),
        torch.from_numpy(np.stack([v for _, v in padded])),
    )


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
            held_out=self.rows[self._calibration_rows()],
            has_clicks=self.world.info.has_clicks,
            config=self.training,
            generator=torch.Generator().manual_seed(seed),
        )
        every = torch.arange(len(self.rows.ad_id)).split(4 * _CHUNK)
        with torch.no_grad():
            logit = torch.cat([self.rows.logits(rankers, part) for part in every])
        calibration, info = self.calibrate(logit), self.world.info
        return FrozenRankers(rankers, calibration, info.has_clicks, info.has_conversions), logit

    def _calibration_rows(self) -> slice:
        """Return the rows of the last logged days, on which nothing was fitted."""
        logged = self.world.request_time[self.first :] // DAY_S < self.world.info.num_log_days
        return slice(self.num_fitted, int(logged.sum()))

    def calibrate(self, logit: Float[Tensor, "F 2"]) -> Calibration:
        """Fit the monotone maps on the last logged days, given raw logits of the rows."""
        rows, known = self.rows, self._calibration_rows()
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
    """Return ecpm and final_value [R] of the log, the logged days' scale and alpha [2]."""
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
