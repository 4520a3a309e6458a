"""MovieLens: `ml-1m` (`ratings.dat`, `movies.dat`, `users.dat`) or `ml-latest-small` (CSV).

A rating of 4 or more is a conversion. A lower one is an organic view: the film was watched, but it
is nothing to steer anybody to. The `.dat` files separate by `::` and are in Latin-1.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from simulators.imported.readers.columns import Kind, schema
from simulators.imported.readers.errors import LogFormatError
from simulators.imported.readers.log import ItemTable, LogSource, Rows, register_format
from simulators.imported.readers.tables import Table

MIN_CONVERSION_RATING = 4.0
_RATINGS = schema(integer="userId movieId", number="rating") | schema(integer="timestamp")
_MOVIES = schema(integer="movieId", text="title genres")
_USERS = schema(integer="userId", label="gender", number="age") | schema(label="occupation zip")
_NAMES = {"userId": "user_id", "movieId": "item_id"}


@register_format("movielens")
class MovieLens(LogSource):
    """A folder of either release; see the module."""

    notes = (
        "MovieLens is for research only and may not be passed on.",
        "It has no ads: films stand for items, ratings of 4 or more for conversions, lower ones "
        "for organic views.",
    )

    def __init__(self, source: Path) -> None:
        self._users: Table | None = None
        if (source / "ratings.dat").exists():
            self.title = "MovieLens-1M"
            self._ratings = _dat(source / "ratings.dat", _RATINGS)
            self._movies = _movies_dat(source / "movies.dat")
            self._users = _dat(source / "users.dat", _USERS)
        elif (source / "ratings.csv").exists():
            self.title = f"MovieLens ({source.name})"
            self._ratings = Table(source / "ratings.csv", _RATINGS)
            self._movies = Table(source / "movies.csv", _MOVIES).read()
        else:
            raise LogFormatError(f"{source}: ratings.dat or ratings.csv is missing")

    def rows(self) -> Iterator[Rows]:
        """Yield the ratings; see `LogSource`."""
        for piece in self._ratings.pieces():
            rating = pd.to_numeric(piece.frame["rating"], errors="coerce")
            liked = np.where(rating >= MIN_CONVERSION_RATING, "conversion", "view")
            action = pd.Series(liked, dtype=object).where(
                rating.between(0.5, 5.0), "rating " + piece.frame["rating"].astype(str)
            )
            frame = piece.frame.drop(columns="rating").rename(columns=_NAMES)
            yield replace(piece, frame=frame.assign(action=action))

    def items(self) -> ItemTable:
        """Return the films: title and genres; see `LogSource`."""
        genres = self._movies["genres"].fillna("")
        title = self._movies["title"].fillna("")
        frame = pd.DataFrame(
            {
                "item_id": self._movies["movieId"],
                "category": genres.str.split("|").str[0],
                "name": title,
            }
        )
        words = title.str.replace(r"\s*\(\d{4}\)\s*$", "", regex=True)
        return ItemTable(frame=frame, text=words + " " + genres.str.replace("|", " "))

    def users(self) -> pd.DataFrame:
        """Return age (lower end of the class), gender, occupation, region (first digit of ZIP)."""
        if self._users is None:
            return super().users()
        known = self._users.read_users(_NAMES)
        known["region"] = known.pop("zip").str[0]
        return known


def _dat(path: Path, columns: dict[str, Kind]) -> Table:
    """Open a `::` table: read by single colons, every other column is empty."""
    if not path.exists():
        raise LogFormatError(f"{path} is missing")
    with path.open(encoding="latin-1") as file:
        num_columns = file.readline().count("::") + 1
    if num_columns != len(columns):
        raise LogFormatError(
            f"{path}: line 1 must have {len(columns)} columns ({', '.join(columns)}) separated by "
            f"::, got {num_columns}"
        )
    names = [part for name in columns for part in (name, f"after {name}")][:-1]
    return Table(path, columns, delimiter=":", names=tuple(names), encoding="latin-1")


def _movies_dat(path: Path) -> pd.DataFrame:
    """Return the films; a title may hold a colon, so this small file is split by hand."""
    if not path.exists():
        raise LogFormatError(f"{path} is missing")
    cells = []
    for number, line in enumerate(path.read_text(encoding="latin-1").splitlines(), 1):
        row = line.split("::")
        if len(row) != len(_MOVIES) or not row[0].isdecimal():
            raise LogFormatError(f"{path}:{number} must read MovieID::Title::Genres, got {line!r}")
        cells.append((int(row[0]), row[1], row[2]))
    return pd.DataFrame(cells, columns=list(_MOVIES))
