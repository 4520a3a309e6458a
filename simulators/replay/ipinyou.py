"""iPinYou logs in the formalised format (make-ipinyou-data), as logs for `simulators.replay`.

A campaign's folder holds `train.log.txt` and `test.log.txt` (tab separated, with a header) and
`train.yzx.txt` and `test.yzx.txt` (`click payprice feature:1 ...`). Prices are CNY fen per 1,000
impressions. The files are the user's; none comes with this package.

Dims: n rows that were accepted, F hashed features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path
from typing import TextIO

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.feature_extraction import FeatureHasher
from sklearn.linear_model import LogisticRegression

from gpr_rl.files import write_text
from simulators.imported.readers.ipinyou import LOG_COLUMNS, TEST_COUNTS, split_line
from simulators.replay.replay import FloatArray

# fmt: off
_FEATURES = (
    "weekday", "hour", "useragent", "IP", "region", "city", "adexchange", "domain", "slotid",
    "slotwidth", "slotheight", "slotvisibility", "slotformat", "creative", "advertiser",
)
# fmt: on
_PRICE_EDGES = (0, 10, 50, 100)  # of the slot's floor price; the classes of make-ipinyou-data
NUM_FEATURES = 1 << 18
_CHUNK = 100_000


class IPinYouError(ValueError):
    """A file that is not in the formalised format, or with too many bad rows."""


@dataclass(frozen=True)
class IPinYouRows:
    """The rows of one file that were accepted."""

    frame: pd.DataFrame
    """click (int64, 0 or 1) and market_price (float64, the payprice), in the file's order."""
    features: sp.csr_matrix
    """[n, F] float32, hashed one-hot features of each row."""
    row: NDArray[np.int64]
    """[n], which data row of the file each is, counted from 0 without the header."""
    num_rows: int
    """Data rows in the file, the rejected ones included."""
    rejects: Path | None
    """Table of rejected rows (file, line, reason); None if there is none."""

    @property
    def num_rejected(self) -> int:
        """Rows that were left out."""
        return self.num_rows - len(self.frame)


def read_ipinyou(
    path: str | Path, *, max_bad_share: float = 0.01, rejects: str | Path | None = None
) -> IPinYouRows:
    """Read one `*.log.txt` or `*.yzx.txt` file; its name says which of the two formats it is in.

    Bad rows, at most `max_bad_share` of all, are left out and listed by file, line and reason in
    `rejects`, by default the file's name with `.rejected.tsv` after it.

    Raises:
        IPinYouError: Another header, another name, or too large a share of bad rows (checked after
            every 100,000 rows and at the end).
    """
    path = Path(path)
    side = Path(rejects) if rejects is not None else path.with_name(path.name + ".rejected.tsv")
    hasher = FeatureHasher(
        NUM_FEATURES, input_type="string", alternate_sign=False, dtype=np.float32
    )
    good: list[tuple[int, int, int]] = []
    bad: list[tuple[int, str]] = []
    parts = [sp.csr_matrix((0, NUM_FEATURES), dtype=np.float32)]
    num_rows = 0
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        parse, first_line = _parser(path, file)
        while lines := list(islice(file, _CHUNK)):
            words = []
            for number, line in enumerate(lines, num_rows):
                try:
                    if "\N{REPLACEMENT CHARACTER}" in line:
                        raise ValueError("not UTF-8")
                    click, price, features = parse(line)
                except ValueError as error:
                    bad.append((first_line + number, str(error)))
                else:
                    good.append((number, click, price))
                    words.append(features)
            num_rows += len(lines)
            if words:
                parts.append(hasher.transform(words))
            if len(bad) > max_bad_share * num_rows:
                break
    if bad:
        listed = [f"{path.name}\t{line}\t{reason}\n" for line, reason in bad]
        write_text(side, "file\tline\treason\n" + "".join(listed))
    if len(bad) > max_bad_share * num_rows:
        raise IPinYouError(
            f"{path}: {len(bad)} of the first {num_rows} rows are bad, more than the share "
            f"{max_bad_share:g} allowed; the first is line {bad[0][0]}: {bad[0][1]}; "
            f"all are listed in {side}"
        )
    types = {"row": np.int64, "click": np.int64, "market_price": np.float64}
    frame = pd.DataFrame(good, columns=list(types)).astype(types)
    row = frame.pop("row").to_numpy()
    return IPinYouRows(frame, sp.vstack(parts, format="csr"), row, num_rows, side if bad else None)


Row = tuple[int, int, list[str]]


def _parser(path: Path, file: TextIO) -> tuple[Callable[[str], Row], int]:
    """Return what reads a line (click, price, feature words) and the first data line's number."""
    if path.name.endswith(".yzx.txt"):
        return _parse_yzx, 1
    if not path.name.endswith(".log.txt"):
        raise IPinYouError(
            f"{path}: the name must end in .log.txt or .yzx.txt, which tells the format"
        )
    header = split_line(file.readline())
    known = LOG_COLUMNS if "advertiser" in header else LOG_COLUMNS[:-2]  # the first season's
    pairs = zip_longest(known, header[: len(known)], fillvalue="nothing")
    for at, (name, got) in enumerate(pairs, 1):
        if got.strip() != name:
            raise IPinYouError(f"{path}: column {at} of the header must be {name!r}, got {got!r}")
    if len(header) - len(known) not in (0, len(TEST_COUNTS)):
        raise IPinYouError(
            f"{path}: the header has {len(header)} columns, must be {len(known)} or two more"
        )
    return partial(_parse_log, known), 2


