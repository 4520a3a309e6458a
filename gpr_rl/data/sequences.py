"""From an event table to the unified token sequence (GPR 2.1) and its supervision (GPR 3.1).

A user's stream holds one ORGANIC token per organic view and an ENVIRONMENT and an ITEM token per
ad impression, at the time when its outcome was known. A request sees the latest tokens strictly
before its own time, behind a USER token, and ends with its own ENVIRONMENT token. A training window
is the sequence of its last request, which is supervised, and so are those of the P - 1 requests
before it that saw just what stands before their ENVIRONMENT tokens: not one that shares its second
with an earlier event, or whose outcome came after later events.

Dims: B requests or windows, T tokens, L levels, V codes, C attributes, P positions, N heads.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from gpr_rl.data.streams import IntArray, Stream, Today
from gpr_rl.schema import Action, Tokens, TokenType, time_gap_bucket

Preference = Callable[[IntArray, IntArray, Today | None], NDArray[np.float32]]


@dataclass(frozen=True)
class Windows:
    """B training windows: tokens, and which requests are supervised where."""

    tokens: Tokens
    position: torch.Tensor  # int64 [B, P], index of the E token
    request_id: torch.Tensor  # int64 [B, P, N], the request that head n predicts; -1 if none
    valid: torch.Tensor  # bool [B, P, N]


class SequenceBuilder:
    """Builds token sequences for requests and windows of one event table.

    Args:
        events: user_id, timestamp, kind (0 organic view, 1 ad), item_id, action, request_id, and
            `seen`, from when on an event is part of the past, where that is not `timestamp`.
        item_codes: int64 [N + M, L], paths of ads, then of organic items.
        num_ads: N.
        request_context: int64 [R, C], attributes of every request's ENVIRONMENT token.
        user_attributes: int64 [U, A].
        preference: (user_id [B], timestamp [B], today) -> float32 [B, L, V], the past-success share
            per code that the USER token carries.
        max_tokens: T.
    """

    def __init__(
        self,
        events: pd.DataFrame,
        *,
        item_codes: IntArray,
        num_ads: int,
        request_context: IntArray,
        user_attributes: IntArray,
        preference: Preference,
        max_tokens: int,
    ) -> None:
        self.request_context = request_context
        self.user_attributes = user_attributes
        self.preference = preference
        self.max_tokens = max_tokens
        self._item_codes = item_codes
        is_ad = (events["kind"] == 1).to_numpy()
        item = events["item_id"].to_numpy() + np.where(is_ad, 0, num_ads)
        repeat = np.where(is_ad, 2, 1)
        tokens = events.loc[:, ["user_id", "timestamp", "action", "request_id"]]
        tokens = tokens.assign(item=item, asked=events["timestamp"])
        if "seen" in events:
            tokens["timestamp"] = events["seen"]
        tokens = tokens.loc[events.index.repeat(repeat)]
        second = np.r_[False, tokens.index.to_numpy()[1:] == tokens.index.to_numpy()[:-1]]
        ad_token = np.repeat(is_ad, repeat)
        kind = np.where(
            ad_token, np.where(second, TokenType.ITEM, TokenType.ENVIRONMENT), TokenType.ORGANIC
        )
        tokens["kind"] = kind
        tokens.loc[kind == TokenType.ENVIRONMENT, "action"] = int(Action.NONE)
        names = ("timestamp", "asked", "action", "request_id", "item", "kind")
        self._stream = Stream.build(tokens, names, len(user_attributes))
        columns = self._stream.columns
        is_environment = columns["kind"] == TokenType.ENVIRONMENT
        codes = np.where(is_environment[:, None], 0, item_codes[columns["item"]])
        asked = request_context[np.maximum(columns["request_id"], 0)]
        asked_at, seen_at = columns["asked"], columns["timestamp"]
        gap = np.diff(np.where(is_environment, asked_at, seen_at), prepend=0)
        self._tokens = {
            "kind": _padded(columns["kind"]),
            "codes": _padded(codes),
            "action": _padded(columns["action"]),
            "time_gap": _padded(time_gap_bucket(torch.from_numpy(gap)).numpy()),
            "context": _padded(np.where(is_environment[:, None], asked, 0)),
        }
        self._time = np.r_[columns["timestamp"], 0]
        self._item = np.r_[np.where(is_environment, -1, columns["item"]), -1]
        self._ad_token = np.flatnonzero(is_environment)  # where each kept request's E token is
        self._ad_request = columns["request_id"][is_environment]
        self._ad_user = np.searchsorted(self._stream.start, self._ad_token, side="right") - 1
        self._ad_asked, self._ad_seen = asked_at[is_environment], seen_at[is_environment]
        follows = self._ad_token > self._stream.start[self._ad_user]
        self._in_order = ~follows | (seen_at[self._ad_token - 1] < self._ad_asked)
        self._by_asked = np.lexsort([self._ad_asked, self._ad_user])
        self._rank = np.argsort(self._by_asked)

    def tokens(
        self,
        user_id: IntArray,
        timestamp: IntArray,
        context: IntArray,
        today: Today | None = None,
    ) -> tuple[Tokens, IntArray]:
        """Return the sequences of requests, each ending with its own ENVIRONMENT token.

        Users and timestamps are int64 [B], `context` is int64 [B, C]. Only events strictly before
        the timestamp are seen; `today` is of a day in progress: what follows those before its
        `since`.

        Returns:
            Tokens with every token in the prompt block, and the stream row of position 1, [B].
        """
        first, stop, rows = self._rows(user_id, timestamp if today is None else today.since)
        length = stop - first
        last_time = np.where(length > 0, self._time[stop - 1], 0)
        taken = {
            name: np.take(values, rows, axis=0).astype(np.int64)
            for name, values in self._tokens.items()
        }
        if today is not None and today.kept.any():
            length, last_time = self._append(taken, length, last_time, today)
        batch, last = np.arange(len(user_id)), length + 1
        taken["kind"][:, 0] = TokenType.USER
        taken["kind"][batch, last] = TokenType.ENVIRONMENT
        taken["context"][batch, last] = context
        taken["time_gap"][:, 1] = 0  # the USER token has no time
        waited = np.where(length > 0, timestamp - last_time, 0)
        taken["time_gap"][batch, last] = time_gap_bucket(torch.from_numpy(waited)).numpy()
        tokens = Tokens(
            **{name: torch.from_numpy(values) for name, values in taken.items()},
            user=torch.from_numpy(self.user_attributes[user_id]),
            preference=torch.from_numpy(self.preference(user_id, timestamp, today)),
            prompt_length=torch.from_numpy(length + 2),
            batch_size=[len(user_id)],
        )
        return tokens, first

    def items(self, user_id: IntArray, timestamp: IntArray) -> IntArray:
        """Return the item of every token of `tokens`, [B, T]: ads, then organic items; -1: none."""
        _, _, rows = self._rows(user_id, timestamp)
        return np.take(self._item, rows)

    def _rows(
        self, user_id: IntArray, timestamp: IntArray
    ) -> tuple[IntArray, IntArray, NDArray[np.int64]]:
        """Return the stream rows [first, stop) that requests see, and the row of each position."""
        start, stop = self._stream.before(user_id, timestamp)
        first = np.maximum(start, stop - (self.max_tokens - 2))
        kinds = self._tokens["kind"]
        first = first + ((first < stop) & (kinds[first] == TokenType.ITEM))  # headless
        column = np.arange(self.max_tokens)
        past = (column >= 1) & (column <= (stop - first)[:, None])
        return first, stop, np.where(past, first[:, None] + (column - 1), len(kinds) - 1)  # padding

    def _append(
        self, taken: dict[str, IntArray], length: IntArray, last_time: IntArray, today: Today
    ) -> tuple[IntArray, IntArray]:
        """Put today's tokens behind those taken, in place; return new lengths and last times."""
        organic = today.action == Action.VIEW
        kept = np.repeat(today.kept, 2, axis=1)  # an event's E and I side by side
        kept[:, ::2] &= ~organic
        when = np.where(kept, np.repeat(today.time, 2, axis=1), 0)
        latest = np.maximum.accumulate(np.c_[last_time, when], axis=1)
        gap = torch.from_numpy(when - latest[:, :-1])
        fresh = {
            "kind": _pairs(
                TokenType.ENVIRONMENT, np.where(organic, TokenType.ORGANIC, TokenType.ITEM)
            ),
            "codes": _pairs(0, self._item_codes[today.item]),
            "action": _pairs(Action.NONE, today.action),
            "time_gap": time_gap_bucket(gap).numpy(),
            "context": _pairs(today.context, 0),
        }
        every = {name: np.concatenate([taken[name], fresh[name]], axis=1) for name in taken}
        column, batch = np.arange(self.max_tokens), np.arange(len(length))
        known = np.c_[(column >= 1) & (column <= length[:, None]), kept]
        seen = known & (known[:, ::-1].cumsum(axis=1)[:, ::-1] <= self.max_tokens - 2)
        first = seen.argmax(axis=1)
        seen[batch, first] &= every["kind"][batch, first] != TokenType.ITEM  # headless
        length = seen.sum(axis=1)
        order = np.argsort(~seen, axis=1, kind="stable")[:, : self.max_tokens - 1]
        for name, values in taken.items():
            values[:, 1:] = every[name][batch[:, None], order]
            values[column > length[:, None]] = 0
        return length, latest[:, -1]

    def window_pool(self, first_time: int, last_time: int | IntArray) -> IntArray:
        """Return the kept requests from first_time on, seen before last_time (one or [U])."""
        last = self._of_users(last_time, self._ad_user)
        return np.flatnonzero((self._ad_asked >= first_time) & (self._ad_seen < last))

    def _of_users(self, time: int | IntArray, user_id: IntArray) -> IntArray:
        return np.broadcast_to(np.asarray(time), len(self.user_attributes))[user_id]

    def windows(
        self, kept: IntArray, num_positions: int, num_heads: int, last_time: int | IntArray
    ) -> Windows:
        """Return training windows that end at the given kept requests (`window_pool`).

        P is the number of supervised requests per window at most, the last ones of the window, N
        how many next ads are predicted at each position. Ads seen at or after `last_time`, of all
        users or int64 [U] of each, are never targets.
        """
        user, asked = self._ad_user[kept], self._ad_asked[kept]
        tokens, first = self.tokens(user, asked, self.request_context[self._ad_request[kept]])
        _, stop = self._stream.before(user, asked)
        before = np.searchsorted(self._ad_token, stop)[:, None] + np.arange(1 - num_positions, 0)
        inside = np.maximum(before, 0)
        row = self._ad_token[inside]
        supervised = (before >= 0) & (row >= first[:, None]) & self._in_order[inside]
        inside = np.c_[inside, kept]
        supervised = np.c_[supervised, np.ones(len(kept), dtype=bool)]
        position = np.c_[row, stop] - first[:, None] + 1
        position = np.where(supervised, position, position[:, -1:])
        earliest = inside[np.arange(len(kept)), supervised.argmax(-1)]
        heads = self._rank[inside][..., None] + np.arange(num_heads)
        known = heads < len(self._ad_user)
        heads = self._by_asked[np.minimum(heads, len(self._ad_user) - 1)]
        valid = (
            supervised[..., None]
            & known
            & (self._ad_user[heads] == user[:, None, None])
            & (self._ad_seen[heads] < self._of_users(last_time, user)[:, None, None])
        )
        # the prompt ends with the first supervised request, and the USER token is set there
        tokens.prompt_length = torch.from_numpy(position.min(-1) + 1)
        tokens.preference = torch.from_numpy(self.preference(user, self._ad_asked[earliest], None))
        request_id = np.where(valid, self._ad_request[heads], -1)
        return Windows(tokens, *(torch.from_numpy(x) for x in (position, request_id, valid)))

    def window_items(self, kept: IntArray) -> IntArray:
        """Return `items` of the windows that end at the given kept requests."""
        return self.items(self._ad_user[kept], self._ad_asked[kept])


def _pairs(environment: NDArray | int, item: NDArray | int) -> NDArray:
    """Return columns [B, 2W, ...] from those of E and of I tokens, [B, W, ...]."""
    both = np.stack(np.broadcast_arrays(environment, item), axis=2)
    return both.reshape(len(both), 2 * both.shape[1], *both.shape[3:])


def _padded(values: NDArray) -> NDArray[np.int32]:
    """Return the rows and one of zeros, which is what padding holds."""
    return np.concatenate([values, np.zeros_like(values, shape=(1, *values.shape[1:]))]).astype(
        np.int32
    )
