"""Token sequences of requests against a plain loop over the event table."""

import numpy as np
import pandas as pd
import pytest
import torch

from gpr_rl.data.sequences import SequenceBuilder
from gpr_rl.schema import NUM_TIME_GAPS, Action, TokenType
from simulators.make import load_world

NUM_USERS, NUM_ADS, NUM_ORGANIC, LEVELS, MAX_TOKENS = 4, 5, 3, 2, 8
rng = np.random.default_rng(0)
CODES = rng.integers(1, 9, (NUM_ADS + NUM_ORGANIC, LEVELS))
USERS = rng.integers(0, 9, (NUM_USERS, 3))
Row = tuple[int, list[int], int, list[int], int]  # kind, codes, action, context, time


def make_events(size: int) -> tuple[pd.DataFrame, np.ndarray]:
    kind = rng.integers(0, 2, size)
    item = np.where(kind == 1, rng.integers(0, NUM_ADS, size), rng.integers(0, NUM_ORGANIC, size))
    events = pd.DataFrame(
        {
            "user_id": rng.integers(0, NUM_USERS - 1, size),  # the last user never does anything
            "timestamp": np.sort(rng.choice(40 * 3_600, size, replace=False)) * 20,
            "kind": kind,
            "item_id": item,
            "action": np.where(kind == 1, rng.integers(2, 5, size), int(Action.VIEW)),
            "request_id": np.where(kind == 1, np.cumsum(kind) - 1, -1),
        }
    )
    return events, rng.integers(1, 7, (max(int(kind.sum()), 1), 2))


def make_builder(events: pd.DataFrame, context: np.ndarray) -> SequenceBuilder:
    return SequenceBuilder(
        events,
        item_codes=CODES,
        num_ads=NUM_ADS,
        request_context=context,
        user_attributes=USERS,
        preference=lambda user, time: np.zeros((len(user), LEVELS, 9), dtype=np.float32),
        max_tokens=MAX_TOKENS,
    )


def past_tokens(events: pd.DataFrame, context: np.ndarray, user: int, time: int) -> list[Row]:
    rows: list[Row] = []
    for e in events[(events.user_id == user) & (events.timestamp < time)].itertuples():
        if e.kind == 0:
            path = CODES[NUM_ADS + e.item_id].tolist()
            rows.append((TokenType.ORGANIC, path, Action.VIEW, [0, 0], e.timestamp))
        else:
            seen = context[e.request_id].tolist()
            rows.append((TokenType.ENVIRONMENT, [0] * LEVELS, Action.NONE, seen, e.timestamp))
            path = CODES[e.item_id].tolist()
            rows.append((TokenType.ITEM, path, e.action, [0, 0], e.timestamp))
    rows = rows[-(MAX_TOKENS - 2) :]
    return rows[1:] if rows and rows[0][0] == TokenType.ITEM else rows


def bucket(seconds: int) -> int:
    """Bucket b > 0 covers [2^(b + 2), 2^(b + 3)) seconds."""
    return min(max(seconds.bit_length() - 3, 0), NUM_TIME_GAPS - 1)


@pytest.mark.parametrize("size", [0, 60])
def test_tokens_equal_a_plain_loop(size: int) -> None:
    events, context = make_events(size)
    user = rng.integers(0, NUM_USERS, 80)
    time = np.r_[rng.integers(0, 41 * 72_000, 50), np.resize(events["timestamp"], 30)]
    time = time.astype(np.int64) if size else np.arange(80)
    own = rng.integers(1, 7, (80, 2))
    builder = make_builder(events, context)
    tokens, _ = builder.tokens(user, time, own)
    heads = set()
    for b in range(80):
        past = past_tokens(events, context, int(user[b]), int(time[b]))
        rows: list[Row] = [(TokenType.USER, [0] * LEVELS, 0, [0, 0], 0), *past]
        rows.append((TokenType.ENVIRONMENT, [0] * LEVELS, 0, own[b].tolist(), int(time[b])))
        gap = [0, 0] + [bucket(int(rows[i][4] - rows[i - 1][4])) for i in range(2, len(rows))]
        length = len(rows)
        heads.add((len(past), past[0][0] if past else None))
        assert tokens.prompt_length[b] == length
        padding = MAX_TOKENS - length
        assert tokens.kind[b].tolist() == [r[0] for r in rows] + [0] * padding
        assert tokens.codes[b].tolist() == [r[1] for r in rows] + [[0] * LEVELS] * padding
        assert tokens.action[b].tolist() == [r[2] for r in rows] + [0] * padding
        assert tokens.context[b].tolist() == [r[3] for r in rows] + [[0, 0]] * padding
        assert tokens.time_gap[b].tolist() == gap + [0] * padding
        assert tokens.user[b].tolist() == USERS[user[b]].tolist()
    assert size == 0 or len(heads) > 5  # full and cut windows, and users without a past


def test_items_stand_where_their_tokens_are() -> None:
    world = load_world("tiny")
    ids = world.request_ids("test")[:40]
    user, time = world.request_user[ids], world.request_time[ids]
    tokens, _ = world.sequences.tokens(user, time, world.request_context[ids])
    item = torch.from_numpy(world.sequences.items(user, time))
    is_item = (tokens.kind == TokenType.ITEM) | (tokens.kind == TokenType.ORGANIC)
    assert torch.equal(item >= 0, is_item)
    assert torch.equal(world.item_codes[item[is_item]], tokens.codes[is_item])
    assert ((item >= world.num_ads) == (tokens.kind == TokenType.ORGANIC)).all()
