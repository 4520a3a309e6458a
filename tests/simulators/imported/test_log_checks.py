"""Each rule of the row check on rows made for it, and the list of what was left out."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulators.imported.readers.checks import MAX_TIMESTAMP, CheckCounts, RowChecker
from simulators.imported.readers.duplicates import SeenHashes
from simulators.imported.readers.log import ACTIONS, LogFormatError, Rows

ITEMS = [10, 11, 12]
Cells = dict[str, object]


def _rows(*rows: Cells, file: str = "log.csv", first_line: int = 2) -> Rows:
    """Good rows that differ in time, with the cells given in place of theirs."""
    good = [
        {"user_id": 1, "item_id": 10, "timestamp": 1000 + first_line + at, "action": "click"}
        for at in range(len(rows))
    ]
    frame = pd.DataFrame([{**a, **b} for a, b in zip(good, rows, strict=True)])
    line = np.arange(first_line, first_line + len(rows))
    return Rows(frame, Path(file), line)


@pytest.fixture
def checked(tmp_path: Path) -> Callable[..., tuple[pd.DataFrame, CheckCounts, pd.DataFrame]]:
    def run(*pieces: Rows, items: list | None = None, share: float = 1.0) -> tuple:
        path = tmp_path / "rejected.parquet"
        checker = RowChecker(items or ITEMS, path, max_bad_share=share)
        good = pd.concat([checker.check(piece) for piece in pieces], ignore_index=True)
        assert not path.exists()
        return good, checker.finish(), pd.read_parquet(path)

    return run


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"user_id": None}, "user_id is missing"),
        ({"user_id": "abc"}, "user_id is text, unlike the others: 'abc'"),
        ({"item_id": None}, "item_id is missing"),
        ({"item_id": 99}, "unknown item: 99"),
        ({"item_id": "10"}, "unknown item: '10'"),
        ({"timestamp": None}, "timestamp is missing"),
        ({"timestamp": "noon"}, "timestamp is not a number: 'noon'"),
        ({"timestamp": -1}, "timestamp is before 1970: -1"),
        (
            {"timestamp": 1_500_000_000_000},
            "timestamp is too large for seconds since 1970, perhaps milliseconds: 1500000000000",
        ),
        ({"action": "wink"}, "action must be one of view, impression, click, conversion: 'wink'"),
        ({"action": None}, "action is missing"),
        ({"price": -0.5}, "price must be at least 0 and finite: -0.5"),
        ({"price": np.inf}, "price must be at least 0 and finite: inf"),
        ({"value": "much"}, "value is not a number: 'much'"),
        ({"bid": -1.0}, "bid must be at least 0 and finite: -1.0"),
    ],
)
def test_a_bad_row_is_left_out_and_listed(checked, cells: Cells, reason: str) -> None:
    rows = _rows({}, cells, {})
    rows = Rows(rows.frame.astype(object), rows.file, rows.line)
    good, counts, rejected = checked(rows)
    assert good["timestamp"].tolist() == [1002, 1004]
    assert rejected.values.tolist() == [["log.csv", 3, reason]]
    assert counts.num_bad == 1
    assert counts.bad == {reason.partition(":")[0]: 1}
    assert (counts.num_rows, counts.num_duplicates) == (3, 0)


def test_the_first_broken_rule_is_the_reason(checked) -> None:
    _, counts, rejected = checked(_rows({}, {"timestamp": -5, "item_id": 99, "price": -1.0}))
    assert rejected["reason"].tolist() == ["timestamp is before 1970: -5"]
    assert counts.num_bad == 1


def test_good_rows_have_canonical_types(checked) -> None:
    rows = _rows(
        {"timestamp": "1500000000", "price": "2.5", "scene": "home", "place": 7},
        {"timestamp": 1_500_000_000.9, "price": None, "scene": None, "place": 8, "action": "view"},
        {"user_id": -3, "timestamp": MAX_TIMESTAMP, "price": 0, "scene": "home", "place": 7},
    )
    good, _, _ = checked(rows)
    assert good.columns.tolist() == (
        ["user_id", "item_id", "timestamp", "action", "value", "price", "bid", "scene", "place"]
    )
    assert good.dtypes[["user_id", "item_id", "timestamp"]].tolist() == [np.int64] * 3
    assert good.dtypes["action"] == np.int8
    assert good.dtypes[["value", "price", "bid"]].tolist() == [np.float32] * 3
    assert good["timestamp"].tolist() == [1_500_000_000, 1_500_000_000, MAX_TIMESTAMP]
    assert [ACTIONS[code] for code in good["action"]] == ["click", "view", "click"]
    np.testing.assert_array_equal(good["price"], np.float32([2.5, np.nan, 0]))
    assert good["bid"].isna().all()
    assert good["scene"].isna().tolist() == [False, True, False]
    assert good["place"].tolist() == [7, 8, 7]


def test_ids_may_be_text(checked) -> None:
    rows = _rows({"user_id": "007"}, {"user_id": "7"}, {"user_id": ""}, {"item_id": "c"})
    rows = Rows(
        rows.frame.assign(
            user_id=["007", "7", "", "x"], item_id=["a", "b", "a", "c"], timestamp=5
        ).astype({"user_id": "str", "item_id": "str"}),
        rows.file,
        rows.line,
    )
    good, _, rejected = checked(rows, items=["a", "b"])
    assert good["user_id"].tolist() == ["007", "7"]
    assert good["item_id"].tolist() == ["a", "b"]
    assert rejected["reason"].tolist() == ["user_id is missing", "unknown item: 'c'"]


def test_users_are_all_text_or_all_integers_in_every_piece(checked) -> None:
    good, _, rejected = checked(
        _rows({}, {"user_id": 2}), _rows({"user_id": "x"}, {"user_id": "y"}, first_line=9)
    )
    assert good["user_id"].tolist() == [1, 2]
    assert rejected["line"].tolist() == [9, 10]


def test_the_first_of_equal_rows_is_kept_and_the_others_are_not_bad(checked) -> None:
    same = {"user_id": 5, "timestamp": 100}
    good, counts, rejected = checked(
        _rows(same, {**same, "price": 3.0}, {**same, "action": "view"}, {**same, "item_id": 11}),
        _rows({**same, "user_id": 6}, {**same, "timestamp": 101}, same, file="next.csv"),
        share=0.0,
    )
    assert len(good) == 5
    assert np.isnan(good["price"]).all()
    assert rejected[["file", "line"]].values.tolist() == [["log.csv", 3], ["next.csv", 4]]
    assert rejected["reason"].str.startswith("duplicate: ").all()
    assert (counts.num_rows, counts.num_duplicates, counts.num_bad) == (7, 2, 0)


def test_a_bad_row_makes_no_duplicate(checked) -> None:
    good, counts, _ = checked(_rows({"timestamp": 5, "price": -1.0}, {"timestamp": 5}))
    assert good["timestamp"].tolist() == [5]
    assert counts.num_duplicates == 0


def test_duplicates_over_many_pieces_are_those_of_pandas(checked) -> None:
    rng = np.random.default_rng(0)
    frames = [
        pd.DataFrame(
            {
                "user_id": rng.integers(0, 20, size),
                "item_id": rng.choice(ITEMS, size),
                "timestamp": rng.integers(0, 60, size),
                "action": rng.choice(ACTIONS, size),
            }
        )
        for size in (700, 40, 1, 2000, 0, 900, 900, 3)
    ]
    pieces = [Rows(frame, Path("x"), np.arange(1, len(frame) + 1)) for frame in frames]
    good, counts, _ = checked(*pieces)
    expected = pd.concat(frames, ignore_index=True).drop_duplicates()
    assert counts.num_duplicates == sum(map(len, frames)) - len(expected) > 500
    names = ["user_id", "item_id", "timestamp"]
    assert good[names].values.tolist() == expected[names].values.tolist()


def test_seen_hashes_stay_few_arrays() -> None:
    seen, rng = SeenHashes(), np.random.default_rng(0)
    for _ in range(200):
        assert seen.add(rng.integers(0, 1 << 63, 100).astype(np.uint64)).all()
    assert len(seen._arrays) <= 8
    assert sum(map(len, seen._arrays)) == 20_000


def test_time_may_go_backwards(checked) -> None:
    times = [50, 40, 60]
    pieces = [
        _rows(*({"timestamp": time} for time in times)),
        _rows({"timestamp": 30}, first_line=5),
        _rows({"timestamp": 10}, file="other.csv"),
    ]
    good, counts, _ = checked(*pieces)
    assert good["timestamp"].tolist() == [50, 40, 60, 30, 10]
    assert (counts.num_duplicates, counts.num_bad) == (0, 0)


def test_lines_that_are_no_rows_are_bad(checked) -> None:
    rows = _rows({}, {})
    rows = Rows(rows.frame, rows.file, np.array([2, 4]), ((3, "9 cells, must be 4"),))
    good, counts, rejected = checked(rows)
    assert len(good) == 2
    assert rejected.values.tolist() == [["log.csv", 3, "9 cells, must be 4"]]
    assert (counts.num_rows, counts.num_bad) == (3, 1)


def test_too_many_bad_rows_stop_the_run_at_the_end(tmp_path: Path) -> None:
    checker = RowChecker(ITEMS, tmp_path / "rejected.parquet", max_bad_share=0.5)
    checker.check(_rows({}, {"item_id": 99}, {"price": -1.0}, {"item_id": 98}))
    message = (
        r"3 of the first 4 rows are bad, more than the share 0\.5 allowed: unknown item \(2\), "
        r"price must be at least 0 and finite \(1\); the first is log\.csv:3: unknown item: 99; "
        r"all are listed in .*rejected\.parquet"
    )
    with pytest.raises(LogFormatError, match=message):
        checker.finish()
    assert pd.read_parquet(tmp_path / "rejected.parquet")["line"].tolist() == [3, 4, 5]
    assert [path.name for path in tmp_path.iterdir()] == ["rejected.parquet"]


def test_exactly_the_share_is_allowed(checked) -> None:
    _, counts, _ = checked(_rows({}, {"item_id": 99}), share=0.5)
    assert counts.num_bad == 1


def test_too_many_bad_rows_stop_the_run_early(tmp_path: Path) -> None:
    size, checker = 60_000, RowChecker(ITEMS, tmp_path / "rejected.parquet", max_bad_share=0.4)
    frame = pd.DataFrame(
        {"user_id": 1, "item_id": 10, "timestamp": np.arange(size), "action": "view"}
    )
    frame.loc[: size // 2 - 1, "item_id"] = 99
    line = np.arange(size)
    checker.check(Rows(frame, Path("a"), line))  # 60,000 rows: not yet
    with pytest.raises(LogFormatError, match=r"60000 of the first 120000 rows .* a:0: unknown"):
        checker.check(Rows(frame, Path("b"), line))
    assert len(pd.read_parquet(tmp_path / "rejected.parquet")) == 90_000


def test_no_row_left_is_an_error(tmp_path: Path) -> None:
    checker = RowChecker(ITEMS, tmp_path / "rejected.parquet", max_bad_share=1.0)
    checker.check(_rows({"item_id": 99}))
    with pytest.raises(LogFormatError, match="no row is left of 1"):
        checker.finish()


def test_the_list_is_empty_if_all_is_well(checked) -> None:
    _, _, rejected = checked(_rows({}))
    assert rejected.columns.tolist() == ["file", "line", "reason"]
    assert rejected.empty


def test_the_share_must_be_a_share(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"max_bad_share must be in \[0, 1\], got 2"):
        RowChecker(ITEMS, tmp_path / "x", max_bad_share=2.0)
