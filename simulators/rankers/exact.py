"""The frozen rankers in float64 and numpy, for environments: small batches, one candidate each.

The same function as `Rankers` and `Calibration`; a float32 result does not depend on what else is
in the batch, and a batch of one costs microseconds.

Dims: B requests, K candidates, S recent items, A attributes, F count features, N ads, M organic
items, H hidden width, a attention width.
"""

import copy
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from gpr_rl.data.streams import IntArray
from simulators.rankers.network import Calibration, Rankers
from simulators.world.features import RankerInput

Float = NDArray[np.float64]
_MOST_ROWS = 2_048
"""Attributes share one table of sums while it has no more rows than this."""


def _array(x: Tensor) -> Float:
    return np.ascontiguousarray(x.detach().double().numpy())


@dataclass(frozen=True)
class _Sums:
    """Sums of embeddings over attributes, by every combination of some attributes' values."""

    stride: IntArray
    """[A], how many rows apart an attribute's neighbouring values are; 0 for the others."""
    table: Float
    """[product of the attributes' values, width]"""

    @classmethod
    def of(cls, tables: list[Float]) -> "list[_Sums]":
        """Join the attributes' tables, in order, while they stay small."""
        parts: list[_Sums] = []
        for table, own in zip(tables, np.eye(len(tables), dtype=np.int64), strict=True):
            if parts and len(parts[-1].table) * len(table) <= _MOST_ROWS:
                last = parts.pop()
                both = (last.table[:, None] + table).reshape(-1, table.shape[1])
                parts.append(cls(last.stride * len(table) + own, both))
            else:
                parts.append(cls(own, table))
        return parts

    @staticmethod
    def total(parts: "list[_Sums]", values: NDArray[np.integer]) -> Float:
        """Return the sums over all attributes, [B, width], for values [B, A]."""
        first, *others = (part.table.take(values.dot(part.stride), axis=0) for part in parts)
        for other in others:
            first += other
        return first


class ExactRankers:
    """Calibrated click and conversion probabilities in float64."""

    def __init__(self, rankers: Rankers, calibration: Calibration) -> None:
        """Copy the weights; later changes of the arguments have no effect."""
        rankers = copy.deepcopy(rankers).double().eval()
        config = rankers.config
        self._use_history, self._use_counts = config.use_history, config.use_counts
        self._scale = config.attention_dim**-0.5
        self._ad, self._query, self._key = (_array(table) for table in rankers.tables())
        self._action = _array(rankers.action.weight)

        def weights(modules: nn.ModuleList) -> list[Float]:
            return [_array(cast(nn.Embedding, module).weight) for module in modules]

        # request vector and factor of the match side by side: [., H + a]
        users = zip(weights(rankers.user), weights(rankers.user_factor), strict=True)
        self._user = _Sums.of([np.concatenate(pair, axis=1) for pair in users])
        self._context = _Sums.of(weights(rankers.context))
        inner, self._bias = (_array(x) for x in rankers.inner())
        first, self._first_bias, last, self._last_bias = (_array(x) for x in rankers.towers())
        self._inner, self._first, self._last = inner.T, first.T, np.ascontiguousarray(last.T)
        self._knots = _array(calibration.knots)
        start, end, slope = (_array(x) for x in calibration.segments)
        # a segment is the line offset + slope * logit
        self._line = np.stack([end - slope * start, slope], axis=-1)

    def __call__(self, inputs: RankerInput, counts: Float, ad_id: IntArray) -> Float:
        """Return click and conversion probabilities, [B, K, 2], as `Rankers.forward` takes them."""
        query = self._query.take(ad_id, axis=0)
        hidden = self._ad.take(ad_id, axis=0)
        user = inputs.user.numpy()
        of_user = _Sums.total(self._user, user)
        width = hidden.shape[-1]
        request, factor = of_user[:, :width], of_user[:, width:]
        context = inputs.context.numpy()
        request = request + _Sums.total(self._context, context) + self._bias
        wide = [query * factor[:, None]]
        if self._use_history:
            pooled = self._attend(inputs, query)
            wide += [pooled, pooled * query]
        if self._use_counts:
            wide.append(counts)
        joint = np.concatenate(wide, axis=-1)
        hidden += joint.reshape(-1, joint.shape[-1]).dot(self._inner).reshape(hidden.shape)
        hidden += request[:, None]
        middle = np.maximum(hidden, 0.0).reshape(-1, hidden.shape[-1]).dot(self._first)
        middle += self._first_bias
        logit = np.maximum(middle, 0.0, out=middle).dot(self._last) + self._last_bias
        return self._calibrate(logit).reshape(*ad_id.shape, 2)

    def _attend(self, inputs: RankerInput, query: Float) -> Float:
        """Return the recent items, gated by how well each fits the candidate, [B, K, a]."""
        key = self._key.take(inputs.recent_item.numpy(), axis=0)
        key += self._action.take(inputs.recent_action.numpy(), axis=0)
        score = np.matmul(query, key.transpose(0, 2, 1))
        score *= -self._scale
        gate = inputs.recent_known.numpy()[:, None] / (1.0 + np.exp(score, out=score))
        return np.matmul(gate, key) / key.shape[1] ** 0.5

    def _calibrate(self, logit: Float) -> Float:
        """Turn logits [R, 2] into calibrated probabilities, in place."""
        for task, knots in enumerate(self._knots):
            x = logit[:, task]
            line = self._line[task][knots.searchsorted(x)]
            x *= line[:, 1]
            x += line[:, 0]
        np.exp(np.negative(logit, out=logit), out=logit)
        logit += 1.0
        return np.reciprocal(logit, out=logit)
