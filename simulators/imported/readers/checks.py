"""Checking the rows of a public log, piece by piece: the good ones pass, the others are listed.

A row is bad, and is left out, by the first of these rules that it breaks:

- `user_id`, `item_id`, `timestamp` and `action` must be there and readable. User ids are all
  integers or all text; item ids as those of the items are.
- `timestamp` is in 0 .. 1e11: seconds, not milliseconds. Fractions of a second are cut off.
- `action` is one of `ACTIONS`.
- `item_id` is one of the items.
- `value`, `price` and `bid` are numbers of at least 0, and finite. Nothing (null, NaN) is no
  mistake: it is not known.
- A line that is no row at all (too many cells, broken JSON) is bad as well.

Of rows with equal user, item, time and action only the first is kept: shops sell two of a kind, and
logs are written twice. The others are not bad but counted, and listed as duplicates. Times may go
backwards, as events are sorted later.

Duplicates are found over the whole log by a 64-bit hash of each row; see `readers.duplicates`.

Dims: n rows.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gpr_rl.files import complete_file
from simulators.imported.readers.duplicates import SeenHashes
from simulators.imported.readers.errors import LogFormatError
from simulators.imported.readers.log import ACTIONS, COLUMNS, OPTIONAL_COLUMNS, Rows

MAX_TIMESTAMP = 100_000_000_000
"""Seconds; in milliseconds it is in March 1973, before any log."""
_LARGEST = float(np.finfo(np.float32).max)
_CHECK_EVERY = 100_000
_AMOUNTS = ("value", "price", "bid")
_DUPLICATE = "duplicate: an earlier row has the same user, item, time and action"
_SCHEMA = pa.schema([("file", pa.string()), ("line", pa.int64()), ("reason", pa.string())])

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class CheckCounts:
    """What became of the rows of a log."""

    num_rows: int
    """All that were read."""
    num_duplicates: int
    """Left out, but not bad."""
    num_bad: int
    bad: dict[str, int]
    """How many rows broke which rule."""


class RowChecker:
    """Checks a log by the rules above and lists what is left out.

    `rejected` is the Parquet table to write: `file`, `line` and `reason` of each row that was left
    out; it gets its name when the check ends. `max_bad_share` lies in [0, 1].
    """

    def __init__(
        self,
        known_items: Sequence | pd.Index | pd.Series,
        rejected: Path,
        *,
        max_bad_share: float = 0.01,
    ) -> None:
        if not 0 <= max_bad_share <= 1:
            raise ValueError(f"max_bad_share must be in [0, 1], got {max_bad_share}")
        self._items = pd.Index(known_items)
        self._rejected = rejected
        self._file = ExitStack()
        temporary = self._file.enter_context(complete_file(rejected))
        self._writer = self._file.enter_context(pq.ParquetWriter(temporary, _SCHEMA))
        self._max_bad_share = max_bad_share
        self._seen = SeenHashes()
        self._users_are_text: bool | None = None
        self._first_bad = ""
        self._checked_at = 0
        self._num_rows = self._num_duplicates = 0
        self._bad: Counter[str] = Counter()

    def check(self, rows: Rows) -> pd.DataFrame:
        """Return the good rows of a piece, in their order and with an index from 0.

        Returns:
            `user_id` and `item_id` (int64, or text) as they came, `timestamp` (int64), `action`
            (int8, position in `ACTIONS`), `value`, `price` and `bid` (float32, NaN: not known),
            `scene` and `place` (labels as they came, null: not known). All columns, always.

        Raises:
            LogFormatError: More than the share allowed is bad, once 100,000 rows have been read.
        """
        frame = rows.frame.reindex(columns=[*COLUMNS, *OPTIONAL_COLUMNS])
        verdict = _Verdict(len(frame))
        user_id, item_id = frame["user_id"], frame["item_id"]
        self._check_ids(user_id, "user_id", verdict)
        self._check_ids(item_id, "item_id", verdict)
        timestamp = _check_times(frame["timestamp"], verdict)
        action = _check_actions(frame["action"], verdict)
        at_item = self._items.get_indexer(pd.Index(item_id))
        verdict.fail("unknown item", at_item < 0, item_id)
        amounts = {name: _check_amounts(frame[name], name, verdict) for name in _AMOUNTS}
        good = np.flatnonzero(verdict.good)
        users = user_id.iloc[good].infer_objects()
        keys = {"item": at_item[good], "time": timestamp[good], "action": action[good]}
        keyed = pd.DataFrame({"user": users.array, **keys})
        new = self._seen.add(pd.util.hash_pandas_object(keyed, index=False).to_numpy())
        self._count(rows, verdict, good[~new])
        kept = frame.assign(timestamp=timestamp, action=action, **amounts).iloc[good[new]]
        return kept.infer_objects().reset_index(drop=True)

    def finish(self) -> CheckCounts:
        """Return the counts; the list of rejected rows is then whole and has its name.

        Raises:
            LogFormatError: More than the share allowed is bad, or no row is left.
        """
        self._stop_if_bad()
        self._file.close()
        num_bad = self._bad.total()
        if self._num_rows == num_bad + self._num_duplicates:
            raise LogFormatError(f"no row is left of {self._num_rows}; see {self._rejected}")
        return CheckCounts(
            num_rows=self._num_rows,
            num_duplicates=self._num_duplicates,
            num_bad=num_bad,
            bad=dict(self._bad),
        )

    def _check_ids(self, column: pd.Series, name: str, verdict: "_Verdict") -> None:
        """Fail null ids and, for users, those that are text where the others are integers."""
        missing = (column.isna() | (column == "")).to_numpy(dtype=bool)
        if column.dtype == object:
            text = column.map(lambda cell: isinstance(cell, str)).to_numpy(dtype=bool)
        else:
            text = np.full(len(column), column.dtype == "str")
        verdict.fail(f"{name} is missing", missing)
        if name == "user_id" and not missing.all():
            if self._users_are_text is None:
                self._users_are_text = bool(text[~missing].all())
            other = "an integer" if self._users_are_text else "text"
            verdict.fail(
                f"user_id is {other}, unlike the others", text != self._users_are_text, column
            )

    def _count(self, rows: Rows, verdict: "_Verdict", duplicates: NDArray[np.int64]) -> None:
        broken = [(int(rows.line[row]), *why) for row, why in sorted(verdict.broken.items())]
        broken += [(line, "no row", reason) for line, reason in rows.unreadable]
        if broken and not self._first_bad:
            line, _, reason = min(broken, key=lambda row: row[0])
            self._first_bad = f"{rows.file}:{line}: {reason}"
        self._bad.update(rule for _, rule, _ in broken)
        file = str(rows.file)
        listed = [(file, line, reason) for line, _, reason in broken]
        listed += [(file, line, _DUPLICATE) for line in rows.line[duplicates].tolist()]
        if listed:
            self._writer.write_table(pa.table([*zip(*listed, strict=True)], schema=_SCHEMA))
        self._num_rows += len(rows.frame) + len(rows.unreadable)
        self._num_duplicates += len(duplicates)
        if self._num_rows - self._checked_at >= _CHECK_EVERY:
            self._checked_at = self._num_rows
            self._stop_if_bad()

    def _stop_if_bad(self) -> None:
        bad, total = self._bad.total(), self._num_rows
        if bad > self._max_bad_share * total:
            self._file.close()
            rules = ", ".join(f"{rule} ({number})" for rule, number in self._bad.most_common())
            raise LogFormatError(
                f"{bad} of the first {total} rows are bad, more than the share "
                f"{self._max_bad_share:g} allowed: {rules}; the first is {self._first_bad}; "
                f"all are listed in {self._rejected}"
            )


class _Verdict:
    """Which rows of a piece are good; which rule each of the others broke first, and how."""

    def __init__(self, num_rows: int) -> None:
        self.good = np.ones(num_rows, dtype=bool)
        self.broken: dict[int, tuple[str, str]] = {}

    def fail(self, rule: str, broken: BoolArray, cells: pd.Series | None = None) -> None:
        """Note who broke a rule; `cells` are shown in the reason."""
        rows = np.flatnonzero(broken & self.good)
        self.good[rows] = False
        for row in rows.tolist():
            self.broken[row] = (rule, rule)
        if cells is not None:
            for row, cell in zip(rows.tolist(), cells.iloc[rows].tolist(), strict=True):
                self.broken[row] = (rule, f"{rule}: {cell!r}")


def _numeric(column: pd.Series) -> tuple[NDArray[np.float64], BoolArray]:
    """Return the numbers (NaN where there is none) and which cells hold something else."""
    if pd.api.types.is_numeric_dtype(column.dtype):
        return column.to_numpy(dtype=np.float64, na_value=np.nan), np.zeros(len(column), dtype=bool)
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    return numbers, np.isnan(numbers) & column.notna().to_numpy()


def _check_times(column: pd.Series, verdict: _Verdict) -> NDArray[np.int64]:
    if column.dtype == np.int64:
        seconds = column.to_numpy()
    else:
        numbers, unreadable = _numeric(column)
        verdict.fail("timestamp is not a number", unreadable, column)
        verdict.fail("timestamp is missing", np.isnan(numbers))
        # a float outside of int64 has no integer: it is out of range all the same
        seconds = np.nan_to_num(numbers, nan=0.0).clip(-1, MAX_TIMESTAMP + 1).astype(np.int64)
    verdict.fail("timestamp is before 1970", seconds < 0, column)
    verdict.fail(
        "timestamp is too large for seconds since 1970, perhaps milliseconds",
        seconds > MAX_TIMESTAMP,
        column,
    )
    return seconds


def _check_actions(column: pd.Series, verdict: _Verdict) -> NDArray[np.int8]:
    code = pd.Index(ACTIONS).get_indexer(pd.Index(column)).astype(np.int8)
    verdict.fail("action is missing", column.isna().to_numpy())
    verdict.fail(f"action must be one of {', '.join(ACTIONS)}", code < 0, column)
    return code


def _check_amounts(column: pd.Series, name: str, verdict: _Verdict) -> NDArray[np.float32]:
    numbers, unreadable = _numeric(column)
    verdict.fail(f"{name} is not a number", unreadable, column)
    outside = (numbers < 0) | (numbers > _LARGEST)
    verdict.fail(f"{name} must be at least 0 and finite", outside, column)
    return numbers.clip(0, _LARGEST).astype(np.float32)
