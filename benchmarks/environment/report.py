"""What the environment suite says about its results: tables, a figure and a computed reading.

Dims: B rows, N ads, V codes per level.
"""

import math
from collections.abc import Sequence
from dataclasses import astuple

import pandas as pd

from benchmarks.environment.figure import speed_figure
from benchmarks.environment.pieces import EPISODE, PIECES, PIECES_BATCH, ROWS
from benchmarks.environment.presets import (
    SINGLE,
    SYNC,
    TARGET_BATCH,
    TARGET_OVER_SYNC,
    TARGET_SINGLE,
    TARGET_VECTOR,
    VECTOR,
    EnvironmentPreset,
)
from benchmarks.environment.reading import sentences
from benchmarks.environment.values import batches, best_threads, figure, pieces, value
from benchmarks.reports.blocks import (
    Block,
    Bullets,
    Cell,
    Figure,
    Section,
    SuiteReport,
    Table,
    present,
)
from benchmarks.reports.statistics import Interval
from benchmarks.runs.results import Conditions
from simulators.world.info import WorldInfo

SPREAD = "Medians over repeats; in brackets the slowest and the fastest repeat."
HOW_TO_READ = (
    "A number is the median over the rounds (seeds) of each round's median over repeats. The "
    "brackets are the slowest and the fastest repeat of all rounds: they show what else the "
    "machine did, they are no confidence interval.",
    "A code choice is one step of one row; a request takes one choice per level of the code tree. "
    "Of single requests a choice pays its share of the resets; of days it does not, as a reset "
    "comes once a day.",
    "Actions are drawn uniformly from the legal mask. Drawing is timed and subtracted, except "
    "inside TorchRL's `rollout`, which draws by itself.",
    "Tasks ran one after the other, so nothing of this run disturbed a measurement. What else ran "
    "on the machine did: the matrix-product rate of every round is in `results.parquet`.",
)
"""In the place of what is said about seeds of a training run."""


def verdict(measured: float | None, target: float) -> str:
    """Return whether a target is met, and by how much it is not."""
    if measured is None:
        return "not measured"
    if measured >= target:
        return "met"
    return f"missed by {100 * (1 - measured / target):.1f} %"


def targets_table(results: pd.DataFrame, sizes: EnvironmentPreset) -> Table:
    """Return what was asked for beside what was measured."""
    rate, over_sync = "choices_per_s", "native_over_sync_choices_per_s"
    vector = f"vector, B = {TARGET_BATCH:,}: choices per second"
    sync = f"the same over `SyncVectorEnv` of singles, B = {TARGET_BATCH:,}"
    asked = (
        (vector, VECTOR, TARGET_BATCH, rate, TARGET_VECTOR),
        (sync, SYNC, TARGET_BATCH, over_sync, TARGET_OVER_SYNC),
        ("single environment: choices per second", SINGLE, 1, rate, TARGET_SINGLE),
    )
    rows: list[list[Cell]] = []
    for words, method, batch, metric, target in asked:
        at: Conditions = {"mode": "rankers", "batch": batch}
        found = {n: figure(results, method, metric, threads=n, **at) for n in sizes.threads}
        row: list[Cell] = [words, *(_text(found[n]) for n in sizes.threads), f"{target:,.0f}"]
        reached = {n: point.value for n, point in found.items() if point is not None}
        best = max(reached, key=reached.__getitem__, default=None)
        said = verdict(None if best is None else reached[best], target)
        rows.append([*row, said if best is None else f"{said}, with {_threads(best)}"])
    return Table(
        "Targets, with rankers",
        ["", *map(_threads, sizes.threads), "target", "on 2 cores, the better of the two"],
        rows,
        SPREAD,
    )


def _text(found: Interval | None) -> str:
    """Return a figure as text: the rows of this table have no common unit."""
    if found is None:
        return "\N{EN DASH}"
    decimals = 1 if found.value < 1_000 else 0
    return f"{found.value:,.{decimals}f} [{found.low:,.{decimals}f}, {found.high:,.{decimals}f}]"


def _threads(number: int) -> str:
    return f"{number} thread" + "s" * (number > 1)


