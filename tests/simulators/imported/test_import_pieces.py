"""The steps of an import, each with answers worked out by hand or by plain loops."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from gpr_rl.schema import Action
from simulators.imported.config import ImportConfig
from simulators.imported.days import last_days, split_days
from simulators.imported.events import (
    attribute,
    event_table,
    find_visits,
    sample_unbought,
    spread_visits,
    unbought_share,
)
from simulators.imported.items import most_frequent, positions
from simulators.imported.labels import group_numbers, label_codes, number_scenes
from simulators.imported.readers.checks import CheckCounts
from simulators.imported.rows import UNKNOWN, Log, Numbers, read_log
from tests.simulators.imported.logs_in_memory import DAY_S, START, MemoryLog, rows

SHOWN, CLICK, BUY, VIEW = (
    int(a) for a in (Action.IMPRESSION, Action.CLICK, Action.CONVERSION, Action.VIEW)
)
HOUR_S = 3_600


def _acts(*cells: tuple[int, int, int, int]) -> pd.DataFrame:
    return pd.DataFrame(cells, columns=["user_id", "item", "timestamp", "action"])


def _opened(table: pd.DataFrame, window_s: int = DAY_S) -> list[tuple[int, ...]]:
    found = attribute(table, window_s)
    return [tuple(row) for row in found[["user_id", "item", "timestamp", "action", "seen"]].values]


def test_an_outcome_belongs_to_the_last_impression_within_the_window() -> None:
    table = _acts(
        (0, 7, 100, SHOWN),
        (0, 7, 200, SHOWN),
        (0, 7, 210, CLICK),  # of the impression at 200
        (0, 7, 230, CLICK),  # a second click changes nothing
        (0, 7, 300, BUY),  # of the impression at 200 as well
        (0, 8, 205, CLICK),  # no impression of item 8: a request of its own
        (1, 7, 100, CLICK),  # another user's
        (0, 9, 100, SHOWN),
        (0, 9, 100 + DAY_S, CLICK),  # the last second of the window
        (0, 6, 100, SHOWN),
        (0, 6, 101 + DAY_S, CLICK),  # a second too late
    )
    assert _opened(table) == [
        (0, 6, 100, SHOWN, 100),
        (0, 7, 100, SHOWN, 100),
        (0, 9, 100, CLICK, 100 + DAY_S),
        (1, 7, 100, CLICK, 100),
        (0, 7, 200, BUY, 300),
        (0, 8, 205, CLICK, 205),
        (0, 6, 101 + DAY_S, CLICK, 101 + DAY_S),
    ]


def test_without_an_impression_a_click_opens_and_conversions_are_its_outcome() -> None:
    table = _acts((0, 1, 10, CLICK), (0, 1, 50, BUY), (0, 2, 20, BUY), (0, 2, 60, BUY))
    assert _opened(table) == [(0, 1, 10, BUY, 50), (0, 2, 20, BUY, 20), (0, 2, 60, BUY, 60)]


def test_what_happens_in_one_second_is_one_exposure() -> None:
    table = _acts((0, 1, 10, BUY), (0, 1, 10, CLICK), (0, 1, 10, SHOWN))
    assert _opened(table) == [(0, 1, 10, BUY, 10)]


def test_attribution_agrees_with_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "user_id": rng.integers(0, 3, 400),
            "item": rng.integers(0, 4, 400),
            "timestamp": rng.integers(0, 3_000, 400),
            "action": rng.choice([SHOWN, CLICK, BUY], 400),
        }
    ).drop_duplicates(ignore_index=True)
    window = 60
    open_rows: list[list[int]] = []
    for outcome in (SHOWN, CLICK, BUY):
        new = []
        for user, item, time, action in table[table["action"] == outcome].values.tolist():
            fits = [r for r in open_rows if r[:2] == [user, item] and 0 <= time - r[2] <= window]
            # the latest one, and among those of one second the one with the later action
            best = max(fits, key=lambda r: (r[2], r[4])) if fits and outcome != SHOWN else None
            if best is None:
                new.append([user, item, time, action, action])
            else:
                best[3] = max(best[3], outcome)
        open_rows += new
    expected = sorted(row[:4] for row in open_rows)
    got = attribute(table, window)
    assert sorted(got[["user_id", "item", "timestamp", "action"]].values.tolist()) == expected


def test_visits_are_users_at_a_time_and_place() -> None:
    table = _acts(
        (1, 5, 30, BUY), (0, 5, 20, BUY), (0, 6, 20, BUY), (0, 6, 40, SHOWN), (0, 7, 20, CLICK)
    )
    table = table.assign(place=[0, 0, 0, 0, 1], scene=UNKNOWN)
    visits, visit = find_visits(table)
    found = visits[["user_id", "timestamp", "place"]].values.tolist()
    assert found == [[0, 20, 0], [0, 20, 1], [1, 30, 0]]
    assert visit.tolist() == [2, 0, 0, -1, 1]


def test_share_of_unbought_exposures() -> None:
    legal = csr_matrix(np.array([[True, True, True, False], [False, False, True, False]]))
    assert legal.indices.tolist() == [0, 1, 2, 2]
    # three visits could see 3 + 3 + 1 ads, of which 2 were taken: 5 are left for 3 x 0.5
    rows_of_visits = np.array([0, 0, 1])
    assert unbought_share(legal, rows_of_visits, 2, 0.5) == pytest.approx(0.3)
    assert unbought_share(legal, rows_of_visits, 2, 9.0) == 1.0
    visit, ad_id = sample_unbought(
        legal, rows_of_visits, np.array([0, 2]), np.array([1, 2]), 1.0, np.random.default_rng(0)
    )
    assert list(zip(visit.tolist(), ad_id.tolist(), strict=True)) == [
        (0, 0), (0, 2), (1, 0), (1, 1), (1, 2)
    ]  # fmt: skip


def test_each_unbought_exposure_is_kept_with_the_same_chance() -> None:
    table = np.random.default_rng(1).random((5, 40)) < 0.5
    legal, place = csr_matrix(table), np.arange(20_000) % 5
    taken = np.array([np.flatnonzero(table[p])[0] for p in place])
    share, rng = 0.03, np.random.default_rng(2)
    visit, ad_id = sample_unbought(legal, place, np.arange(len(place)), taken, share, rng)
    assert table[place[visit], ad_id].all()
    assert (ad_id != taken[visit]).all()
    kept = np.zeros((5, 40))
    np.add.at(kept, (place[visit], ad_id), 1)
    could = table * 4_000.0
    could[np.arange(5), taken[:5]] = 0
    assert (kept[could == 0] == 0).all()
    z = (kept - share * could)[could > 0] / np.sqrt(share * (1 - share) * 4_000)
    assert np.abs(z).max() < 4
    assert z.var() == pytest.approx(1, abs=0.35)
    # the number that is kept is not fixed per visit: it is binomial
    count = np.bincount(visit, minlength=len(place))
    size = table.sum(1)[place] - 1
    assert count.var() == pytest.approx((share * (1 - share) * size).mean(), rel=0.1)


def test_later_visits_do_not_change_what_is_kept_of_earlier_ones() -> None:
    legal, place = csr_matrix(np.ones((1, 50), dtype=bool)), np.zeros(9_000, dtype=np.int64)
    bought = np.arange(9_000), np.full(9_000, 3)
    whole = sample_unbought(legal, place, *bought, 0.4, np.random.default_rng(5))
    part = sample_unbought(
        legal, place[:4_000], *(x[:4_000] for x in bought), 0.4, np.random.default_rng(5)
    )
    early = whole[0] < 4_000
    np.testing.assert_array_equal(whole[0][early], part[0])
    np.testing.assert_array_equal(whole[1][early], part[1])


def test_events_of_a_visit_have_a_second_each_and_visits_do_not_overlap() -> None:
    visits = pd.DataFrame(
        {"user_id": [0, 1, 0], "timestamp": [100, 100, 102], "place": UNKNOWN, "scene": UNKNOWN}
    )
    events = pd.DataFrame(
        {
            "visit": [0, 0, 0, 0, 1, 2],
            "item_id": [4, 5, 6, 7, 4, 4],
            "kind": [0, 1, 1, 1, 1, 1],
            "action": [VIEW, BUY, SHOWN, SHOWN, BUY, BUY],
            "delay": [0, 50, 0, 0, 0, 0],
        }
    )
    table = spread_visits(visits, events, np.random.default_rng(0))
    first = table.iloc[:4]
    assert first["timestamp"].tolist() == [100, 101, 102, 103]
    assert first["kind"].tolist() == [1, 1, 1, 0]
    assert sorted(first["item_id"][:3]) == [5, 6, 7]
    bought = first[first["action"] == BUY].iloc[0]
    assert bought["seen"] == bought["timestamp"] + 50
    assert table.iloc[4:]["timestamp"].tolist() == [100, 104]  # the first visit lasts until 103
    orders = {
        tuple(spread_visits(visits, events, np.random.default_rng(seed))["item_id"][:3])
        for seed in range(60)
    }
    assert len(orders) == 6


def test_requests_are_numbered_in_order_of_time() -> None:
    table = pd.DataFrame(
        {
            "user_id": [1, 0, 0],
            "timestamp": [50, 20, 70],
            "seen": [50, 20, 70],
            "kind": [1, 0, 1],
            "item_id": [3, 4, 5],
            "action": [SHOWN, VIEW, CLICK],
            "scene": [1, 1, 1],
        }
    )
    events = event_table(table)
    assert events["timestamp"].tolist() == [20, 50, 70]
    assert events["request_id"].tolist() == [-1, 0, 1]
    assert events["scene"].tolist() == [0, 1, 1]
    assert "seen" not in events
    assert event_table(table.assign(seen=[50, 20, 90]))["seen"].tolist() == [20, 50, 90]


def test_split_follows_the_rows_and_the_options() -> None:
    assert last_days(np.array([90, 5, 5, 0, 1]), 0.1) == 4  # 11 of 101 rows, 6 are too few
    assert last_days(np.array([9, 1]), 0.1) == 1
    even = split_days(np.full(40, 10), ImportConfig())
    assert (even.num_days, even.num_log_days, even.num_validation_days) == (40, 32, 4)
    assert (even.num_train_days, even.num_calibration_days) == (8, 4)
    least = split_days(np.array([10, 10, 10, 10]), ImportConfig())
    assert (least.num_log_days, least.num_validation_days) == (2, 1)
    assert least.num_calibration_days == 1
    named = ImportConfig(test_days=5, validation_days=3, train_days=9, calibration_days=2)
    split = split_days(np.full(40, 10), named)
    assert (split.num_log_days, split.num_validation_days, split.num_train_days) == (32, 3, 9)
    for days, options, message in (
        (3, {}, "3 days are too few for this"),
        (9, {"test_days": 7}, "too few for 7 test days"),
        (9, {"test_days": 2, "validation_days": 6}, "6 validation and 2 test"),
        (9, {"calibration_days": 8}, "8 calibration days"),
        (9, {"train_days": 9}, "train_days must be at most the 7 log days, got 9"),
    ):
        with pytest.raises(ValueError, match=message):
            split_days(np.full(days, 10), ImportConfig(**options))


def test_labels_as_numbers() -> None:
    labels = pd.Series(["b", "a", "a", None, "c", "b", "a"])
    assert group_numbers(labels, 2).tolist() == [2, 1, 1, 0, 0, 2, 1]
    codes, size = label_codes(labels, 9)
    assert codes.tolist() == [2, 1, 1, 0, 3, 2, 1]
    assert size == 4
    codes, size = label_codes(labels, 2)
    assert codes.tolist() == [2, 1, 1, 0, 3, 2, 1]  # 3: one of the others
    assert size == 4
    numbers = Numbers()
    assert numbers.of(pd.Series(["x", None, "y"])).tolist() == [0, UNKNOWN, 1]
    assert numbers.of(pd.Series(["z", "y"])).tolist() == [2, 1]
    assert numbers.labels(1).tolist() == ["y", "z"]


def test_most_frequent_items_in_rising_order() -> None:
    assert most_frequent(np.array([5, 3, 3, 9, 9, 1]), 3).tolist() == [1, 3, 9]
    assert positions(np.array([1, 3, 9]), np.array([9, 2, 1, 10])).tolist() == [2, -1, 0, -1]


def _log(scenes: list[str], places: list[str]) -> Log:
    counts = CheckCounts(num_rows=0, num_duplicates=0, num_bad=0, bad={})
    index = pd.Index([])
    day = START // DAY_S
    return Log(pd.DataFrame(), index, pd.Index(scenes), pd.Index(places), day, 9, counts, 0)


def test_scenes() -> None:
    saturday = 4 * DAY_S  # day 0 is a Tuesday
    requests = pd.DataFrame(
        {
            "user_id": [0, 0, 0, 1],
            "timestamp": [0, HOUR_S, saturday, saturday + 1],
            "scene": [0, 0, 1, UNKNOWN],
            "place": [0, 1, 1, 2],
        }
    )
    by_label = number_scenes(requests, _log(["home", "search"], []), 9)
    assert (by_label[0].tolist(), by_label[1]) == ([1, 1, 2, 0], 3)
    by_day = number_scenes(requests, _log([], []), 9)
    assert (by_day[0].tolist(), by_day[1]) == ([0, 0, 1, 1], 2)
    by_place = number_scenes(requests, _log([], ["p", "q", "r"]), 9)
    assert (by_place[0].tolist(), by_place[1]) == ([0, 1, 2, 2], 4)
    by_store = number_scenes(requests, _log(["s", "t"], ["p", "q", "r"]), 9)
    assert (by_store[0].tolist(), by_store[1]) == ([0, 0, 3, 2], 4)


def _many_users(order: np.ndarray, piece_rows: int) -> MemoryLog:
    user = np.repeat([f"user{i}" for i in range(200)], 5)
    frame = pd.DataFrame({"user_id": user, "item_id": 1, "action": "click"})
    frame["timestamp"] = START + np.arange(len(frame)) * 60
    items = pd.DataFrame({"item_id": [1]})
    return MemoryLog(frame.iloc[order], items, np.zeros((1, 2), np.float32), piece_rows=piece_rows)


def test_the_sample_of_users_depends_on_their_ids_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulators.imported.rows._COMPACT_FROM", 50)
    config = ImportConfig(max_users=40)

    def read(order: np.ndarray, piece_rows: int, seed: int = 0) -> Log:
        log = _many_users(order, piece_rows)
        rejected = tmp_path / "rejected.parquet"
        items = pd.Index([1])
        return read_log(log, items, rejected, config, seed=seed, progress=lambda line: None)

    one = read(np.arange(1_000), 1_000)
    assert len(one.source_user) == 40
    assert one.num_users == 200
    assert len(one.rows) == 200  # all rows of each
    assert one.source_user.is_monotonic_increasing
    other = read(np.random.default_rng(0).permutation(1_000), 30)
    pd.testing.assert_frame_equal(other.rows, one.rows)
    assert other.source_user.equals(one.source_user)
    assert not read(np.arange(1_000), 1_000, seed=1).source_user.equals(one.source_user)


def test_day_zero_begins_at_midnight_and_later_days_can_be_left_out(tmp_path: Path) -> None:
    frame = rows((5, 1, 3 * DAY_S + 50, "click"), (4, 1, DAY_S + 30, "view"), (5, 1, DAY_S, "view"))
    log = MemoryLog(frame, pd.DataFrame({"item_id": [1]}), np.zeros((1, 2), np.float32))
    rejected = tmp_path / "rejected.parquet"

    def read(config: ImportConfig) -> Log:
        return read_log(log, pd.Index([1]), rejected, config, seed=0, progress=lambda line: None)

    whole = read(ImportConfig())
    assert whole.first_day == START // DAY_S + 1
    assert whole.num_days == 3
    assert whole.rows["timestamp"].tolist() == [0, 30, 2 * DAY_S + 50]
    assert whole.source_user[whole.rows["user_id"]].tolist() == [5, 4, 5]
    assert whole.actions == {Action.VIEW, Action.CLICK}
    short = read(ImportConfig(num_days=2))
    assert (short.num_days, len(short.rows)) == (2, 2)
