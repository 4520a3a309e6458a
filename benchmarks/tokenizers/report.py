"""What the tokenizers suite says: Tab. 1 per catalogue, hold-out, tuning and speed."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from benchmarks.reports.blocks import Block, Bullets, Cell, Paragraph, Section, SuiteReport, Table
from benchmarks.reports.lookup import interval_of, values_of
from benchmarks.reports.reading import Difference, adjust, compare, correction_note
from benchmarks.reports.statistics import bootstrap
from benchmarks.reports.trials import read_all
from benchmarks.runs.results import BOOTSTRAP_SEED, seed_table, under
from benchmarks.settings import Settings
from benchmarks.tokenizers.catalogues import FILE, JOURNEY, WORLD
from benchmarks.tokenizers.fit import SPACES
from benchmarks.tokenizers.presets import MACHINE, TokenizersPreset, row_name

Tuned = Mapping[tuple[str, str], Path | None]
TITLES = {WORLD: "the synthetic world's items", JOURNEY: "The Complete Journey's products"}
PAPER = {
    "rq_vae": (0.2321, 0.9213, 0.985),
    "rq_kmeans": (0.2140, 1.0, 0.986),
    "rq_kmeans_plus": (0.2060, 0.9936, 0.992),
}
"""Collision rate, usage of the first level and path similarity of GPR Tab. 1, on private data."""
COLUMNS = {
    "collision rate": ("collision_rate", 0),
    "usage 1": ("code_usage", 1),
    "usage 2": ("code_usage", 2),
    "usage 3": ("code_usage", 3),
    "path similarity": ("path_similarity", 0),
    "reconstruction error": ("reconstruction_error", 0),
}
"""Heading to metric and level."""
_LEVELS = (1, 2, 3)
_RATES = ("encoded", "share_of_matrix", "matrix_gflop")
ALL = "all"
"""The split of figures over all items."""


def main_table(
    results: pd.DataFrame, catalogue: str, methods: Sequence[str], embeddings: Path | None
) -> Table:
    """Return Tab. 1 of one catalogue, over all its items."""
    own = under(results, catalogue=catalogue)
    num_items, twins, variance, num_paths = (
        values_of(own, methods[0], metric, ALL).mean()
        for metric in ("num_items", "twins", "variance", "num_paths")
    )
    rows: list[list[Cell]] = [
        [method, *_cells(own, method, COLUMNS.values(), ALL)] for method in methods
    ]
    title = TITLES.get(catalogue, f"the items of {embeddings.name if embeddings else FILE}")
    return Table(
        f"Semantic IDs of {title}",
        ["", *COLUMNS],
        rows,
        f"{num_items:,.0f} items, {twins:.1%} of them with the embedding of another one; "
        f"{num_paths:,.0f} paths for every tokenizer. The reconstruction "
        f"error would be {variance:.4g} with one code for all. Four fifths of the items were "
        "fitted; all are counted.",
    )


def _cells(
    own: pd.DataFrame, method: str, columns: Iterable[tuple[str, int]], split: str
) -> list[Cell]:
    return [interval_of(under(own, level=level), method, m, split) for m, level in columns]


def split_table(results: pd.DataFrame, catalogue: str, methods: Sequence[str]) -> Table:
    """Return the grades of fitted and held-out items."""
    own = under(results, catalogue=catalogue)
    rows = [
        [f"{method}, {split}", *_cells(own, method, COLUMNS.values(), split)]
        for method in methods
        for split in ("train", "heldout")
    ]
    return Table(
        f"Fitted and held-out items ({catalogue})",
        ["", *COLUMNS],
        rows,
        "Collisions are counted inside each part, and usage too: a fifth of the items meets fewer "
        "others and uses fewer codes.",
    )


def entropy_table(results: pd.DataFrame, catalogue: str, methods: Sequence[str]) -> Table:
    """Return entropy per level and the seconds of a fit."""
    own = under(results, catalogue=catalogue)
    columns = [*(("entropy", level) for level in _LEVELS), ("fit_s", 0)]
    rows = [[method, *_cells(own, method, columns, ALL)] for method in methods]
    return Table(
        f"Entropy of the codes ({catalogue})",
        ["", *(f"level {level} (nats)" for level in _LEVELS), "fit (s, one thread)"],
        rows,
    )


def tuning_table(tuned: Tuned) -> Table | None:
    """Return which settings were chosen; None without tuning."""
    rows: list[list[Cell]] = []
    for (method, catalogue), log in read_all(tuned).items():
        scores = [entry["score"] for entry in log["trials"]]
        chosen = ", ".join(f"{k} = {v}" for k, v in log["chosen"].items()) or "defaults"
        best = min(score for score in scores if score is not None)
        rows.append([row_name(method, catalogue), len(scores), scores[0], best, chosen])
    if not rows:
        return None
    return Table(
        "Tuning: collision rate on items that the test does not use",
        ["row", "trials", "defaults", "best", "chosen"],
        rows,
        "A shape gives the codes per level as multiples of V; a negative number divides.",
    )


def speed_blocks(results: pd.DataFrame, sizes: TokenizersPreset) -> list[Block]:
    """Return what was measured of RQ-KMeans's speed."""
    machine = results[results["method"] == MACHINE]
    rows: list[list[Cell]] = []
    for threads in (1, 2):
        found = under(machine, threads=threads).set_index(["part", "metric"])["value"]
        rate, share, gflops = (found["", f"{n}_per_s"] for n in _RATES)
        rows.append([f"{threads}", f"{rate:,.0f}", f"{gflops:.0f}", f"{share:.0%}"])
    fit_s = values_of(machine, MACHINE, "rq_kmeans_fit_s").iloc[0]
    stream = under(machine, part="stream").set_index("metric")["value"]
    table = Table(
        "RQ-KMeans, 64 wide, 3 x 256 codes",
        ["threads", "encoded items per second", "matrix product (GFLOP/s)", "share of it"],
        rows,
        f"Fitting {sizes.speed_items:,} items took {fit_s:.1f} s, on one thread "
        "as always. The share is what the distances alone would take at the machine's rate.",
    )
    memory = (
        f", with {stream['peak_mib']:,.0f} MiB of memory at most beside what the process had"
        if "peak_mib" in stream
        else ""
    )
    text = (
        f"{stream['num_items']:,.0f} items in a Parquet file were encoded at "
        f"{stream['encoded_per_s']:,.0f} items per second{memory}."
    )
    return [table, Paragraph(text)]


