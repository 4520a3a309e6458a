"""What the decoding suite says about its results: an answer, a table per part, figures."""

from collections.abc import Sequence

import pandas as pd

from benchmarks.decoding.catalogue_tables import catalogue_tables, left_out
from benchmarks.decoding.figure import catalogues_figure, load_figure, peers_figure, widths_figure
from benchmarks.decoding.presets import (
    CATALOGUES,
    DECODERS,
    LOAD,
    PEERS,
    PRECISION,
    WIDTHS,
    DecodingPreset,
)
from benchmarks.decoding.reading import sentences
from benchmarks.decoding.tables import (
    decoders_table,
    load_table,
    peers_table,
    precision_table,
    targets_table,
    widths_table,
)
from benchmarks.reports.blocks import Block, Bullets, Section, SuiteReport, present
from benchmarks.worlds import world_words
from simulators.world.info import WorldInfo

TITLES = {
    PEERS: "Against transformers",
    CATALOGUES: "Catalogues",
    WIDTHS: "Widths",
    DECODERS: "Decoders",
    PRECISION: "Precision",
    LOAD: "Under load",
}
"""Sections by part."""
HOW_TO_READ = (
    "A number is the median over the rounds (seeds) of each round's median over repeats. The "
    "brackets are the slowest and the fastest repeat of all rounds: they show what else the "
    "machine did, they are no confidence interval.",
    "Searches that are compared take turns, so that what else the machine does meets them alike. "
    "A quotient is of one round's medians.",
    "Tasks ran one after the other with one thread, so nothing of this run disturbed a "
    "measurement. What else ran on the machine did.",
    "Memory, refused requests and widths under load are not the same in every run and are in "
    "`observed.csv`.",
)
"""In the place of what is said about seeds of a training run."""


def make_report(
    results: pd.DataFrame,
    *,
    methods: Sequence[str],
    info: WorldInfo | None,
    sizes: DecodingPreset,
) -> SuiteReport:
    """Return the report of all rows of a run, the observed ones among them.

    `info` is of the world that parts with a trained policy search on; None without such parts.
    """
    blocks: dict[str, list[Block]] = {
        PEERS: present(peers_figure(results, sizes)),
        CATALOGUES: _catalogues(results, sizes),
        WIDTHS: present(widths_table(results, sizes), widths_figure(results)),
        DECODERS: present(decoders_table(results, sizes)),
        PRECISION: present(precision_table(results)),
        LOAD: present(load_table(results, sizes.load), load_figure(results, sizes)),
    }
    first = (targets_table(results, methods), peers_table(results, sizes.peers))
    where = "" if info is None else f" {world_words(info)}"
    rounds = results["seed"].nunique()
    return SuiteReport(
        title="How ads are found",
        lead=f"{len(methods)} of {len(TITLES)} parts, {rounds} rounds, one thread.{where}".strip(),
        sections=[Section(TITLES[part], blocks[part]) for part in methods if blocks[part]],
        tables=[table for table in first if table is not None],
        answer=" ".join(sentences(results, methods, sizes)),
        how_to_read=HOW_TO_READ,
    )


def _catalogues(results: pd.DataFrame, sizes: DecodingPreset) -> list[Block]:
    tables = catalogue_tables(results, sizes.catalogues)
    if not tables:
        return []
    reasons = left_out(results, sizes.catalogues)
    missing = Bullets([f"{reason}." for reason in reasons]) if reasons else None
    return present(*tables, catalogues_figure(results, sizes), missing)
