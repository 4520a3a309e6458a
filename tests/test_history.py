"""Strictly-past counts and popularity against plain loops over the event table."""

import numpy as np
import pandas as pd
import pytest
import torch

from gpr_rl.data.streams import Stream, ragged
from gpr_rl.schema import Action
from simulators.features import candidate_counts, count_features
from simulators.history import DAY_S, History, count_kinds

NUM_USERS, NUM_ADS, NUM_ORGANIC = 5, 6, 4


@pytest.fixture(scope="module")
def events() -> pd.DataFrame:
    rng = np.random.default_rng(3)
    n = 120
    kind = rng.integers(0, 2, n)
    return pd.DataFrame(
        {
            "user_id": rng.integers(0, NUM_USERS, n),
            "timestamp": np.sort(rng.choice(4 * DAY_S, n, replace=False)),
            "kind": kind,
            "item_id": np.where(kind == 1, rng.integers(0, NUM_ADS, n), rng.integers(0, 4, n)),
            "action": np.where(kind == 1, rng.integers(2, 5, n), int(Action.VIEW)),
        }
    )


@pytest.fixture(scope="module")
def group() -> np.ndarray:
    rng = np.random.default_rng(4)
    items = NUM_ADS + NUM_ORGANIC
    return np.stack(
        [rng.integers(0, 2, items), 2 + rng.integers(0, 3, items), 5 + np.arange(items) % 4], axis=1
    )


def test_ragged_lists_every_range() -> None:
    row, index = ragged(np.array([2, 5, 7]), np.array([4, 5, 10]))
    assert row.tolist() == [0, 0, 2, 2, 2]
    assert index.tolist() == [2, 3, 7, 8, 9]


def test_stream_before_excludes_the_moment_itself(events: pd.DataFrame) -> None:
    stream = Stream.build(events, ("item_id",), NUM_USERS)
    row = events.iloc[50]
    start, stop = stream.before(np.array([row.user_id]), np.array([row.timestamp]))
    earlier = events[(events.user_id == row.user_id) & (events.timestamp < row.timestamp)]
    assert stop[0] - start[0] == len(earlier)


def test_counts_equal_a_plain_loop(events: pd.DataFrame, group: np.ndarray) -> None:
    history = History(events, group, NUM_USERS, NUM_ADS)
    user = np.array([0, 3, 4, 2])
    time = np.array([2 * DAY_S + 500, 3 * DAY_S + 7_000, 0, 4 * DAY_S])
    got = count_kinds(torch.from_numpy(history.counts(user, time)))
    for b in range(len(user)):
        expected = np.zeros((history.num_groups, 5))
        past = events[(events.user_id == user[b]) & (events.timestamp < time[b])]
        for event in past.itertuples():
            item = event.item_id + (0 if event.kind == 1 else NUM_ADS)
            for g in group[item]:
                if event.action == Action.VIEW:
                    expected[g, 3] += 1
                    continue
                expected[g, 0] += 1
                expected[g, 1] += event.action >= Action.CLICK
                expected[g, 2] += event.action == Action.CONVERSION
                expected[g, 4] += event.timestamp // DAY_S >= time[b] // DAY_S - 1
        np.testing.assert_array_equal(got[b].numpy(), expected)


def test_candidate_counts_do_not_depend_on_where_they_are_computed(
    events: pd.DataFrame, group: np.ndarray
) -> None:
    history = History(events, group, NUM_USERS, NUM_ADS)
    table = torch.from_numpy(history.counts(np.arange(5), np.full(5, 4 * DAY_S)))
    groups = torch.from_numpy(group)
    few = torch.tensor([[1], [0], [5], [2], [3]])  # 3 rows < 9 groups: per candidate
    many = few.expand(-1, 6)  # 18 rows: per group
    one = candidate_counts(table, groups, few)
    torch.testing.assert_close(candidate_counts(table, groups, many)[:, :1], one)
    by_hand = count_features(table[2, groups[5]]).flatten()
    torch.testing.assert_close(one[2, 0], by_hand)


def test_popularity_is_the_share_of_past_successes(events: pd.DataFrame, group: np.ndarray) -> None:
    history = History(events, group, NUM_USERS, NUM_ADS)
    codes = np.array([[0, 1], [0, 2], [1, 0], [2, 2], [1, 1], [0, 0]])
    time = 3 * DAY_S
    got = history.popularity(np.array([1, 0]), np.array([time, 0]), codes, 3)
    past = events[(events.user_id == 1) & (events.timestamp < time) & (events.kind == 1)]
    paths = codes[past[past.action >= Action.CLICK].item_id]
    for level in range(2):
        expected = np.bincount(paths[:, level], minlength=3) / len(paths)
        np.testing.assert_allclose(got[0, level], expected, rtol=1e-6)
    assert (got[1] == 0).all()  # nothing before time 0