def expectations(results: pd.DataFrame, catalogue: str, methods: Sequence[str]) -> list[str]:
    """Return whether Tab. 1's order holds on a catalogue, from seed-paired differences.

    The p-values are corrected for the number of comparisons on a measure (Holm).
    """
    plus = "rq_kmeans_plus"
    if plus not in methods:
        return []
    own = under(results, catalogue=catalogue)
    found: list[Difference] = []
    for rival in ("rq_kmeans", "rq_vae"):
        for metric, words, higher in (
            ("collision_rate", "fewer collisions", False),
            ("path_similarity", "a higher path similarity", True),
        ):
            found += compare(own, metric, words, [plus], rival, split=ALL, higher_is_better=higher)
    found = adjust(found)
    said = []
    for difference in found:
        holds = {
            "improves": "holds",
            "worsens": "does not hold: the reverse is true",
            "lowers": "does not hold: the reverse is true",
            "no clear difference": "is not clear",
        }.get(difference.verdict, "can't be told from so few seeds")
        interval = difference.interval
        said.append(
            f"The paper finds {difference.measure} with `{plus}` than with "
            f"`{difference.baseline}`; here ({catalogue}) that {holds}: {interval.value:+.4f} "
            f"[{interval.low:+.4f}, {interval.high:+.4f}]."
        )
    if found:
        said.append(f"On {catalogue} {correction_note(found)}")
    usage = values_of(under(own, level=1), plus, "code_usage", ALL).mean()
    said.append(f"`{plus}` uses {usage:.1%} of the first level's codes ({catalogue}).")
    return said


def collision_quotient(results: pd.DataFrame, catalogue: str) -> str | None:
    """Return how many times rarer UA-SID's collisions are than RQ-KMeans's, with an interval."""
    pairs = seed_table(under(results, catalogue=catalogue), "collision_rate", ALL)
    if not {"rq_kmeans", "ua_sid"} <= set(pairs.columns) or (pairs["ua_sid"] == 0).any():
        return None
    found = bootstrap((pairs["rq_kmeans"] / pairs["ua_sid"]).to_numpy(), BOOTSTRAP_SEED)
    return (
        f"With as many paths, `ua_sid` has {found.value:.1f} [{found.low:.1f}, {found.high:.1f}] "
        f"times fewer collisions than `rq_kmeans` ({catalogue}); its keys tell ads apart that have "
        "the same content."
    )


def make_report(
    results: pd.DataFrame,
    settings: Settings[TokenizersPreset],
    catalogues: Sequence[str],
    tuned: Tuned,
) -> SuiteReport:
    """Return the report."""
    sizes = settings.sizes
    tables = [
        main_table(results, catalogue, settings.methods, settings.embeddings)
        for catalogue in catalogues
    ]
    sentences: list[str] = []
    for catalogue in catalogues:
        sentences += expectations(results, catalogue, settings.methods)
        quotient = collision_quotient(results, catalogue)
        sentences += [quotient] if quotient else []
    paper = Table(
        "GPR Tab. 1, on private data",
        ["", "collision rate", "usage 1", "path similarity"],
        [[method, *values] for method, values in PAPER.items()],
        "For the order to expect; sizes, data and codes per level are not given in the paper.",
    )
    sections = [Section("The paper's order", [Bullets(sentences), paper])]
    for catalogue in catalogues:
        blocks: list[Block] = [
            split_table(results, catalogue, settings.methods),
            entropy_table(results, catalogue, settings.methods),
        ]
        sections.append(Section(f"Parts: {catalogue}", blocks))
    choices = tuning_table(tuned)
    if choices is not None:
        spaces = [
            f"`{method}` tries " + "; ".join(f"{k} in {v}" for k, v in SPACES[method].items())
            for method in settings.methods
        ]
        sections.append(Section("Tuning", [choices, Bullets(spaces)]))
    sections.append(Section("Speed and memory", speed_blocks(results, sizes)))
    worlds = {JOURNEY: f"texts of the retail panel (TF-IDF, SVD to {sizes.text_dim})"}
    named = [worlds.get(c, settings.world if c == WORLD else FILE) for c in catalogues]
    return SuiteReport(
        title="Semantic IDs: four tokenizers (GPR Tab. 1)",
        lead="Collision rate, code usage, path similarity and reconstruction error of RQ-VAE, "
        f"RQ-KMeans, RQ-KMeans+ and UA-SID with equally many paths, on: {'; '.join(named)}. "
        f"{len(settings.seeds)} seeds, each with items, hold-out and start of its own; means are "
        "interquartile means with 95 % bootstrap intervals.",
        sections=sections,
        tables=tables,
    )
