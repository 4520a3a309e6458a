"""The log of second-price auctions that bidders are replayed on and fitted to.

Columns click (0 or 1), market_price (the highest competing bid, at least 0) and pctr (in [0, 1]),
one row per auction, in order. Others may be there and are not read.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
COLUMNS = ("click", "market_price", "pctr")


def check_log(log: pd.DataFrame) -> None:
    """Raise ValueError, naming column, row (counted from 0) and value, if a log can't be replayed.

    Finite numbers only; the rules are the module's. An empty log is fine.
    """
    missing = [name for name in COLUMNS if name not in log.columns]
    if missing:
        raise ValueError(f"log lacks the column {missing[0]!r}; it needs {', '.join(COLUMNS)}")
    rules: dict[str, tuple[str, Callable[[FloatArray], NDArray[np.bool_]]]] = {
        "click": ("must be 0 or 1", lambda x: (x == 0) | (x == 1)),
        "market_price": ("must be finite and at least 0", lambda x: (x >= 0) & np.isfinite(x)),
        "pctr": ("must lie in [0, 1]", lambda x: (x >= 0) & (x <= 1)),
    }
    for name, (rule, holds) in rules.items():
        try:
            value = log[name].to_numpy(dtype=np.float64, na_value=np.nan)
        except (TypeError, ValueError) as error:
            raise ValueError(f"log column {name!r} {rule}, and can't be read: {error}") from error
        good = holds(value)
        if not good.all():
            row = int((~good).argmax())
            raise ValueError(f"log column {name!r} {rule}, got {value[row]} in row {row}")
