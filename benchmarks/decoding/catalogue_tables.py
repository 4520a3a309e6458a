"""Tables of catalogues: building and files, steps and searches, signatures and updates."""

from collections.abc import Sequence

import pandas as pd

from benchmarks.decoding.catalogues import ALL, BYTES_PER_AD, MASKED, MODES, SIGNATURE
from benchmarks.decoding.presets import CATALOGUES, CatalogueSize, CatalogueSizes
from benchmarks.reports.blocks import Cell, Table
from benchmarks.reports.lookup import median_of

SHORT = {ALL: "all ads", MASKED: "rows", SIGNATURE: "signatures"}
"""How requests say what they may show, in a table's heading."""
_UPDATES = ("add", "retire", "set_active")


def every_size(sizes: CatalogueSizes) -> tuple[CatalogueSize, ...]:
    """Return all catalogues of a preset."""
    return (*sizes.sizes, *sizes.first_round)


def catalogue_tables(results: pd.DataFrame, sizes: CatalogueSizes) -> list[Table]:
    """Return the tables; those without rows are left out."""
    tables = [
        _building(results, sizes),
        _steps(results, sizes),
        _searches(results, sizes),
        _changes(results, sizes),
    ]
    return [table for table in tables if table.rows]


def left_out(results: pd.DataFrame, sizes: CatalogueSizes) -> list[str]:
    """Return the catalogues that were not measured, with the reason."""
    return [
        f"{size.num_ads:,} ads of {size.num_levels} levels are left out: building them takes about "
        f"{size.num_ads * BYTES_PER_AD / 2**30:.1f} GiB, and less was free"
        for size in every_size(sizes)
        if median_of(results, CATALOGUES, "build_s", num_ads=size.num_ads) is None
    ]


def _rows(
    results: pd.DataFrame, sizes: CatalogueSizes, asked: Sequence[tuple[str, dict[str, str]]]
) -> list[list[Cell]]:
    """Return a row per catalogue, with the figures of metrics under conditions."""
    rows: list[list[Cell]] = []
    for size in every_size(sizes):
        found: list[Cell] = [
            median_of(results, CATALOGUES, metric, num_ads=size.num_ads, **at)
            for metric, at in asked
        ]
        if any(cell is not None for cell in found):
            rows.append([size.num_ads, *found])
    return rows


def _building(results: pd.DataFrame, sizes: CatalogueSizes) -> Table:
    asked: list[tuple[str, dict[str, str]]] = [
        ("build_s", {}),
        ("array_mib", {}),
        ("peak_mib", {"part": "build"}),
        ("save_s", {}),
        ("load_s", {}),
    ]
    columns = ["ads", "build, s", "arrays, MiB", "peak, MiB", "save, s", "load, s"]
    shape = {(size.num_levels, size.num_codes) for size in every_size(sizes)}
    paths = " or ".join(f"{levels} levels of {codes:,}" for levels, codes in sorted(shape))
    note = (
        f"Medians over rounds. Random paths of {paths} codes. Peak: how far memory rises at most "
        "while the first tree of a fresh process is built, its arrays included and the codes that "
        "it is built from not. Load: files are mapped; what a search reads of them comes later."
    )
    return Table("Building a catalogue", columns, _rows(results, sizes, asked), note)


def _steps(results: pd.DataFrame, sizes: CatalogueSizes) -> Table:
    asked = [(metric, {"mode": mode}) for metric in ("step_ms", "prepare_ms") for mode in MODES]
    columns = [f"{word}, {SHORT[mode]}" for word in ("step", "prepare") for mode in MODES]
    note = (
        f"Medians over rounds. A step: what may follow {sizes.num_beams} prefixes of "
        f"{sizes.batch} requests, and the best {sizes.num_beams} of it. Prepare: what the same "
        "requests need before; a search with rows of eligible ads pays it each time, signatures "
        "are found made. Prefixes are others at every step."
    )
    rows = _rows(results, sizes, asked)
    return Table("A legal step at the last level, ms", ["ads", *columns], rows, note)


def _searches(results: pd.DataFrame, sizes: CatalogueSizes) -> Table:
    asked = [("search_ms", {"mode": mode}) for mode in MODES]
    note = (
        f"Medians over rounds, B = {sizes.batch}. The policy costs nothing, so this is decoding "
        f"alone. Rows of eligible ads were measured up to {sizes.max_masked:,} ads."
    )
    rows = _rows(results, sizes, asked)
    return Table("A whole search, ms per request", ["ads", *SHORT.values()], rows, note)


def _changes(results: pd.DataFrame, sizes: CatalogueSizes) -> Table:
    asked: list[tuple[str, dict[str, str]]] = [
        ("signature_ms", {}),
        *(("update_ms", {"part": part}) for part in _UPDATES),
        ("search_after_ms", {"mode": SIGNATURE}),
    ]
    number = f"{sizes.num_updated:,}"
    updates = [f"{word} {number}" for word in ("add", "retire", "rest")]
    note = (
        "Medians over rounds. An update makes a new version and leaves the old one to searches "
        "that run. The first search after it makes its signatures anew; ms per request, of "
        f"{sizes.batch} requests with {sizes.num_signatures} signatures."
    )
    columns = ["ads", "a signature", *updates, "first search after"]
    return Table("Signatures and updates, ms", columns, _rows(results, sizes, asked), note)
