"""The suite's answer: sentences computed from the numbers, one thought each."""

from collections.abc import Callable, Sequence

import pandas as pd

from benchmarks.decoding import decoders, precision, widths
from benchmarks.decoding.load import percent
from benchmarks.decoding.peers import OURS, THEIRS
from benchmarks.decoding.presets import (
    CATALOGUES,
    DECODERS,
    LOAD,
    PEERS,
    PRECISION,
    WIDTHS,
    DecodingPreset,
)
from benchmarks.decoding.tables import share_of_machine
from benchmarks.decoding.values import Judged, growth, judged, quotient, sizes_with
from benchmarks.decoding.work import useful_gflop
from benchmarks.reports.lookup import median_of
from benchmarks.reports.reading import count

CALM = 0.8
"""The highest load, of capacity, at which a service is said to be calm."""


def sentences(results: pd.DataFrame, parts: Sequence[str], sizes: DecodingPreset) -> list[str]:
    """Return the reading, part by part and at last the targets; parts without rows say so."""
    readers: dict[str, Callable[[pd.DataFrame, DecodingPreset], list[str]]] = {
        PEERS: _peers,
        CATALOGUES: _catalogues,
        WIDTHS: _widths,
        DECODERS: _decoders,
        PRECISION: _precision,
        LOAD: _load,
    }
    said = []
    for part in parts:
        said += readers[part](results, sizes) or [f"Of `{part}` nothing was measured."]
    return said + _targets(judged(results, tuple(parts)))


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1_000 else f"{value:,.0f}"


def _times(quotient: float) -> str:
    """Return a quotient as it stands before "as many"."""
    return f"{quotient:.3g} times" if quotient >= 1 else f"only {quotient:.2g} times"


def _peers(results: pd.DataFrame, sizes: DecodingPreset) -> list[str]:
    if median_of(results, PEERS, "is_installed", mode=THEIRS) == 0.0:
        return [
            "transformers is not installed, so there is no peer to compare with "
            "(`pip install transformers`)."
        ]
    own = sizes.peers
    found = {batch: quotient(results, PEERS, (OURS, THEIRS), batch=batch) for batch in own.batches}
    known = {batch: times for batch, times in found.items() if times is not None}
    if not known:
        return []
    batch = max(known)
    ours, theirs = (
        median_of(results, PEERS, "requests_per_s", mode=mode, batch=batch) or 0.0
        for mode in (OURS, THEIRS)
    )
    said = [
        f"At B = {batch} our beam search answers {_times(known[batch].value)} as many requests per "
        f"second as transformers' constrained search, {_number(ours)} against {_number(theirs)}."
    ]
    others = [f"{times.value:.3g} at B = {b}" for b, times in known.items() if b != batch]
    if others:
        said.append(f"At other batches the quotient is {' and '.join(others)}.")
    share = share_of_machine(results, own, batch)
    machine = median_of(results, PEERS, "product_gflop_per_s", mode="float32")
    if share is not None and machine is not None:
        said.append(
            f"Its useful work of {sum(useful_gflop(own).values()):.2g} GFLOP a request is "
            f"{100 * share:.0f} % of what this machine's float32 products reach, "
            f"{machine:.0f} GFLOP per second."
        )
    return said + _agreement(results, sizes)


def _agreement(results: pd.DataFrame, sizes: DecodingPreset) -> list[str]:
    same, largest = (
        median_of(results, PEERS, metric) for metric in ("same_paths_share", "largest_difference")
    )
    if same is None or largest is None:
        return []
    number, own = "all" if same == 1 else f"{100 * same:.1f} % of", sizes.peers
    return [
        f"Both find the same {own.num_beams} paths in {number} requests.",
        f"Scores of the same path differ by at most {largest:.1e} nats.",
    ]


def _catalogues(results: pd.DataFrame, sizes: DecodingPreset) -> list[str]:
    said, numbers, grown = [], sizes_with(results, "build_s"), growth(results)
    if numbers:
        build = median_of(results, CATALOGUES, "build_s", num_ads=numbers[-1])
        said.append(f"A catalogue of {numbers[-1]:,} ads is built in {build:.3g} s.")
    if grown is not None:
        said.append(
            f"With {grown.most / grown.fewest:,.0f} times the ads, {grown.fewest:,} to "
            f"{grown.most:,}, a search with cached signatures takes {grown.times:.3g} times as "
            "long."
        )
    return said


