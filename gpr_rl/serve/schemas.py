"""What `POST /recommend` takes and gives, as pydantic models."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_REQUESTS = 64
"""Requests in one call, at most."""

_Id = Annotated[int, Field(ge=0, lt=2**63)]
_Count = Annotated[int, Field(ge=1)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]  # JSON has no other numbers


class _Strict(BaseModel):
    """Takes whole numbers only as such, and no field that it doesn't know."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Wanted(_Strict):
    """One request for ads: a request of the world, or a user's latest one."""

    request_id: _Id | None = None
    user_id: _Id | None = None
    num_candidates: _Count | None = None
    """K; as many as the service was started with, at most and by default."""

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> "Wanted":
        if (self.request_id is None) == (self.user_id is None):
            raise ValueError("give either request_id or user_id")
        return self


class Body(_Strict):
    """One request, or several in `requests`."""

    request_id: _Id | None = None
    user_id: _Id | None = None
    num_candidates: _Count | None = None
    requests: Annotated[list[Wanted], Field(min_length=1, max_length=MAX_REQUESTS)] | None = None

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> "Body":
        if self.requests is None:
            self.single()
        elif not self.request_id is self.user_id is self.num_candidates is None:
            raise ValueError("give requests, or one request_id or user_id, not both")
        return self

    def single(self) -> Wanted:
        """Return the only request."""
        return Wanted(
            request_id=self.request_id, user_id=self.user_id, num_candidates=self.num_candidates
        )

    def wanted(self) -> list[Wanted]:
        """Return all that is asked for."""
        return [self.single()] if self.requests is None else self.requests


class Ad(BaseModel):
    """One ad of a list."""

    ad_id: int
    name: str
    category: int | None
    advertiser: int | None
    """Both None for an ad that the world's table doesn't have."""
    codes: list[int]
    """Its semantic ID, L codes."""
    log_prob: _Finite
    """Of the whole path under the policy, nats."""
    level_log_probs: list[_Finite]
    """Of each code after those before it; their sum is `log_prob`."""
    value: _Finite | None
    """What the critic expects once all codes but the last are chosen, in units of the reward
    divided by its scale; None where it is not finite."""
    ecpm: _Finite | None
    """What the rankers expect of a thousand impressions, in currency; None for an ad that they
    don't know."""


class Listed(BaseModel):
    """The answer to one request."""

    request_id: int
    user_id: int
    ads: list[Ad]
    """Best first; fewer than asked for where fewer are legal or the beam was narrower."""
    width: int
    """Of the beam that found them."""
    cached: bool
    latency_ms: float
    """In the recommender, from submission to answer."""
    catalogue_version: int


class Several(BaseModel):
    """The answers to `requests`, in their order."""

    answers: list[Listed]


class Health(BaseModel):
    """How the service is."""

    status: str
    """`ok`, or `draining` after it was told to stop."""
    catalogue_version: int
    queue_length: int
    width: int


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str