def speed_table(results: pd.DataFrame, methods: Sequence[str], sizes: EnvironmentPreset) -> Table:
    """Return code choices per second of every interface and batch."""
    most = best_threads(results, sizes.threads)
    settings = [(mode, n) for mode in ("rankers", "free") for n in sizes.threads]
    words = {"rankers": "rankers", "free": "without"}
    rows: list[list[Cell]] = []
    for method in methods:
        for batch in batches(results, method):
            cells = [
                figure(results, method, mode=mode, threads=n, batch=batch) for mode, n in settings
            ]
            at: Conditions = {"mode": "rankers", "threads": most, "batch": batch}
            requests = value(results, method, "requests_per_s", **at)
            draw = value(results, method, "draw_s", **at)
            rows.append([f"`{method}`", batch, *cells, requests, 1e6 * draw if draw else None])
    return Table(
        "Code choices per second",
        [
            "interface",
            "B",
            *(f"{words[mode]}, {_threads(n)}" for mode, n in settings),
            "requests/s",
            "draw, µs",
        ],
        rows,
        SPREAD
        + " Without: the same world with rankers that return a constant. Requests per second "
        f"with rankers and {_threads(most)}. Draw: of an action, which is no part of the others.",
    )


def sync_table(results: pd.DataFrame, sizes: EnvironmentPreset) -> Table | None:
    """Return the native vector environment beside Gymnasium's; None without measurements."""
    rows: list[list[Cell]] = []
    for batch in batches(results, SYNC):
        for n in sizes.threads:
            at: Conditions = {"mode": "rankers", "threads": n, "batch": batch}
            names = ("native_choices_per_s", "choices_per_s")
            rates = [value(results, SYNC, name, **at) for name in names]
            quotient = figure(results, SYNC, "native_over_sync_choices_per_s", **at)
            rows.append([batch, n, *rates, _text(quotient)])
    if not rows:
        return None
    return Table(
        "Native vector environment against `SyncVectorEnv` of single environments",
        ["B", "threads", "native, choices per second", "sync, choices per second", "quotient"],
        rows,
        "Played in turn by one process with rankers, both with autoreset disabled. "
        f"B above {sizes.max_sync_batch:,} is left out: `SyncVectorEnv` steps its rows one by one, "
        "so more of them take longer and tell nothing new.",
    )  # fmt: skip


def pieces_table(results: pd.DataFrame, sizes: EnvironmentPreset) -> Table | None:
    """Return where an episode of the largest batch up to 1,024 spends its time."""
    found = {n: pieces(results, n) for n in sizes.threads}
    if not all(found.values()):
        return None
    batch = next(iter(found.values()))["batch"]
    rows: list[list[Cell]] = []
    for name, about in ROWS.items():
        cells: list[Cell] = []
        for n in sizes.threads:
            cells += [found[n][name], 100 * found[n][name] / found[n][EPISODE]]
        rows.append([*about, *cells])
    columns = [x for n in sizes.threads for x in (f"ms, {_threads(n)}", f"%, {_threads(n)}")]
    return Table(
        f"Where a batch of {batch:,.0f} requests spends its time",
        ["", "timed", *columns],
        rows,
        "Each piece is called on its own, with rankers; where the environment does a piece in a "
        "quicker way than that call, what is left over is too small, or negative.",
    )


def memory_table(memory: pd.DataFrame, methods: Sequence[str]) -> Table | None:
    """Return MiB of the interfaces; None where the system does not say."""
    mine = memory[memory["num_ads"] < 0].pivot(
        index=["interface", "batch"], columns="what", values="mib"
    )
    rows: list[list[Cell]] = [
        [f"`{method}`", int(batch), *(float(mib[name]) for name in ("world", "make", "run"))]
        for method in methods
        for (interface, batch), mib in mine.iterrows()
        if interface == method
    ]
    if not rows:
        return None
    return Table(
        "Memory, MiB",
        ["interface", "B", "loading the world", "making the environment", "two episodes"],
        rows,
        "How far resident memory rises at most during each stage, every row in a fresh process; "
        "what a stage builds on first use counts, the libraries' code that it loads too.",
    )