def _widths(results: pd.DataFrame, sizes: DecodingPreset) -> list[str]:
    own, said = sizes.widths, []
    recall, value = (
        {mode: median_of(results, WIDTHS, metric, mode=mode) for mode in _ALL_WIDTHS}
        for metric in ("recall", "value_found")
    )
    flat = value[widths.FLAT]
    if flat is None:
        return []
    names = {widths.GROWING: f"Widths {'-'.join(map(str, own.growing))}"}
    names[widths.GUIDED] = "The same widths with children by value"
    for mode, words in names.items():
        times, found, worth = (
            quotient(results, WIDTHS, (mode, widths.FLAT)),
            recall[mode],
            value[mode],
        )
        if times is not None and found is not None and worth is not None:
            said.append(
                f"{words} answer {times.value:.3g} times as many requests as a flat beam of "
                f"{own.flat}."
            )
            said.append(
                f"They find {100 * found:.1f} % of the {own.num_candidates} likeliest ads, and ads "
                f"worth {100 * worth / flat:.1f} % of what the flat beam finds."
            )
    narrow, tree = value[widths.NARROW], value[widths.TREE]
    if narrow is not None and tree is not None:
        said.append(
            f"With as many model steps as a beam of {own.narrow}, a tree search finds ads worth "
            f"{100 * tree / narrow:.1f} % of that beam's."
        )
    return said


_ALL_WIDTHS = (widths.FLAT, widths.GROWING, widths.GUIDED, widths.NARROW, widths.TREE)


def _decoders(results: pd.DataFrame, sizes: DecodingPreset) -> list[str]:
    times = quotient(results, DECODERS, (decoders.LAZY, decoders.PLAIN))
    if times is None:
        return []
    return [
        f"With LazyAR {sizes.decoders.num_beams} beams answer {_times(times.value)} as many "
        "requests as with a plain decoder of the same sizes."
    ]


def _precision(results: pd.DataFrame, sizes: DecodingPreset) -> list[str]:
    said = []
    for mode in (precision.BF16, precision.INT8):
        times = quotient(results, PRECISION, (mode, precision.FLOAT32))
        same = median_of(results, PRECISION, "top_1_share", mode=mode)
        if times is not None and same is not None:
            said.append(
                f"{mode} answers {_times(times.value)} as many requests as float32, and has the "
                f"same first ad in {100 * same:.1f} % of them."
            )
    return said


def _load(results: pd.DataFrame, sizes: DecodingPreset) -> list[str]:
    own = sizes.load
    capacity = median_of(results, LOAD, "capacity_per_s")
    if capacity is None:
        return []
    said = [f"Capacity is {_number(capacity)} requests per second."]
    calm = max((load for load in own.loads if load <= CALM), default=None)
    if calm is not None:
        p99 = median_of(results, LOAD, "p99_ms", mode=percent(calm))
        if p99 is not None:
            said.append(
                f"At {percent(calm)} % of it 99 % of the answers come within {p99:,.0f} ms."
            )
    highest = max(own.loads)
    seen = ("refused_share", "mean_width", "p99_ms", "recovery_s")
    refused, width, p99, recovery = (
        median_of(results, LOAD, metric, mode=percent(highest)) for metric in seen
    )
    if refused is not None:
        said.append(
            f"At {percent(highest)} % the service refuses {100 * refused:.0f} % of the requests."
        )
    if width is not None and p99 is not None:
        said.append(
            f"The others are searched with {width:.0f} beams in place of {own.width} and come "
            f"within {p99:,.0f} ms in 99 % of cases."
        )
        said.append(
            f"It was not back at full width {own.rest_s:.3g} s after the overload."
            if recovery is None
            else f"It is back at full width {recovery:.2g} s after the overload."
        )
    return said


def _targets(found: Sequence[Judged]) -> list[str]:
    """Say how many targets are met, and which are not and by how much."""
    known = [target for target in found if target.is_met is not None]
    if not found:
        return []
    met = sum(bool(target.is_met) for target in known)
    said = (
        [f"Of {count(len(known), 'target')} with a figure {met} {_is(met)} met."] if known else []
    )
    said += [
        f"Missed: {target.words}, {target.figure}, where {target.bound} was asked for."
        for target in known
        if not target.is_met
    ]
    rest = len(found) - len(known)
    return said + ([f"{count(rest, 'target')} {_is(rest)} without a figure."] if rest else [])


def _is(number: int) -> str:
    return "is" if number == 1 else "are"
