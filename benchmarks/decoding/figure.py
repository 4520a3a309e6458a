"""Figures of the decoding suite."""

import pandas as pd

from benchmarks.decoding.catalogue_tables import SHORT, every_size
from benchmarks.decoding.load import percent
from benchmarks.decoding.peers import OURS, THEIRS
from benchmarks.decoding.presets import CATALOGUES, LOAD, PEERS, WIDTHS, DecodingPreset
from benchmarks.decoding.tables import SEARCHES
from benchmarks.reports.blocks import Figure
from benchmarks.reports.figures import line_chart, scatter_chart
from benchmarks.reports.lookup import median_of, repeats_of
from benchmarks.reports.statistics import Interval

Line = list[tuple[float, Interval]]


def peers_figure(results: pd.DataFrame, sizes: DecodingPreset) -> Figure | None:
    """Return requests per second over the batch; None without two points of a line."""
    lines = {
        name: _line(results, PEERS, "requests_per_s", "batch", sizes.peers.batches, mode=mode)
        for name, mode in (("ours", OURS), ("transformers", THEIRS))
    }
    caption = "Requests per second with the same T5; bands from the slowest to the fastest repeat."
    return _chart("peers", caption, lines, "B, requests at a time", "requests per second")


def catalogues_figure(results: pd.DataFrame, sizes: DecodingPreset) -> Figure | None:
    """Return the time of a search over the catalogue; None without two points of a line."""
    numbers = [size.num_ads for size in every_size(sizes.catalogues)]
    lines = {
        name: _line(results, CATALOGUES, "search_ms", "num_ads", numbers, mode=mode)
        for mode, name in SHORT.items()
    }
    caption = (
        "A whole search by catalogue, decoding alone; bands from the slowest to the fastest repeat."
    )
    return _chart("catalogues", caption, lines, "ads", "ms per request")


def widths_figure(results: pd.DataFrame) -> Figure | None:
    """Return value found against speed; None without measurements."""
    points = {}
    for mode, words in SEARCHES.items():
        rate, value = (
            median_of(results, WIDTHS, metric, mode=mode)
            for metric in ("requests_per_s", "value_found")
        )
        if rate is not None and value is not None:
            points[words] = [(rate, value)]
    if not points:
        return None
    chart = scatter_chart(points, x_label="requests per second", label="best reward found")
    return Figure("widths", "What every search finds, and how fast.", chart)


def load_figure(results: pd.DataFrame, sizes: DecodingPreset) -> Figure | None:
    """Return latency over load; None without two points of a line."""
    lines: dict[str, Line] = {}
    for name in ("p50", "p95", "p99"):
        found = {
            load: median_of(results, LOAD, f"{name}_ms", mode=percent(load))
            for load in sizes.load.loads
        }
        lines[name] = [
            (100 * load, Interval(ms, ms, ms)) for load, ms in found.items() if ms is not None
        ]
    caption = "Time from when a request was due to its answer."
    return _chart("load", caption, lines, "load, % of capacity", "ms", log_x=False)


def _line(
    results: pd.DataFrame, part: str, metric: str, axis: str, points: object, **at: str | int
) -> Line:
    found = ((x, repeats_of(results, part, metric, **{axis: x}, **at)) for x in points)  # type: ignore[attr-defined]
    return [(float(x), interval) for x, interval in found if interval is not None]


def _chart(
    name: str, caption: str, lines: dict[str, Line], x_label: str, label: str, *, log_x: bool = True
) -> Figure | None:
    shown = {words: line for words, line in lines.items() if len(line) > 1}
    if not shown:
        return None
    return Figure(name, caption, line_chart(shown, x_label=x_label, label=label, log_x=log_x))
