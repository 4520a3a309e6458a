"""Sections of the alignment report beside the main comparison: markets, ablations, tuning."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from benchmarks.alignment.ablations import ABLATIONS
from benchmarks.alignment.page.tables import VIEWS, filled, market_table, paired
from benchmarks.alignment.presets import CONDITION_MARKETS, WARM_ROWS, AlignmentSettings
from benchmarks.alignment.rows import labelled, rows_of
from benchmarks.reports.blocks import (
    Block,
    Bullets,
    Cell,
    Figure,
    Paragraph,
    Section,
    Table,
    present,
)
from benchmarks.reports.figures import interval_chart, profile_chart
from benchmarks.reports.lookup import TEST, interval_of
from benchmarks.reports.reading import coverage_note
from benchmarks.reports.statistics import Interval, Profile, performance_profile
from benchmarks.runs.results import BOOTSTRAP_SEED, seed_table, under
from benchmarks.worlds import BASE, on_market
from simulators.markets import MARKETS

RIVALS = ("ppo", "grpo")
Leads = Mapping[str, Mapping[str, Interval | None]]
"""`method - rival` to market to the difference."""
DIAL = ("shuffled_tree", "coarse_0", BASE, "coarse_100")
"""How much the coarse levels explain, from nothing to all; the base market has .7."""


def markets_section(results: pd.DataFrame, settings: AlignmentSettings) -> Section | None:
    """Return how every method does on every market."""
    if not settings.markets:
        return None
    methods = list(
        dict.fromkeys(["logging", "popularity", "constant", "mtp", "vaft", *settings.methods])
    )
    markets = [BASE, *settings.markets]
    blocks: list[Block] = [
        Bullets([f"`{name}`: {MARKETS[name].summary}" for name in markets]),
        _trust(settings, "Markets beside the base one may have fewer seeds than it."),
        *(market_table(results, methods, markets, view) for view in VIEWS),
    ]
    profiles = _profiles(results, settings)
    if profiles:
        chart = profile_chart(profiles, label="expected share of the gain, rankers")
        caption = (
            "Performance profiles: share of (market, seed) runs above a share of the gain, over "
            "the markets and seeds that all methods shown have."
        )
        blocks.append(Figure("profiles", caption, chart))
    return Section("Markets", present(*blocks, _gate_table(results, markets)))


def _trust(settings: AlignmentSettings, text: str) -> Paragraph:
    """Return how far to trust intervals over the seeds of markets and ablations."""
    num_seeds = min(len(settings.seeds), settings.sizes.num_other_seeds)
    return Paragraph(f"{text} {coverage_note(num_seeds)}")


def _profiles(results: pd.DataFrame, settings: AlignmentSettings) -> dict[str, Profile]:
    """Return every main method's profile over the markets that all of them ran on."""
    markets = [BASE, *(m for m in settings.markets if m not in CONDITION_MARKETS)]
    sizes = settings.sizes
    extra = (*WARM_ROWS, *sizes.extra_methods)
    methods = [m for m in settings.methods if m not in extra]
    if len(markets) < 2 or not methods:
        return {}
    rows = {method: [on_market(method, market) for market in markets] for method in methods}
    values = seed_table(labelled(results), VIEWS["rankers"])
    common = values.reindex(columns=[name for names in rows.values() for name in names]).dropna()
    if common.empty:
        return {}
    low, high = float(common.min().min()), float(common.max().max())
    thresholds = np.linspace(low - 0.02, high + 0.02, 120)
    return {
        method: performance_profile(common[names].to_numpy(), thresholds, BOOTSTRAP_SEED)
        for method, names in rows.items()
    }


def _gate_table(results: pd.DataFrame, markets: Sequence[str]) -> Table | None:
    rows: list[list[Cell]] = [
        [m, interval_of(under(results, market=m), "rankers", "regime/share", TEST)] for m in markets
    ]
    if not filled(rows):
        return None
    return Table(
        "What the rankers are good for: the truth of the ad they like best",
        ["market", "share of the gain, truth"],
        filled(rows),
        "Below 0 optimising the rankers is reward hacking. Taken when the world was made.",
    )


