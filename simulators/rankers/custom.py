"""Rankers of one's own: three methods, and a world that uses them as its reward simulator.

    model = MyRankers()                       # features, fit, predict
    mine = use_rankers(load_world("tiny"), model)
    env = gymnasium.make("envs:gpr_rl/AdRequest-v0", world=mine)

Dims: B requests, K candidates, S recent items, F count features, D columns, N ads, M organic items,
n rows (request b and candidate k are row b * K + k).
"""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from gpr_rl.schema import Action
from simulators.rankers.network import Calibration
from simulators.rankers.training import RankerLog, RankerTraining
from simulators.world import World
from simulators.world.features import Counts, RankerInput

_MAX_ROWS = 65_536
_SMALLEST = 1e-7
"""Probabilities are kept this far from 0 and 1 before they are calibrated as logits."""


class RankerModelError(ValueError):
    """A model returned features or predictions that break the protocol; names the model's class."""


@runtime_checkable
class RankerModel(Protocol):
    """What a model must have to be a world's rankers."""

    def features(
        self, inputs: RankerInput, counts: Float[Tensor, "B K F"], ad_id: Int[Tensor, "B K"]
    ) -> ArrayLike:
        """Return a table [B * K, D] of whatever the model reads; NaN may mark a missing value.

        A row must not depend on the other rows. `TabularFeatures` is a ready one.

        Args:
            inputs: User, context and recent items of B requests.
            counts: What the user did before with each candidate's vertical, category and
                advertiser.
            ad_id: The candidates.
        """

    def fit(
        self, x: NDArray, clicked: NDArray[np.float32], converted: NDArray[np.float32]
    ) -> object:
        """Learn from logged impressions, oldest first; what is returned is ignored.

        Args:
            x: Features [n, D].
            clicked: 0 or 1, [n]; ones in a world without clicks, where pCTR is not used.
            converted: 0 or 1, [n]; only clicked rows are trials of a conversion.
        """

    def predict(self, x: NDArray) -> ArrayLike:
        """Return [n, 2]: probability of a click, and of a conversion given the click."""


class TabularFeatures:
    """Ready-made columns for `RankerModel.features`: float32 [B * K, D], no bid and no ad id.

    User and context attributes; the count features; how many of the last 20 clicks, conversions
    and organic views there are by action and of the candidate's vertical, category and
    advertiser, with mean and largest cosine of their content to the candidate's; and of the ad
    its vertical, category and advertiser, log price and content embedding.

    Attributes:
        names: D column names.
        categorical: Indices of the columns that hold category numbers.
    """

    _ACTIONS = (Action.VIEW, Action.CLICK, Action.CONVERSION)
    _GROUPS = ("vertical", "category", "advertiser")

    def __init__(self, world: World) -> None:
        self._group = world.group
        self._embedding = world.item_embedding
        self._unit = torch.nn.functional.normalize(world.item_embedding.double(), dim=-1)
        self._log_price = torch.log(world.price)
        offset = world.group.amin(0)
        self._own_group = (world.group[: world.num_ads] - offset).float()
        none = torch.zeros(1, dtype=torch.int64)
        _, past = world.features(none)
        num_counts = past.of(world.group, none[:, None]).shape[-1]
        context = [f"context_{i}" for i in range(len(world.info.context_cardinalities))]
        self.names = [
            *world.info.user_columns,
            *context,
            *(f"count_{i}" for i in range(num_counts)),
            *(f"recent_{action.name.lower()}s" for action in self._ACTIONS),
            *(f"recent_same_{name}" for name in self._GROUPS),
            "recent_cosine_mean",
            "recent_cosine_max",
            *self._GROUPS,
            "log_price",
            *(f"content_{i}" for i in range(world.item_embedding.shape[1])),
        ]
        grouped = {*world.info.user_columns, *context, *self._GROUPS}
        self.categorical = [i for i, name in enumerate(self.names) if name in grouped]

    def __call__(
        self, inputs: RankerInput, counts: Float[Tensor, "B K F"], ad_id: Int[Tensor, "B K"]
    ) -> NDArray[np.float32]:
        """Return the table, float32 [B * K, D]."""
        b, k = ad_id.shape
        taken = [(inputs.recent_action == a).sum(-1) for a in self._ACTIONS]  # unknown ones have 0
        per_request = [inputs.user, inputs.context, torch.stack(taken, dim=-1)]
        user, context, actions = (x.float()[:, None].expand(b, k, -1) for x in per_request)
        own = self._own_group[ad_id]
        columns = [
            user,
            context,
            counts,
            actions,
            self._recent_groups(inputs, ad_id),
            self._recent_cosine(inputs, ad_id),
            own,
            self._log_price[ad_id][..., None],
            self._embedding[ad_id],
        ]
        return torch.cat(columns, dim=-1).flatten(0, 1).numpy()

    def _recent_groups(self, inputs: RankerInput, ad_id: Tensor) -> Tensor:
        """Return how many recent items share each candidate's groups, float32 [B, K, 3]."""
        of_recent = self._group[inputs.recent_item.long()].flatten(1)
        known = inputs.recent_known[..., None].expand(-1, -1, 3).flatten(1)
        count = known.new_zeros(len(known), int(self._group.max()) + 1, dtype=torch.float32)
        count.scatter_add_(1, of_recent, known.float())
        return count.gather(1, self._group[ad_id].flatten(1)).view(*ad_id.shape, 3)

    def _recent_cosine(self, inputs: RankerInput, ad_id: Tensor) -> Tensor:
        """Return mean and largest cosine to the recent items, [B, K, 2]; in float64 meanwhile."""
        known = inputs.recent_known[:, None]
        cosine = self._unit[ad_id] @ self._unit[inputs.recent_item.long()].mT
        mean = (cosine * known).sum(-1) / known.sum(-1).clamp_min(1)
        largest = cosine.masked_fill(~known, -torch.inf).amax(-1)
        largest = torch.where(known.any(-1), largest, 0.0)
        return torch.stack([mean, largest], dim=-1).float()


