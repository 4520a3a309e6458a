"""KuaiRand (Pure, 1K, 27K): short videos that were shown, and which were clicked.

All `log_*.csv` of the folder (or its folder `data`), with `video_features_basic_*.csv` and
`user_features_*.csv`. Videos of type AD are the ads: shown ones are impressions or clicks. Of all
other videos a click is an organic view; those that were shown and not clicked are left out, as they
are no interactions.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from simulators.imported.readers.columns import Kind, join_words, seconds, unique_ids
from simulators.imported.readers.log import ItemTable, LogFormatError, Rows, register_format
from simulators.imported.readers.tables import Table

_LOG: dict[str, Kind] = {
    "user_id": "integer",
    "video_id": "integer",
    "time_ms": "integer",
    "is_click": "label",
    "tab": "label",
}
_VIDEO: dict[str, Kind] = {
    "video_id": "integer",
    "author_id": "label",
    "video_type": "label",
    "upload_type": "label",
    "music_id": "label",
    "tag": "label",
}
_USER: dict[str, Kind] = {
    "user_id": "integer",
    "user_active_degree": "label",
    "is_live_streamer": "label",
    "is_video_author": "label",
    "follow_user_num_range": "label",
    "fans_user_num_range": "label",
    "friend_user_num_range": "label",
    "register_days_range": "label",
}
_NAMES = {"video_id": "item_id", "time_ms": "timestamp", "tab": "scene", "author_id": "advertiser"}


@register_format("kuairand")
class KuaiRand:
    """The data set's folder; see the module."""

    title = "KuaiRand"
    notes: tuple[str, ...] = (
        "It has clicks but no conversions.",
        "Only videos of type AD are ads (76 of the 7,583 in KuaiRand-Pure).",
        "Organic videos count where they were clicked.",
    )
    simulated: tuple[str, ...] = ()
    one_row_per_exposure = True

    def __init__(self, source: Path) -> None:
        folder = source / "data" if (source / "data").is_dir() else source
        self._logs = _open_all(folder, "log_*.csv", _LOG)
        self._videos = _open_all(folder, "video_features_basic_*.csv", _VIDEO)
        self._users = _open_all(folder, "user_features_*.csv", _USER)
        self._ads: np.ndarray | None = None

    def rows(self) -> Iterator[Rows]:
        """Yield impressions, clicks and organic views; see `LogSource`."""
        if self._ads is None:
            videos = _read_all(self._videos, {"video_id": "integer", "video_type": "label"})
            self._ads = videos.loc[videos["video_type"] == "AD", "video_id"].to_numpy()
        for table in self._logs:
            for piece in table.pieces(_LOG):
                frame = piece.frame.rename(columns=_NAMES)
                clicked = frame.pop("is_click")
                is_ad = frame["item_id"].isin(self._ads)
                skipped = ((clicked == "0") & ~is_ad).to_numpy(dtype=bool)
                shown = clicked.map({"0": "impression", "1": "click"})
                shown = shown.where(is_ad | shown.isna(), "view")
                frame["action"] = shown.fillna("is_click " + clicked)
                frame["timestamp"] = seconds(frame["timestamp"])
                frame = frame[~skipped].reset_index(drop=True)
                yield Rows(frame, piece.file, piece.line[~skipped], piece.unreadable)

    def items(self) -> ItemTable:
        """Return the videos: words of author, music, tags and kind of upload; see `LogSource`."""
        videos = _read_all(self._videos, _VIDEO)
        tags = videos["tag"].fillna("").str.split(",")
        words = {
            "tag": [" ".join(f"tag_{tag.strip()}" for tag in row if tag.strip()) for row in tags],
            "author": "author_" + videos["author_id"],
            "music": "music_" + videos["music_id"],
            "upload": videos["upload_type"],
        }
        frame = pd.DataFrame(
            {
                "item_id": videos["video_id"],
                "is_ad": (videos["video_type"] == "AD").astype(bool),
                "category": tags.str[0].str.strip().replace("", None),
                "advertiser": videos["author_id"],
            }
        )
        return ItemTable(frame=frame, text=join_words(pd.DataFrame(words)))

    def users(self) -> pd.DataFrame:
        """Return activity, kind and ranges of a user, as labels; see `LogSource`."""
        return unique_ids(_read_all(self._users, _USER), "user_id", self._users[0].path)

    def offers(self) -> Iterator[pd.DataFrame]:
        """Yield nothing: what could be shown is not known."""
        return iter(())


def _open_all(folder: Path, pattern: str, columns: dict[str, Kind]) -> list[Table]:
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise LogFormatError(f"{folder}: {pattern} is missing")
    tables = [Table(path) for path in paths]
    for table in tables:
        table.require(columns)
    return tables


def _read_all(tables: list[Table], columns: dict[str, Kind]) -> pd.DataFrame:
    return pd.concat([table.read(columns) for table in tables], ignore_index=True)