def catalogue_tables(
    results: pd.DataFrame, memory: pd.DataFrame, sizes: EnvironmentPreset
) -> list[Table]:
    """Return time per choice and memory over N and B, and what making a catalogue takes."""
    mib = memory[memory["num_ads"] >= 0].set_index(["num_ads", "batch", "what"])["mib"].to_dict()
    per_choice: list[list[Cell]] = []
    episodes: list[list[Cell]] = []
    making: list[list[Cell]] = []
    for size in sizes.catalogues:
        n = size.num_ads
        stages = ("world_s", "requests_s", "trie_s")
        seconds = [value(results, VECTOR, name, num_ads=n) for name in stages]
        if seconds[0] is None:
            continue
        cells: list[Cell] = [n, size.num_codes]
        for batch in sizes.batches:
            found = figure(results, VECTOR, "choice_s", num_ads=n, batch=batch)
            cells.append(found and Interval(*(1e6 * x for x in astuple(found))))
        per_choice.append(cells)
        makes = [value(results, VECTOR, "make_s", num_ads=n, batch=b) for b in sizes.batches]
        first = next((m for m in makes[1:] or makes if m is not None), None)
        runs = [mib.get((n, batch, "run")) for batch in sizes.batches]
        making.append([n, *seconds, first, mib.get((n, 0, "world")), *runs])
        timed = (*PIECES, EPISODE)
        taken = [value(results, VECTOR, "part_ms", num_ads=n, part=name) for name in timed]
        if taken[-1] is not None:
            episodes.append([n, *taken])
    threads = _threads(min(sizes.threads))
    tables = [
        Table(
            f"Time per choice by catalogue, µs, vector environment, {threads}",
            ["ads", "V", *(f"B = {b:,}" for b in sizes.batches)],
            per_choice,
            SPREAD + " Catalogues are drawn: random paths over V^3, targeting and dates of a "
            "synthetic world, rankers of the usual size that were never trained.",
        ),
        Table(
            f"Pieces of an episode of {PIECES_BATCH} requests by catalogue, ms, {threads}",
            ["ads", *PIECES.values(), "episode"],
            episodes,
        ),
        Table(
            "Making a catalogue, seconds, and memory, MiB",
            [
                "ads",
                "world, s",
                "splits, s",
                "code tree, s",
                "environment, s",
                "world, MiB",
                *(f"B = {b:,}, MiB" for b in sizes.batches),
            ],
            making,
            "World: its tables are drawn and read, the code tree among them, which is also given "
            "alone. Splits: which requests have an eligible ad. Environment: `make_vec` at the "
            "second B, when everything is imported. MiB: how far resident memory rises at most "
            "while the world is made, and while the environment is made and played.",
        ),
    ]
    return [table for table in tables if table.rows]


def left_out(results: pd.DataFrame, sizes: EnvironmentPreset) -> list[str]:
    """Return the combinations of catalogue and batch that were not measured, with the reason."""
    found = []
    for size in sizes.catalogues:
        for batch in sizes.batches:
            cells = batch * size.num_ads
            name = f"B = {batch:,} with {size.num_ads:,} ads"
            if cells > sizes.max_cells:
                found.append(f"{name}: B * N = {cells:.3g} is above the cap, {sizes.max_cells:.3g}")
            elif not value(results, VECTOR, "choice_s", num_ads=size.num_ads, batch=batch):
                found.append(f"{name}: too little free memory")
    return found


def make_report(
    results: pd.DataFrame,
    memory: pd.DataFrame,
    *,
    methods: Sequence[str],
    info: WorldInfo,
    sizes: EnvironmentPreset,
) -> SuiteReport:
    """Return the report of all rows of a run; `memory` is what `memory.csv` holds."""
    rounds = results["seed"].nunique()
    most = best_threads(results, sizes.threads)
    shown = Figure(
        "choices_per_s",
        f"Code choices per second against B, with rankers, {_threads(most)}; bars from the slowest "
        "to the fastest repeat. Dotted: the targets.",
        speed_figure(results, methods, most),
    )
    by_catalogue: list[Block] = [*catalogue_tables(results, memory, sizes)]
    missing = left_out(results, sizes) if by_catalogue else []
    by_catalogue += [Bullets([f"Left out, {text}." for text in missing])] if missing else []
    said: dict[str, list[Block]] = {
        "What the numbers say": [Bullets(sentences(results, methods, sizes))],
        "Speed by interface": present(shown, sync_table(results, sizes)),
        "Where time goes": present(pieces_table(results, sizes)),
        "Scaling with the catalogue": by_catalogue,
        "Memory": present(memory_table(memory, methods)),
    }
    rates = [value(results, "machine", "matrix_gflop_per_s", threads=n) for n in sizes.threads]
    rate = ", ".join(
        f"{r:,.0f} GFLOP/s with {_threads(n)}"
        for n, r in zip(sizes.threads, rates, strict=True)
        if r is not None and math.isfinite(r)
    )
    return SuiteReport(
        title="The speed of the environments",
        lead=f"{len(methods)} interfaces on world `{info.name}` ({info.source}, V = "
        f"{info.num_codes}, L = {info.num_levels}); {rounds} rounds. The machine multiplies "
        f"matrices at {rate}.",
        sections=[Section(title, blocks) for title, blocks in said.items() if blocks],
        tables=[targets_table(results, sizes), speed_table(results, methods, sizes)],
        how_to_read=HOW_TO_READ,
    )
