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


def make_builder(
    events: pd.DataFrame, context: np.ndarray, max_tokens: int = MAX_TOKENS
) -> SequenceBuilder:
    return SequenceBuilder(
        events,
        item_codes=CODES,
        num_ads=NUM_ADS,
        request_context=context,
        user_attributes=USERS,
        preference=lambda user, time, today: np.zeros((len(user), LEVELS, 9), dtype=np.float32),
        max_tokens=max_tokens,
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


def log_with_delays() -> tuple[pd.DataFrame, np.ndarray]:
    """Events that share seconds, as slots of a page do, and outcomes that come late."""
    events, context = make_events(120)
    events["timestamp"] = np.sort(rng.integers(0, 60, 120)) * 50
    delay = rng.choice([0, 20, 400], 120) * (events["kind"] == 1)
    return events.assign(seen=events["timestamp"] + delay), context


@pytest.mark.parametrize("max_tokens", [8, 40])
@pytest.mark.parametrize("num_positions", [1, 5])
def test_every_supervised_request_reads_what_it_saw_when_it_was_served(
    max_tokens: int, num_positions: int
) -> None:
    events, context = log_with_delays()
    builder = make_builder(events, context, max_tokens)
    ads = events[events["kind"] == 1].set_index("request_id")
    kept = builder.window_pool(0, 10**6)
    assert len(kept) == len(ads)
    windows = builder.windows(kept, num_positions, 1, 10**6)
    request, valid = windows.request_id[..., 0].numpy(), windows.valid[..., 0].numpy()
    assert valid[:, -1].all()
    assert sorted(request[:, -1]) == sorted(ads.index)
    assert num_positions == 1 or valid.sum() > 1.5 * len(kept)
    served, _ = builder.tokens(
        ads["user_id"].to_numpy(), ads["timestamp"].to_numpy(), context[ads.index]
    )
    row = {number: i for i, number in enumerate(ads.index)}
    for b, p in np.argwhere(valid):
        end, own = int(windows.position[b, p]), row[request[b, p]]
        last = int(served.prompt_length[own]) - 1
        size = min(end, last)  # a window may begin later than the request's own sequence
        for name in ("kind", "codes", "action", "context", "time_gap"):
            size_here = size - (name == "time_gap")  # the first token of a window has no gap
            window = getattr(windows.tokens, name)[b, end + 1 - size_here : end + 1]
            assert torch.equal(window, getattr(served, name)[own, last + 1 - size_here : last + 1])
        assert windows.tokens.kind[b, end] == TokenType.ENVIRONMENT
    assert (windows.tokens.prompt_length - 1 == windows.position.amin(1)).all()


def test_windows_know_delayed_outcomes_only_afterwards() -> None:
    columns = ["user_id", "timestamp", "kind", "item_id", "action", "request_id", "seen"]
    rows = [(0, 100, 1, 0, 3, 0, 160), (0, 130, 1, 1, 2, 1, 130), (0, 300, 1, 2, 2, 2, 300)]
    builder = make_builder(pd.DataFrame(rows, columns=columns), np.full((3, 2), 5))
    windows = builder.windows(np.arange(3), 3, 2, 300)
    # in the order of what was seen: request 1, request 0, request 2
    assert windows.request_id[:, -1, 0].tolist() == [1, 0, -1]
    U, E, I = TokenType.USER, TokenType.ENVIRONMENT, TokenType.ITEM  # noqa: E741
    assert windows.tokens.kind.tolist() == [
        [U, E, 0, 0, 0, 0, 0, 0],
        [U, E, 0, 0, 0, 0, 0, 0],
        [U, E, I, E, I, E, 0, 0],
    ]
    # request 1 came when the first click was still to come; 0's sequence is no prefix of this one
    assert windows.request_id[2, :, 0].tolist() == [1, -1, -1]
    assert windows.position[2].tolist() == [1, 5, 5]
    assert windows.request_id[1, -1].tolist() == [0, 1]  # the next ad by time, not by outcome
    assert windows.tokens.time_gap[2].tolist() == [0, 0, 0, 0, bucket(60), bucket(140), 0, 0]
    assert builder.window_pool(100, 160).tolist() == [0]
    assert builder.window_pool(101, 301).tolist() == [0, 2]


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
