"""Tables of the decoding suite: targets, the peer, widths, decoders, precision, load.

Dims: B requests, K candidates, W beams.
"""

from collections.abc import Sequence

import pandas as pd

from benchmarks.decoding import decoders, precision, widths
from benchmarks.decoding.load import SOAK, TIE, percent
from benchmarks.decoding.peers import OURS, THEIRS
from benchmarks.decoding.presets import (
    DECODERS,
    LOAD,
    PEERS,
    PRECISION,
    WIDTHS,
    DecodingPreset,
    LoadSizes,
    PeerSizes,
)
from benchmarks.decoding.targets import GR4AD_LAZY, GR4AD_WIDTHS, STATIC
from benchmarks.decoding.values import judged, quotient
from benchmarks.decoding.work import PARTS, useful_gflop
from benchmarks.reports.blocks import Cell, Table
from benchmarks.reports.lookup import median_of, repeats_of

SPREAD = "Medians over rounds; in brackets the slowest and the fastest repeat."
SEARCHES = {
    widths.FLAT: "flat",
    widths.GROWING: "growing",
    widths.GUIDED: "growing, children by value",
    widths.NARROW: "narrow",
    widths.TREE: "tree search, steps of the narrow beam",
}
"""Searches in words."""


def targets_table(results: pd.DataFrame, parts: Sequence[str]) -> Table | None:
    """Return what was asked for beside what was measured; None where nothing was asked for."""
    found = judged(results, tuple(parts))
    if not found:
        return None
    rows: list[list[Cell]] = [[x.words, x.figure, x.bound, x.verdict] for x in found]
    note = f"Medians over rounds, one thread. For comparison, {STATIC}."
    return Table("Targets", ["", "measured", "target", "verdict"], rows, note)


def share_of_machine(results: pd.DataFrame, sizes: PeerSizes, batch: int) -> float | None:
    """Return our useful work per second over the machine's rate of float32 products."""
    rate = median_of(results, PEERS, "requests_per_s", mode=OURS, batch=batch)
    machine = median_of(results, PEERS, "product_gflop_per_s", mode="float32")
    if rate is None or not machine:
        return None
    return rate * sum(useful_gflop(sizes).values()) / machine


def peers_table(results: pd.DataFrame, sizes: PeerSizes) -> Table | None:
    """Return both searches by batch; None without measurements."""
    rows: list[list[Cell]] = []
    for batch in sizes.batches:
        ours, theirs = (
            repeats_of(results, PEERS, "requests_per_s", mode=mode, batch=batch)
            for mode in (OURS, THEIRS)
        )
        if ours is None or theirs is None:
            continue
        share = share_of_machine(results, sizes, batch)
        times = quotient(results, PEERS, (OURS, THEIRS), batch=batch)
        rows.append([batch, ours, theirs, times, None if share is None else 100 * share])
    if not rows:
        return None
    work = useful_gflop(sizes)
    parts = "; ".join(f"{PARTS[part]} {gflop:.3g}" for part, gflop in work.items())
    return Table(
        f"TIGER with {sizes.num_beams} beams, requests per second",
        ["B", "ours", "transformers", "times", "useful work, % of the machine's rate"],
        rows,
        f"{SPREAD} Of quotients the brackets are the lowest and the highest round. Same weights, "
        f"requests and catalogue of {sizes.num_ads:,} ads. Useful work of a request, GFLOP: "
        f"{parts}; together {sum(work.values()):.3g}.",
    )


def widths_table(results: pd.DataFrame, sizes: DecodingPreset) -> Table | None:
    """Return what every search finds and how fast; None without measurements."""
    own = sizes.widths
    rows: list[list[Cell]] = []
    flat = median_of(results, WIDTHS, "value_found", mode=widths.FLAT)
    named = {
        widths.FLAT: f"{own.flat}",
        widths.GROWING: "-".join(map(str, own.growing)),
        widths.GUIDED: "{} to {} each".format(*own.width_range),
        widths.NARROW: f"{own.narrow}",
    }
    for mode, words in SEARCHES.items():
        rate = repeats_of(results, WIDTHS, "requests_per_s", mode=mode)
        if rate is None:
            continue
        steps, recall, value = (
            median_of(results, WIDTHS, metric, mode=mode)
            for metric in ("model_steps", "recall", "value_found")
        )
        over = None if mode == widths.FLAT else quotient(results, WIDTHS, (mode, widths.FLAT))
        label = f"{words}, {named[mode]}" if mode in named else words
        row: list[Cell] = [label, steps, rate, over, None if recall is None else 100 * recall]
        rows.append([*row, 100 * value / flat if value is not None and flat else None])
    if not rows:
        return None
    return Table(
        "Widths",
        ["", "model steps", "requests/s", "times flat", "recall, %", "value, % of flat"],
        rows,
        f"{SPREAD} A width is cut to the prefixes that there are. Recall: of the "
        f"{own.num_candidates} likeliest ads that a beam as wide as the catalogue finds. Value: "
        "the best reward by the rankers among the ads found. Only the value-guided beam and the "
        "tree search ask the critic. GR4AD reports "
        f"{GR4AD_WIDTHS:.2f} times the throughput of 512 for 128-256-512, at .15 % less revenue.",
    )