def conditions_section(results: pd.DataFrame, settings: AlignmentSettings) -> Section | None:
    """Return where HEPO is ahead of its rivals, as seed-paired differences."""
    pairs = [
        (method, rival)
        for method in ("hepo", "hepo_terminal")
        for rival in RIVALS
        if {method, rival} <= set(settings.methods)
    ]
    markets = [BASE, *settings.markets]
    if not pairs or len(markets) == 1:
        return None
    text = (
        "Each cell is a seed-paired difference of the expected share of the gain, method minus "
        "rival, on the same worlds and requests."
    )
    named = labelled(results)
    leads = {view: _leads(named, pairs, markets, metric) for view, metric in VIEWS.items()}
    tables = [
        Table(
            f"HEPO against its rivals, {view}",
            ["market", *columns],
            filled([[m, *(column[m] for column in columns.values())] for m in markets]),
        )
        for view, columns in leads.items()
    ]
    dial = _dial(leads["rankers"], markets)
    title = "Under which conditions HEPO is ahead"
    return Section(title, present(Paragraph(text), *tables, dial))


def _leads(
    named: pd.DataFrame, pairs: Sequence[tuple[str, str]], markets: Sequence[str], metric: str
) -> Leads:
    """Return every method's seed-paired difference from its rival on every market."""

    def lead(method: str, rival: str, m: str) -> Interval | None:
        found = paired(named, on_market(method, m), on_market(rival, m), metric)
        return None if found is None else found.interval

    return {
        f"{ours} - {rival}": {m: lead(ours, rival, m) for m in markets} for ours, rival in pairs
    }


def _dial(leads: Leads, markets: Sequence[str]) -> Figure | None:
    """Return HEPO's lead over what the coarse levels explain, with the shuffled tree as control."""
    steps = [market for market in DIAL if market in markets]
    groups = {
        name: points
        for name, column in leads.items()
        if len(points := [(m, x) for m in steps if (x := column[m])]) == len(steps)
    }
    if len(steps) < 2 or not groups:
        return None
    chart = interval_chart(groups, label="difference of shares, rankers", reference=0.0)
    caption = (
        "The dial: from a tree that explains nothing (shuffled) over item matches only (coarse_0) "
        "to categories only (coarse_100). If HEPO's lead came from the hierarchy it would grow "
        "from top to bottom."
    )
    return Figure("dial", caption, chart)


def ablations_section(results: pd.DataFrame, settings: AlignmentSettings) -> Section | None:
    """Return every ablation's difference from the same method without it."""
    if not settings.ablations:
        return None
    rows: list[list[Cell]] = []
    forest: dict[str, list[tuple[str, Interval]]] = {view: [] for view in VIEWS}
    named = labelled(results)
    for row in (r for r in rows_of(settings) if r.ablation):
        name, plain = str(row), str(replace(row, ablation=""))
        found = {view: paired(named, name, plain, metric) for view, metric in VIEWS.items()}
        entropy, ranked = paired(named, name, plain, "entropy"), found["rankers"]
        if ranked is None:
            continue
        itself = interval_of(named, name, VIEWS["rankers"], TEST)
        changes = [None if d is None else d.interval for d in found.values()]
        spread = None if entropy is None else entropy.interval.value
        rows.append([name, itself, *changes, spread, ranked.num_seeds])
        for view, difference in found.items():
            if difference is not None:
                forest[view].append((name, difference.interval))
    if not rows:
        return None
    blocks: list[Block] = [
        Bullets([f"`{name}`: {ABLATIONS[name].summary}" for name in settings.ablations]),
        _trust(settings, "Rows are compared over the seeds that both have."),
        Table(
            "Ablations: difference from the same method without the change",
            ["row", "rankers, itself", "rankers", "truth", "entropy (nats)", "seeds"],
            rows,
            "Expected share of the gain, seed-paired; few seeds: read the intervals as ranges.",
        ),
    ]
    lengths = {len(points) for points in forest.values() if points}
    if len(lengths) == 1:
        chart = interval_chart(
            {view: points for view, points in forest.items() if points},
            label="difference of shares",
            reference=0.0,
        )
        blocks.append(Figure("ablations", "Ablations against the method without them.", chart))
    return Section("Ablations", blocks)
