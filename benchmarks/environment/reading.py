"""What the environment suite's numbers say, in sentences that are computed from them."""

import math
from collections.abc import Sequence

import pandas as pd

from benchmarks.environment.pieces import EPISODE, INPUTS, PIECES
from benchmarks.environment.presets import DAY_VECTOR, SYNC, TORCH, VECTOR, EnvironmentPreset
from benchmarks.environment.values import batches, best_threads, pieces, value

FREE_CORES = 0.75
"""Share of the threads' number by which matrix products at least gain where cores are free."""
ABOUT_EQUAL = 0.05
"""Quotients this close to 1 are called equal."""


def sentences(results: pd.DataFrame, methods: Sequence[str], sizes: EnvironmentPreset) -> list[str]:
    """Return the reading, a sentence or two per question; questions without rows are left out."""
    best = best_threads(results, sizes.threads)
    found = [
        _second_core(results, sizes),
        _batching(results, best),
        _second_thread(results, sizes),
        _rankers(results, best),
        _pieces(results, best),
        _interfaces(results, methods, best),
        _catalogue(results, sizes),
    ]
    return [text for text in found if text]


def _rate(
    results: pd.DataFrame, method: str, batch: int, threads: int, mode: str = "rankers"
) -> float | None:
    return value(results, method, "choices_per_s", mode=mode, threads=threads, batch=batch)


def _second_core(results: pd.DataFrame, sizes: EnvironmentPreset) -> str:
    """Say whether the cores were free, by the rate of matrix products."""
    few, many = min(sizes.threads), max(sizes.threads)
    rates = [value(results, "machine", "matrix_gflop_per_s", threads=n) for n in (few, many)]
    if few == many or None in rates:
        return ""
    alone, together = (rate or 0.0 for rate in rates)
    gain = together / alone
    text = f"Machine: matrix products run at {gain:.2f} times the speed with {many} threads"
    if gain < FREE_CORES * many / few:
        text += (
            ", so other work kept the cores busy: threads wait for each other then, and figures "
            f"with {many} threads may lie far below what a free machine gives"
        )
    return text + "."


def _batching(results: pd.DataFrame, threads: int) -> str:
    sizes = batches(results, VECTOR)
    rates = [_rate(results, VECTOR, batch, threads) or 0.0 for batch in sizes]
    if len(sizes) < 2:
        return ""
    best = max(range(len(sizes)), key=rates.__getitem__)
    text = (
        f"Batching: with {threads} thread{'s' * (threads > 1)}, B = {sizes[best]:,} is the fastest "
        f"of those measured, {rates[best]:,.0f} choices per second, "
        f"{rates[best] / rates[0]:.3g} times B = {sizes[0]}"
    )
    if best < len(sizes) - 1:
        text += f"; B = {sizes[-1]:,} reaches {100 * rates[-1] / rates[best]:.0f} % of it"
    return text + "."


def _listed(head: str, parts: Sequence[str], tail: str = "") -> str:
    return f"{head} {', '.join(parts)}{tail}." if parts else ""


def _second_thread(results: pd.DataFrame, sizes: EnvironmentPreset) -> str:
    few, many = min(sizes.threads), max(sizes.threads)
    parts = []
    for batch in batches(results, VECTOR):
        alone, together = (_rate(results, VECTOR, batch, n) for n in (few, many))
        if alone and together and few != many:
            parts.append(f"{together / alone:.2f} at B = {batch:,}")
    return _listed(
        f"Threads: {many} instead of {few} multiply the vector environment's speed by", parts
    )


def _rankers(results: pd.DataFrame, threads: int) -> str:
    parts = []
    for batch in batches(results, VECTOR):
        whole, free = (_rate(results, VECTOR, batch, threads, m) for m in ("rankers", "free"))
        if whole and free:
            parts.append(f"{100 * (1 - whole / free):.0f} % at B = {batch:,}")
    return _listed(
        "Rankers: of the vector environment's time they and their inputs take",
        parts,
        " (less time without them, over the time with them)",
    )


def _pieces(results: pd.DataFrame, threads: int) -> str:
    found = pieces(results, threads)
    if not found:
        return ""
    whole = found[EPISODE]
    ranked = sorted(PIECES, key=lambda name: -found[name])
    listed = ", ".join(f"{PIECES[n]} {100 * found[n] / whole:.0f} %" for n in ranked[:3])
    return (
        f"Where time goes: an episode of {found['batch']:,.0f} requests takes {whole:.1f} ms. The "
        f"largest pieces are {listed}; the rankers' inputs alone are "
        f"{100 * found[INPUTS] / whole:.0f} %."
    )


def _interfaces(results: pd.DataFrame, methods: Sequence[str], threads: int) -> str:
    """Compare the interfaces with the vector environment at the largest B that each has."""
    parts = []
    for method, words in (
        (TORCH, "TorchRL's `rand_action` and `step`"),
        (DAY_VECTOR, "days"),
        (SYNC, "`SyncVectorEnv`"),
    ):
        common = [b for b in batches(results, method) if b in batches(results, VECTOR)]
        if method not in methods or not common:
            continue
        batch = max(common)
        theirs, ours = (_rate(results, m, batch, threads) for m in (method, VECTOR))
        if theirs and ours:
            parts.append(f"{words} {theirs / ours:.2f} at B = {batch:,}")
    return _listed("Interfaces: of the vector environment's speed,", parts)


def _catalogue(results: pd.DataFrame, sizes: EnvironmentPreset) -> str:
    """Say how time per choice grows with N at the largest B that all catalogues have."""
    numbers = [size.num_ads for size in sizes.catalogues]
    for batch in sorted(sizes.batches, reverse=True):
        times = [value(results, VECTOR, "choice_s", num_ads=n, batch=batch) for n in numbers]
        kept = [time for time in times if time is not None]
        if len(numbers) > 1 and len(kept) == len(numbers):
            more, longer = numbers[-1] / numbers[0], kept[-1] / kept[0]
            slope = math.log(longer) / math.log(more)
            last = math.log(kept[-1] / kept[-2]) / math.log(numbers[-1] / numbers[-2])
            equal = abs(longer - 1) < ABOUT_EQUAL
            grown = "as long" if equal else f"{longer:.2g} times as long"
            return (
                f"Catalogue: with {more:,.0f} times the ads ({numbers[0]:,} to {numbers[-1]:,}) a "
                f"choice at B = {batch:,} takes {grown}: N to the power {slope:.2f}, over the last "
                f"step {last:.2f} (1 would be in proportion). " + _grown_pieces(results, numbers)
            )
    return ""


def _grown_pieces(results: pd.DataFrame, numbers: Sequence[int]) -> str:
    """Return which pieces the added time of the largest catalogue went into."""
    growth = {}
    for name in PIECES:
        first, last = (
            value(results, VECTOR, "part_ms", num_ads=n, part=name)
            for n in (numbers[0], numbers[-1])
        )
        if first is None or last is None:
            return ""
        growth[name] = last - first
    total = sum(max(grown, 0.0) for grown in growth.values())
    if total <= 0:
        return ""
    ranked = sorted(growth, key=lambda name: -growth[name])[:2]
    listed = " and ".join(f"{PIECES[n]} ({100 * growth[n] / total:.0f} %)" for n in ranked)
    return f"Most of the added time goes into {listed}."