class FrozenModel:
    """A fitted and calibrated `RankerModel` in the place of `FrozenRankers`.

    Only `features` and `predict` of the model are called. Counts are taken of `group` [N + M, 3].
    Without clicks pCTR is 1, without conversions pCVR 0. Without a calibration the model's own
    probabilities stay.
    """

    def __init__(
        self,
        model: RankerModel,
        group: Int[Tensor, "items 3"],
        has_clicks: bool,
        has_conversions: bool = True,
        calibration: Calibration | None = None,
    ) -> None:
        self.model, self.group = model, group
        self.has_clicks, self.has_conversions = has_clicks, has_conversions
        self.calibration = calibration

    def __deepcopy__(self, memo: dict) -> "FrozenModel":
        """Return itself: frozen rankers are read-only."""
        return self

    @torch.no_grad()
    def __call__(
        self, inputs: RankerInput, past: Counts, ad_id: Tensor, *, exact: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return pCTR and pCVR, float32 [B, K] each; `exact` makes no difference."""
        counts = past.of(self.group, ad_id)
        b, k = ad_id.shape
        step = max(1, _MAX_ROWS // max(k, 1))
        rows = [slice(i, min(i + step, b)) for i in range(0, b, step)]
        parts = [self.predicted(self.table(inputs[r], counts[r], ad_id[r])) for r in rows]
        logit = torch.cat(parts) if parts else torch.zeros(0, 2, dtype=torch.float64)
        probability = torch.sigmoid(logit) if self.calibration is None else self.calibration(logit)
        pctr, pcvr = probability.float().view(b, k, 2).unbind(-1)
        pctr = pctr.contiguous() if self.has_clicks else torch.ones_like(pctr)
        return pctr, (pcvr.contiguous() if self.has_conversions else torch.zeros_like(pcvr))

    def table(self, inputs: RankerInput, counts: Tensor, ad_id: Tensor) -> NDArray:
        """Return the model's features [B * K, D], checked."""
        x = np.asarray(self.model.features(inputs, counts, ad_id))
        if x.ndim != 2 or len(x) != ad_id.numel():
            raise RankerModelError(
                f"{self._name}.features must return one row per candidate, shape "
                f"({ad_id.numel()}, D), got {x.shape}"
            )
        return x

    def predicted(self, x: NDArray) -> Float[Tensor, "n 2"]:
        """Return checked predictions for features [n, D] as logits, float64 [n, 2].

        Raises:
            RankerModelError: Another shape, NaN or a value outside [0, 1]; names the model's
                class, the row and the value.
        """
        probability = np.asarray(self.model.predict(x), dtype=np.float64)
        if probability.shape != (len(x), 2):
            raise RankerModelError(
                f"{self._name}.predict must return shape ({len(x)}, 2): pCTR and pCVR, "
                f"got {probability.shape}"
            )
        bad = ~((probability >= 0.0) & (probability <= 1.0))
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise RankerModelError(
                f"{self._name}.predict must return probabilities in [0, 1], got "
                f"{probability[row, column]} as {('pCTR', 'pCVR')[column]} of row {row}"
            )
        return torch.logit(torch.from_numpy(probability).clamp(_SMALLEST, 1 - _SMALLEST))

    @property
    def _name(self) -> str:
        return type(self.model).__name__


def use_rankers(world: World, model: RankerModel, training: RankerTraining | None = None) -> World:
    """Return a new world whose reward simulator is `model`; the given world stays as it is.

    The model is fitted on the logged days that the built-in rankers are fitted on, calibrated on
    the same later days with the same monotone maps, graded on the same held-out days, and frozen.
    pctr, pcvr, ecpm and final_value of the log, alpha of Eq. 5, the reward scale and the ads that
    shared paths resolve to are made anew. Nothing is written: the new world lives in this process.

    The model is not fitted yet, or fitted again. `max_rows` and `num_calibration_days` of
    `training` say which rows fit and calibrate.

    Raises:
        RankerModelError: The model lacks a method, or returns what the protocol does not allow.
    """
    missing = [m for m in ("features", "fit", "predict") if not callable(getattr(model, m, None))]
    if missing:
        raise RankerModelError(f"{type(model).__name__} has no method {', '.join(missing)}")
    log = RankerLog.of(world, training or RankerTraining())
    has_clicks, has_conversions = world.info.has_clicks, world.info.has_conversions

    def tables(start: int, stop: int) -> Iterator[NDArray]:
        for part in torch.arange(start, stop).split(_MAX_ROWS):
            rows = log.rows[part]
            yield bare.table(rows.inputs, rows.counts, rows.ad_id)

    bare = FrozenModel(model, world.group, has_clicks, has_conversions)
    fitted = slice(max(0, log.num_fitted - log.training.max_rows), log.num_fitted)
    clicked = log.rows.clicked[fitted]
    model.fit(
        np.concatenate(list(tables(fitted.start, fitted.stop))),
        (clicked if has_clicks else torch.ones_like(clicked)).numpy().copy(),
        log.rows.converted[fitted].numpy().copy(),
    )
    logit = torch.cat([bare.predicted(x) for x in tables(0, len(log.rows.ad_id))])
    calibration = log.calibrate(logit)
    frozen = FrozenModel(model, world.group, has_clicks, has_conversions, calibration)
    new = log.ranked(frozen, calibration(logit))
    return new.replace(ranker_card=new.ranker_card | {"model": type(model).__name__})
