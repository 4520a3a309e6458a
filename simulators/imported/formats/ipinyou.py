"""iPinYou logs in the formalised format (make-ipinyou-data): one row per ad that was shown.

A folder, or folders in it, of `*.log.txt` (tab separated, with a header). An item is a creative; a
row is an impression, or a click if there was one. A bid is CNY per 1,000 impressions: the file's
fen divided by 100. Creatives and users are found in a pass of their own over all files.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd

from simulators.imported.readers.columns import Kind, schema
from simulators.imported.readers.errors import LogFormatError
from simulators.imported.readers.ipinyou import TEST_COUNTS, split_line
from simulators.imported.readers.log import ItemTable, LogSource, Rows, register_format
from simulators.imported.readers.tables import Table

_FEN_PER_CNY = 100.0
_LOG = schema(
    id="ipinyouid creative",
    text="timestamp",
    integer="click",
    number="bidprice",
    label="adexchange",
)
_CREATIVE = schema(id="creative", label="keypage")
_ADVERTISER = schema(label="advertiser")  # the first season has none
_USER = schema(id="ipinyouid", label="region useragent")
_NAMES = {
    "ipinyouid": "user_id",
    "creative": "item_id",
    "useragent": "device",
    "bidprice": "bid",
    "adexchange": "scene",
}


@register_format("ipinyou")
class IPinYou(LogSource):
    """A folder of logs; see the module."""

    title = "iPinYou"
    notes = (
        "Times are by the clock of China (UTC+8).",
        "An item is a creative; conversions are not read.",
        "Region and device of a user are those of the user's first row.",
    )
    one_row_per_exposure = True

    def __init__(self, source: Path) -> None:
        paths = sorted(source.rglob("*.log.txt"))
        if not paths:
            raise LogFormatError(f"{source}: no *.log.txt in it or in its folders")
        self._tables = [_open(path) for path in paths]

    def rows(self) -> Iterator[Rows]:
        """Yield impressions and clicks; see `LogSource`."""
        for table in self._tables:
            for piece in table.pieces(_LOG):
                frame = piece.frame.rename(columns=_NAMES)
                clicks = frame.pop("click")
                action = clicks.map(
                    lambda n: "click" if isinstance(n, int) and n > 0 else f"click {n}"
                )
                frame["action"] = action.where(clicks != 0, "impression")
                frame["timestamp"] = _seconds(frame["timestamp"])
                bid = pd.to_numeric(frame["bid"], errors="coerce") / _FEN_PER_CNY
                frame["bid"] = bid.astype(frame["bid"].dtype).fillna(frame["bid"])
                yield replace(piece, frame=frame)

    def items(self) -> ItemTable:
        """Return the creatives: words of advertiser, landing page and creative."""
        found = self._first_rows("creative", _CREATIVE | _ADVERTISER)
        text = "creative_" + found["creative"]
        frame = found[["creative"]].rename(columns=_NAMES).assign(is_ad=True, bid_type="CPM")
        if "advertiser" in found:
            frame["advertiser"] = found["advertiser"]
            text = text + (" advertiser_" + found["advertiser"]).fillna("")
        return ItemTable(frame=frame, text=text + (" page_" + found["keypage"]).fillna(""))

    def users(self) -> pd.DataFrame:
        """Return region and device of each user's first row; see `LogSource`."""
        return self._first_rows("ipinyouid", _USER).rename(columns=_NAMES)

    def _first_rows(self, key: str, columns: dict[str, Kind]) -> pd.DataFrame:
        """Return the first row of every value of a column, with those `columns` that there are."""
        found = pd.DataFrame()
        for table in self._tables:
            there = {name: kind for name, kind in columns.items() if name in table.types}
            for piece in table.pieces(there):
                found = pd.concat([found, piece.frame]).drop_duplicates(key)
        return found.dropna(subset=key).reset_index(drop=True)


def _open(path: Path) -> Table:
    """Open a log; rows of test files have two counts more than the header may say."""
    with path.open(encoding="utf-8", errors="replace") as file:
        header, first = (split_line(file.readline()) for _ in range(2))
    names = [name.strip() for name in header]
    if len(first) == len(names) + len(TEST_COUNTS):
        names += TEST_COUNTS
    return Table(
        path,
        _LOG | _CREATIVE | _USER,
        delimiter="\t",
        names=tuple(names),
        skip_header=True,
    )


def _seconds(text: pd.Series) -> pd.Series:
    """Return seconds of `yyyyMMddHHmmssSSS`; what can't be read stays text."""
    digits = text.where(text.str.fullmatch(r"\d{17}"))
    time = pd.to_datetime(digits.str[:14], format="%Y%m%d%H%M%S", errors="coerce")
    since = (time - pd.Timestamp(0)) // pd.Timedelta(seconds=1)
    if time.notna().all():
        return since
    return since.astype("Int64").astype(object).fillna("time " + text)
