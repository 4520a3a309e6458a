"""Strictly-past counts and popularity against plain loops over the event table."""

import numpy as np
import pandas as pd
import pytest
import torch

from gpr_rl.data.streams import Stream, ragged
from gpr_rl.schema import Action
from simulators.world.counts import CountIndex
from simulators.world.features import PastCounts, candidate_counts, count_features
from simulators.world.history import DAY_S, History, count_kinds

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


def test_looked_up_counts_are_rows_of_the_histogram(
    events: pd.DataFrame, group: np.ndarray
) -> None:
    same_ad = np.r_[np.arange(NUM_ADS), [2, NUM_ADS, 0, 2]]
    history = History(events, group, NUM_USERS, NUM_ADS, same_ad)
    rng = np.random.default_rng(5)
    user = rng.integers(0, NUM_USERS, 300)
    time = np.r_[rng.integers(-DAY_S, 6 * DAY_S, 150), rng.choice(events["timestamp"], 150)]
    time[:3] = 0, DAY_S, 2**39
    groups = rng.integers(0, history.num_groups, (300, 4))
    want = np.take_along_axis(history.counts(user, time), groups[..., None], axis=1)
    got = history.group_counts(user, time, groups)
    np.testing.assert_array_equal(got, want)
    assert got.dtype == np.int64
    assert want.any(axis=(0, 1)).all()
    ads = rng.integers(0, NUM_ADS, (300, 5))
    repeats = history.repeats(user, time)
    assert repeats is not None
    few = history.ad_repeats(user, time, ads)
    np.testing.assert_array_equal(few, np.take_along_axis(repeats, ads, axis=1))
    # the rankers' inputs are the same floats either way
    past = PastCounts(history, user, time)
    few_ads, groups_of = torch.from_numpy(ads), torch.from_numpy(group)
    looked_up = past.of(groups_of, few_ads)
    many = past.of(groups_of, few_ads.repeat(1, 4))
    assert torch.equal(looked_up.repeat(1, 4, 1), many)
    assert past.of(groups_of, few_ads[:, :1]).shape == (300, 1, looked_up.shape[-1])
    np.testing.assert_allclose(
        past.exact(groups_of, few_ads), looked_up.numpy(), rtol=1e-6, atol=1e-7
    )
    nobody = PastCounts(history, user[:0], time[:0])
    assert nobody.exact(groups_of, few_ads[:0]).shape == (0, 5, looked_up.shape[-1])
    assert nobody.of(groups_of, few_ads[:0]).shape == (0, 5, looked_up.shape[-1])


def test_counts_of_a_log_without_events() -> None:
    none = CountIndex(*(np.zeros(0, dtype=np.int64),) * 3, num_kinds=2)
    assert none.before(np.array([[0, 7]]), np.array([[5]])).tolist() == [[[0, 0], [0, 0]]]
    with pytest.raises(ValueError, match=r"cell numbers must lie below \d+, got"):
        CountIndex(np.array([2**40]), np.array([2**30]), np.array([0]), num_kinds=1)