def _parse_log(columns: tuple[str, ...], line: str) -> Row:
    """Return click, payprice and feature words of a line of a log; ValueError says what is bad."""
    cells = split_line(line)
    if len(cells) - len(columns) not in (0, len(TEST_COUNTS)):
        raise ValueError(f"{len(cells)} columns, must be {len(columns)} or two more")
    cell = dict(zip(columns, cells, strict=False))
    _whole("weekday", cell["weekday"], 6)
    _whole("hour", cell["hour"], 23)
    floor = _whole("slotprice", cell["slotprice"])
    words = [f"{name}={cell[name]}" for name in _FEATURES if name in cell]
    words.append(f"slotprice={sum(floor > edge for edge in _PRICE_EDGES)}")
    if "usertag" in cell:
        words += [f"usertag={tag}" for tag in cell["usertag"].split(",")]
    return _whole("click", cell["click"], 1), _whole("payprice", cell["payprice"]), words


def _parse_yzx(line: str) -> Row:
    """Return click, payprice and feature words of `click payprice feature:1 ...`."""
    cells = line.split()
    if len(cells) < 2:
        raise ValueError(f"{len(cells)} columns, at least click and payprice are needed")
    words = []
    for cell in cells[2:]:
        name, _, value = cell.partition(":")
        if not name.isdigit() or value != "1":
            raise ValueError(f"feature must read <number>:1, got {cell!r}")
        words.append(name)
    return _whole("click", cells[0], 1), _whole("payprice", cells[1]), words


def _whole(name: str, text: str, high: int | None = None) -> int:
    """Return a whole number in 0..high; ValueError names what was read."""
    text = text.strip()
    if not (text.isascii() and text.isdigit()) or (high is not None and int(text) > high):
        rule = "a whole number" if high is None else f"a whole number in 0..{high}"
        raise ValueError(f"{name} must be {rule}, got {text!r}")
    return int(text)


@dataclass(frozen=True)
class PctrModel:
    """A logistic regression on the hashed features, for the `pctr` column of a log."""

    coefficient: FloatArray
    """[F]."""
    intercept: float

    def predict(self, rows: IPinYouRows) -> FloatArray:
        """Return click probabilities in [0, 1], [n]."""
        logit = rows.features @ self.coefficient + self.intercept
        return np.asarray(1.0 / (1.0 + np.exp(-np.clip(logit, -500.0, 500.0))))


def fit_pctr(train: IPinYouRows, inverse_penalty: float = 1.0) -> PctrModel:
    """Fit a logistic regression with an L2 penalty to rows of a training file; no randomness.

    The test file must be in the same format. A larger penalty (scikit-learn's C) is weaker.

    Raises:
        IPinYouError: All rows have the same click, which says nothing.
    """
    clicks = train.frame["click"].to_numpy()
    if len(np.unique(clicks)) < 2:
        raise IPinYouError(
            f"a click model needs rows with and without a click, got {int(clicks.sum())} clicks "
            f"in {len(clicks)} rows"
        )
    model = LogisticRegression(C=inverse_penalty, max_iter=1000).fit(train.features, clicks)
    return PctrModel(model.coef_[0].astype(np.float64), float(model.intercept_[0]))


def load_ipinyou(
    path: str | Path,
    pctr: PctrModel | FloatArray | None = None,
    *,
    max_bad_share: float = 0.01,
    rejects: str | Path | None = None,
) -> pd.DataFrame:
    """Return a log for `simulators.replay.run`: click, market_price (the payprice) and pctr.

    `pctr` is a fitted model; or click probabilities, one per data row of the file, those of bad
    rows included; or None: a logistic regression fitted on `train.log.txt` or `train.yzx.txt`
    beside it (on the file itself if it is that one: in sample then). The other arguments are those
    of `read_ipinyou`.

    Raises:
        IPinYouError: As `read_ipinyou`; no training file; or a wrong number of probabilities.
    """
    path = Path(path)
    rows = read_ipinyou(path, max_bad_share=max_bad_share, rejects=rejects)
    if pctr is None:
        train = path.with_name("train" + "".join(path.suffixes[-2:]))
        if not train.exists():
            raise IPinYouError(
                f"{path}: without pctr a click model is fitted on {train.name} beside it, which "
                f"does not exist"
            )
        same = train == path
        pctr = fit_pctr(rows if same else read_ipinyou(train, max_bad_share=max_bad_share))
    if isinstance(pctr, PctrModel):
        return rows.frame.assign(pctr=pctr.predict(rows))
    if len(pctr) != rows.num_rows:
        raise IPinYouError(
            f"{path}: pctr needs one value per data row ({rows.num_rows}), got {len(pctr)}"
        )
    return rows.frame.assign(pctr=np.asarray(pctr, dtype=np.float64)[rows.row])
