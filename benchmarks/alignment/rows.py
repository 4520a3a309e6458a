"""The rows of the alignment suite: a method, perhaps with one change, on a market."""

from dataclasses import dataclass, replace
from itertools import product

import pandas as pd

from agents.train_config import TrainConfig
from benchmarks.alignment.ablations import ABLATIONS
from benchmarks.alignment.presets import (
    CONDITION_MARKETS,
    CONDITION_METHODS,
    WARM_ROWS,
    AlignmentSettings,
)
from benchmarks.worlds import BASE, on_market


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is trained; written `method+ablation@market`, e.g. `hepo+uncapped@drift`."""

    method: str
    ablation: str = ""
    market: str = BASE

    def __str__(self) -> str:
        change = f"+{self.ablation}" if self.ablation else ""
        return on_market(self.method + change, self.market)

    @property
    def conditions(self) -> dict[str, str]:
        """What the row is measured under, in the columns of its table."""
        return {"market": self.market, "ablation": self.ablation}

    def training(self, config: TrainConfig) -> TrainConfig:
        """Return the configuration with the ablation's change."""
        return replace(config, **ABLATIONS[self.ablation].training) if self.ablation else config  # type: ignore[arg-type]


def labelled(results: pd.DataFrame) -> pd.DataFrame:
    """Return the lines with their rows, as they are written in tables, in the place of methods."""
    columns = (results[name] for name in ("method", "ablation", "market"))
    rows = zip(*columns, strict=True)
    labels = [str(Row(method=m, ablation=a, market=market or BASE)) for m, a, market in rows]
    return results.assign(method=labels, market="", ablation="")


def rows_of(settings: AlignmentSettings) -> dict[Row, tuple[int, ...]]:
    """Return every row to be trained and its seeds, in the order of the tables.

    The base market's methods have all seeds; extra methods, other markets and ablations the first
    few of them, as the preset says.
    """
    sizes = settings.sizes
    trained = [m for m in settings.methods if m not in WARM_ROWS]
    some = settings.seeds[: sizes.num_other_seeds]
    rows: dict[Row, tuple[int, ...]] = {}
    for method in trained:
        seeds = some if method in sizes.extra_methods else settings.seeds
        rows[Row(method=method)] = seeds
    for market, method in product(settings.markets, trained):
        allowed = market not in CONDITION_MARKETS or method in CONDITION_METHODS
        if allowed and method not in sizes.extra_methods:
            rows[Row(method=method, market=market)] = some
    for name in settings.ablations:
        ablation = ABLATIONS[name]
        for market in ablation.markets:
            if market in (BASE, *settings.markets):
                for method in (m for m in trained if m in ablation.methods):
                    rows[Row(method=method, ablation=name, market=market)] = some
    return rows


def seeds_on(
    market: str, rows: dict[Row, tuple[int, ...]], settings: AlignmentSettings
) -> tuple[int, ...]:
    """Return the seeds whose world and warm start a market beside the base one needs."""
    needed = {seed for row, seeds in rows.items() if row.market == market for seed in seeds}
    return tuple(seed for seed in settings.seeds if seed in needed)