def decoders_table(results: pd.DataFrame, sizes: DecodingPreset) -> Table | None:
    """Return both decoders; None without measurements."""
    own = sizes.decoders
    rows: list[list[Cell]] = []
    named = {
        decoders.PLAIN: f"all {own.num_layers} layers wait for the codes",
        decoders.LAZY: f"LazyAR, the first {own.num_lazy_layers} layers do not",
    }
    for mode, words in named.items():
        rate = repeats_of(results, DECODERS, "requests_per_s", mode=mode)
        if rate is None:
            continue
        over = quotient(results, DECODERS, (mode, decoders.PLAIN))
        rows.append([words, rate, None if mode == decoders.PLAIN else over])
    if not rows:
        return None
    return Table(
        f"Decoders, {own.num_beams} beams",
        ["", "requests/s", "times plain"],
        rows,
        f"{SPREAD} The rest of the model runs in both, B = {own.batch}. GR4AD reports about "
        f"{GR4AD_LAZY:.0f} times the throughput, of larger decoders on another machine.",
    )


def precision_table(results: pd.DataFrame) -> Table | None:
    """Return every precision beside float32; None without measurements."""
    rows: list[list[Cell]] = []
    names = ("top_1_share", "top_k_share", "largest_difference", "illegal_ads")
    for mode in (precision.FLOAT32, precision.BF16, precision.INT8):
        there = median_of(results, PRECISION, "has_instructions", mode=mode)
        own = {None: "\N{EN DASH}", 1.0: "yes", 0.0: "no"}[there]
        rate = repeats_of(results, PRECISION, "requests_per_s", mode=mode)
        if rate is None:
            if rows:  # the others were measured: torch has no such kernels
                rows.append([mode, own, "not in this torch", *[None] * 5])
            continue
        first, k, gap, illegal = (median_of(results, PRECISION, n, mode=mode) for n in names)
        over = quotient(results, PRECISION, (mode, precision.FLOAT32))
        over = None if mode == precision.FLOAT32 else over
        shares = [None if share is None else 100 * share for share in (first, k)]
        rows.append([mode, own, rate, over, *shares, gap, illegal])
    if not rows:
        return None
    return Table(
        "Precision",
        [
            "",
            "instructions",
            "requests/s",
            "times float32",
            "same first ad, %",
            "same ads, %",
            "largest difference, nats",
            "illegal ads",
        ],
        rows,
        f"{SPREAD} Agreement is with float32. Instructions: whether the processor has some for "
        "products in this precision. int8 is of the decoders' linear layers.",
    )


def load_table(results: pd.DataFrame, sizes: LoadSizes) -> Table | None:
    """Return what happens at every load; None without measurements."""
    rows: list[list[Cell]] = []
    times = ("offered_per_s", "answered_per_s", "p50_ms", "p95_ms", "p99_ms")
    for mode in (*map(percent, sizes.loads), SOAK):
        offered, answered, *latency = (median_of(results, LOAD, m, mode=mode) for m in times)
        if offered is None:
            continue
        seen = ("refused_share", "mean_width", "value_share", "same_list_share")
        refused, width, value, same = (median_of(results, LOAD, name, mode=mode) for name in seen)
        shares = [None if share is None else 100 * share for share in (value, same)]
        row: list[Cell] = [mode, offered, answered, *latency, width]
        rows.append([*row, None if refused is None else 100 * refused, *shares])
    if not rows:
        return None
    capacity = median_of(results, LOAD, "capacity_per_s") or 0.0
    return Table(
        f"Load, in % of {capacity:,.0f} requests per second",
        [
            "load",
            "offered/s",
            "answered/s",
            "p50, ms",
            "p95, ms",
            "p99, ms",
            "mean width",
            "refused, %",
            "value, %",
            "as a direct search, %",
        ],
        rows,
        "Medians over rounds. Latency is from when a request was due to its answer. Answered: "
        "within the phase. Value: the rankers' reward of the first ad, of that of full width, "
        f"{sizes.width}. The last column compares whole lists with those of a search for one "
        f"request alone at the same width; ads within {TIE:g} nats may change places.",
    )
