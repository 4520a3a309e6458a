"""A world as the HTTP side sees it: requests to look up, candidates to describe.

Dims: B requests, K candidates, L levels.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from gpr_rl.decoding.serve import Answer
from gpr_rl.decoding.serving.answer import resized
from gpr_rl.schema import Candidates, Request
from gpr_rl.serve.schemas import Ad, Listed, Wanted


class UnknownError(LookupError):
    """A user or a request that the world doesn't have."""


class ServedWorld:
    """Looks up requests of a world and describes the ads that answer them.

    Args:
        world: With `request`, `outcome`, its logged requests and the table `ads`.
    """

    def __init__(self, world: Any) -> None:
        self._world = world
        user, time = np.asarray(world.request_user), np.asarray(world.request_time)
        order = np.lexsort((time, user))
        self._latest = np.full(len(world.users), -1)
        self._latest[user[order]] = order  # the last one stays
        ads = world.ads
        self._name = ads["name"].to_list() if "name" in ads else [None] * len(ads)
        self._category, self._advertiser = (ads[x].to_list() for x in ("category", "advertiser"))

    def request_ids(self, wanted: Sequence[Wanted]) -> list[int]:
        """Return the ids of requests.

        Raises:
            UnknownError: The world has no such request, no such user, or none of that user's.
        """
        return [self._request_id(one) for one in wanted]

    def _request_id(self, wanted: Wanted) -> int:
        if wanted.request_id is not None:
            if wanted.request_id >= self._world.num_requests:
                raise UnknownError(f"unknown request {wanted.request_id}")
            return wanted.request_id
        assert wanted.user_id is not None
        if wanted.user_id >= len(self._latest):
            raise UnknownError(f"unknown user {wanted.user_id}")
        latest = int(self._latest[wanted.user_id])
        if latest < 0:
            raise UnknownError(f"user {wanted.user_id} has no request")
        return latest

    def requests(self, request_ids: Sequence[int]) -> list[Request]:
        """Return what the policy may know of requests, one by one."""
        whole: Request = self._world.request(torch.tensor(request_ids))
        return [whole[i : i + 1] for i in range(len(request_ids))]

    def describe(
        self, request_ids: Sequence[int], found: Sequence[Candidates], answers: Sequence[Answer]
    ) -> list[Listed]:
        """Return the lists of ads that requests are answered with; the rankers are asked once."""
        longest = max(one.valid.shape[1] for one in found)
        whole: Any = torch.cat([resized(one, longest) for one in found]).cpu()  # Candidates
        ids = torch.tensor(request_ids)
        is_known = whole.valid & (whole.ad_id < len(self._name))
        outcome = self._world.outcome(ids, whole.ad_id.where(is_known, -1))
        ecpm = outcome.ecpm.double().where(is_known.to(outcome.ecpm.device), math.nan).tolist()
        users = self._world.request_user[np.asarray(request_ids)].tolist()
        return [
            Listed(
                request_id=request_id,
                user_id=user_id,
                ads=self._ads(whole[i], ecpm[i]),
                width=answer.width,
                cached=answer.cached,
                latency_ms=answer.latency_ms,
                catalogue_version=answer.version,
            )
            for i, (request_id, user_id, answer) in enumerate(
                zip(request_ids, users, answers, strict=True)
            )
        ]

    def _ads(self, one: Candidates, ecpm: list[float]) -> list[Ad]:
        """Return the valid candidates of one request, batch []."""
        number = int(one.valid.sum())  # they come first
        log_prob = one.log_prob[:number].double()
        columns = (
            one.ad_id[:number].tolist(),
            one.codes[:number].tolist(),
            log_prob.tolist(),
            log_prob.sum(-1).tolist(),
            one.value[:number, -1].double().tolist(),
            ecpm[:number],
        )
        return [self._ad(*row) for row in zip(*columns, strict=True)]

    def _ad(
        self,
        ad_id: int,
        codes: list[int],
        level_log_probs: list[float],
        log_prob: float,
        value: float,
        ecpm: float,
    ) -> Ad:
        is_known = ad_id < len(self._name)
        name = self._name[ad_id] if is_known else None
        return Ad(
            ad_id=ad_id,
            name=name if isinstance(name, str) and name else f"ad {ad_id}",
            category=self._category[ad_id] if is_known else None,
            advertiser=self._advertiser[ad_id] if is_known else None,
            codes=codes,
            log_prob=log_prob,
            level_log_probs=level_log_probs,
            value=_finite(value),
            ecpm=_finite(ecpm),
        )


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None
