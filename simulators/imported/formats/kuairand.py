"""KuaiRand (Pure, 1K, 27K): short videos that were shown, and which were clicked.

All `log_*.csv` of the folder (or its folder `data`), with `video_features_basic_*.csv` and
`user_features_*.csv`. Videos of type AD are the ads: shown ones are impressions or clicks. Of all
other videos a click is an organic view; those that were shown and not clicked are left out, as they
are no interactions.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd

from simulators.imported.readers.columns import join_words, schema, seconds
from simulators.imported.readers.log import ItemTable, LogSource, Rows, register_format
from simulators.imported.readers.tables import Table

_LOG = schema(integer="user_id video_id time_ms", label="is_click tab")
_VIDEO = schema(integer="video_id", label="author_id video_type upload_type music_id tag")
_USER = schema(
    integer="user_id",
    label="user_active_degree is_live_streamer is_video_author follow_user_num_range "
    "fans_user_num_range friend_user_num_range register_days_range",
)
_NAMES = {"video_id": "item_id", "time_ms": "timestamp", "tab": "scene", "author_id": "advertiser"}


@register_format("kuairand")
class KuaiRand(LogSource):
    """The data set's folder; see the module."""

    title = "KuaiRand"
    notes = (
        "It has clicks but no conversions.",
        "Only videos of type AD are ads (76 of the 7,583 in KuaiRand-Pure).",
        "Organic videos count where they were clicked.",
    )
    one_row_per_exposure = True

    def __init__(self, source: Path) -> None:
        folder = source / "data" if (source / "data").is_dir() else source
        self._logs = Table(folder, _LOG, pattern="log_*.csv")
        self._videos = Table(folder, _VIDEO, pattern="video_features_basic_*.csv")
        self._users = Table(folder, _USER, pattern="user_features_*.csv")

    def rows(self) -> Iterator[Rows]:
        """Yield impressions, clicks and organic views; see `LogSource`."""
        videos = self._videos.read(schema(integer="video_id", label="video_type"))
        ads = videos.loc[videos["video_type"] == "AD", "video_id"].to_numpy()
        for piece in self._logs.pieces():
            frame = piece.frame.rename(columns=_NAMES)
            clicked = frame.pop("is_click")
            is_ad = frame["item_id"].isin(ads)
            skipped = ((clicked == "0") & ~is_ad).to_numpy(dtype=bool)
            shown = clicked.map({"0": "impression", "1": "click"})
            shown = shown.where(is_ad | shown.isna(), "view")
            frame["action"] = shown.fillna("is_click " + clicked)
            frame["timestamp"] = seconds(frame["timestamp"])
            frame = frame[~skipped].reset_index(drop=True)
            yield replace(piece, frame=frame, line=piece.line[~skipped])

    def items(self) -> ItemTable:
        """Return the videos: words of author, music, tags and kind of upload; see `LogSource`."""
        videos = self._videos.read()
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
        return self._users.read_users()
