"""Fits and calibrates the rankers on logs; `simulators.rankers.cards` grades them.

Dims: R logged requests, B batch, F count features.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from torch import Tensor, nn

from simulators.rankers.network import Calibration, Rankers
from simulators.world.features import Features, RankerInput

_CHUNK = 2_048


@dataclass(frozen=True, kw_only=True)
class RankerTraining:
    """How the rankers are fitted."""

    num_epochs: int = 4
    batch_size: int = 2_048
    learning_rate: float = 3e-3
    weight_decay: float = 1e-5
    max_rows: int = 1_000_000
    """Rows used at most, the latest ones."""
    num_calibration_days: int = 1
    """Last days of the log, kept out of the fit, on which the probabilities are calibrated."""


@dataclass(frozen=True)
class LoggedRows:
    """Ranker inputs of R logged (request, shown ad) rows."""

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
        return cls(inputs, counts, ad_id[:, None], *labels)

    def take(self, rows: Tensor | slice) -> "LoggedRows":
        """Return the rows `rows` (int64 [B]); nothing is copied for a slice."""
        inputs, counts, ad_id = self.inputs[rows], self.counts[rows], self.ad_id[rows]
        return LoggedRows(inputs, counts, ad_id, self.clicked[rows], self.converted[rows])

    def logits(self, rankers: Rankers, rows: Tensor) -> Tensor:
        """Return raw logits [B, 2] of the rows `rows` (int64 [B])."""
        return rankers(self.inputs[rows], self.counts[rows], self.ad_id[rows])[:, 0]

    @torch.no_grad()
    def all_logits(self, rankers: Rankers) -> Tensor:
        """Return raw logits [R, 2]."""
        rows = torch.arange(len(self.ad_id))
        return torch.cat([self.logits(rankers, chunk) for chunk in rows.split(4 * _CHUNK)])


def fit_rankers(
    rankers: Rankers,
    rows: LoggedRows,
    *,
    has_clicks: bool,
    config: RankerTraining,
    generator: torch.Generator,
) -> None:
    """Train both towers by log-loss; conversions are learned on clicked rows only.

    In a world without clicks every shown ad is a trial for the conversion. The rankers are trained
    in place; the generator gives the order of the rows.
    """
    optimizer = torch.optim.Adam(
        rankers.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    num_rows = len(rows.ad_id)
    first = max(0, num_rows - config.max_rows)
    steps = config.num_epochs * ((num_rows - first) // config.batch_size + 1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, steps)
    clicked, converted = rows.clicked, rows.converted
    trial = clicked if has_clicks else torch.ones_like(clicked)
    bce = nn.functional.binary_cross_entropy_with_logits
    for _ in range(config.num_epochs):
        order = first + torch.randperm(num_rows - first, generator=generator)
        for batch in order.split(config.batch_size):
            logit = rows.logits(rankers, batch)
            loss = bce(logit[:, 1], converted[batch], weight=trial[batch], reduction="sum")
            loss = loss / trial[batch].sum().clamp_min(1)
            if has_clicks:
                loss = loss + bce(logit[:, 0], clicked[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    rankers.eval()


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
