"""What the architecture suite says: Tab. 2, what each row costs, and whether parts collapsed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from benchmarks.architecture.presets import (
    BASE,
    CONTROLS,
    DEEP,
    FULL,
    LAZY,
    MACHINE,
    METHODS,
    PARTS,
    RIVALS,
    SCORING,
    ArchitecturePreset,
)
from benchmarks.architecture.protocol import HISTORIES, TIME
from benchmarks.architecture.speed import DECODER_LAYERS, DEPTHS, NUM_BEAMS, NUM_CODES, THREADS
from benchmarks.reports.blocks import Block, Bullets, Cell, Section, SuiteReport, Table, present
from benchmarks.reports.lookup import interval_cells, mean_of
from benchmarks.reports.reading import Difference, compare
from benchmarks.reports.trials import rate_table
from benchmarks.runs.results import Conditions, under
from benchmarks.settings import Settings
from benchmarks.worlds import world_words
from simulators.world.info import WorldInfo

PAPER = {
    "hstu": 18.98,
    "onerec": 19.85,
    "hybrid_attention": 20.56,
    "token_aware_ffn": 21.98,
    "token_aware_norm": 20.76,
    "recursions": 20.09,
    "knowledge": 20.13,
    "thinking": 21.75,
    "refining": 19.61,
    "hte": 19.91,
    "mtp": 22.38,
    FULL: 27.32,
}
"""HitR@100 in per cent of GPR Tab. 2, on private data."""


_TRAINED = {
    "plain_tokens_per_s": ("training, plain encoder, tokens/s", ",.0f"),
    "plain_share_of_matrix_per_s": ("its share of the matrix product's rate", ".0%"),
    "hsd_tokens_per_s": (
        "training, HSD with hybrid attention and all token-aware parts, tokens/s",
        ",.0f",
    ),
    "hsd_share_of_matrix_per_s": ("its share of the matrix product's rate ", ".0%"),
    "hsd_over_plain_per_s": ("HSD over plain encoder", ".2f"),
    "base_over_plain_per_s": ("base (no token-aware part) over plain encoder", ".2f"),
    "ffn_grouped_over_shared_s": (
        "seconds of the token-aware FFN over those of a shared one",
        ".2f",
    ),
}
"""Metric to what a line says and the format of its numbers."""
_DECODED = {
    "plain_per_s": ("plain decoder, requests/s", ".0f"),
    "lazy_ar_per_s": ("LazyAR with K_d/L_d = 2/3, requests/s", ".0f"),
    "lazy_ar_over_plain_per_s": ("LazyAR over plain", ".2f"),
}
_BY_USER = (
    "Each user's last click or conversion is tested, the one before chooses weights and learning "
    "rate, and what comes before that trains, with a history of up to {items} ads (or "
    "twice as many organic items). Of users with "
    "fewer than three nothing is tested. The rankers, which the rows guided by the HTE learn "
    "values from, were trained by time and may have seen such a request; so were the semantic IDs "
    "of an imported log, unless it was imported with `--behavior-dim 0`."
)
_PROTOCOL = {
    TIME: "The logged days train, the first held-out day chooses weights and learning rate, later "
    "days test.",
    **dict.fromkeys(HISTORIES, _BY_USER),
}


_SCORING = "`{}`, `{}` and `{}`".format(*SCORING)
REGIMES = (
    "Eligibility says which ads a request may show. No rival is trained under it: `popularity` "
    "counts the logged ads, and `sasrec` and `hstu` learn a softmax over all ads. As in the "
    "originals, `onerec` learns one over all codes of a level and `tiger` one over its whole "
    "vocabulary, whether a code leads to an ad or not.",
    "The HHD's rows, which are all others, are trained under eligibility: the softmax of a level "
    "is over the codes that lead to an ad which the target's own request may show. Any other code "
    "is no wrong answer there, though the search may choose it. Only the loss of `lazy_ar`'s "
    "trunk, a small addition, is over all codes.",
    "No row is searched under eligibility: every list is drawn from the whole catalogue. "
    f"{_SCORING} score every ad. The others decode the catalogue's paths, and codes that lead to "
    "no ad leave the search. The HHD's rows take probabilities among the codes that remain, "
    "`onerec` and `tiger` as they were trained. `hte` and `full` add the HTE's values.",
    "Several ads may share a path. In the search it gives only the one of the highest expected "
    f"value. The rows that decode can't find the others, which {_SCORING} can.",
)
"""What each row is trained and searched over."""


def main_table(results: pd.DataFrame, rows: Sequence[str], list_size: int) -> Table:
    """Return Tab. 2."""
    metrics = {
        f"HitR@{list_size}": f"hitr_{list_size}",
        "Recall@10": "recall_10",
        "NDCG@10": "ndcg_10",
        "unreachable": "unreachable",
    }
    cells = [[row, *interval_cells(results, row, metrics.values())] for row in rows]
    requests = mean_of(results, rows[0], "num_requests") or 0.0
    num_ads = mean_of(results, rows[0], "num_ads")
    note = (
        f"{requests:,.0f} held-out requests per seed whose ad was clicked; the ad is to be found "
        "among all ads, whether the user may see them or not. `unreachable` is the share of these "
        "requests whose ad the row can't list: several ads may share a semantic-ID path, and a row "
        "that decodes paths finds one of them. It is 0 for rows that score every ad. No other "
        "column can exceed 1 minus this share."
    )
    if num_ads is not None and num_ads <= list_size:
        note += f" There are {num_ads:.0f} ads: HitR@{list_size} can't tell rows apart."
    return Table("Ranking the whole catalogue", ["row", *metrics], cells, note)


def cost_table(results: pd.DataFrame, rows: Sequence[str]) -> Table:
    """Return what training and ranking took."""
    names = {
        "parameters": "num_parameters",
        "without tables": "num_inner_parameters",
        "training GFLOP": "training_gflop",
        "training s": "train_s",
        "examples / s": "examples_per_s",
        "ranked requests / s": "ranked_per_s",
        "steps": "num_steps",
        "best step": "best_step",
        "loss at the start": "first_loss",
        "at the end": "last_loss",
    }
    cells = [[row, *(mean_of(results, row, metric) for metric in names.values())] for row in rows]
    return Table(
        "What each row costs (means over seeds, one thread)",
        ["row", *names],
        cells,
        "Tables are embeddings of codes, items and attributes, and output matrices. The HTE's "
        "parameters count where it is trained. FLOP are three times the forward pass's, as torch "
        "counts them before training (with the depths of an untrained router), without what "
        "`onerec` and `tiger` compute again on the way back. An example is a request whose ad is "
        "predicted. Losses of different rows are not of one kind.",
    )


def statistics_table(results: pd.DataFrame) -> Table | None:
    """Return the shares that show whether router, heads or refiner collapsed; None without any."""
    found = results[results["part"] == "collapse"]
    if found.empty:
        return None
    means = found.groupby(["method", "metric"], sort=False)["value"].mean()
    rows: list[list[Cell]] = [
        [row, str(metric), float(value)] for (row, metric), value in means.items()
    ]
    return Table(
        "Have parts collapsed?",
        ["row", "statistic", "mean"],
        rows,
        "depth_r: share of tokens that stop after r recursions; head_n: weight of the n-th head; "
        "refined_std: spread of the refining token over states, 0 if it says the same of all.",
    )


def part_differences(results: pd.DataFrame, rows: Sequence[str], metric: str) -> list[Difference]:
    """Return the declared comparisons: parts against the base, controls, rivals against full."""
    pairs = [(row, BASE) for row in (*PARTS, FULL) if row != "refining"]
    pairs += [("refining", "thinking"), *((row, f"control_{row}") for row in CONTROLS)]
    pairs = [(row, base) for row, base in pairs if row in rows]
    pairs += [(FULL, rival) for rival in RIVALS if rival in rows]
    pairs += [(LAZY, DEEP)] if LAZY in rows else []
    return [d for row, base in pairs for d in compare(results, metric, "HitR", [row], base)]


def still_learning(results: pd.DataFrame, rows: Sequence[str]) -> list[str]:
    """Return how many rows ended before they stopped getting better; nothing if none did."""
    steps = [[mean_of(results, row, name) for name in ("num_steps", "best_step")] for row in rows]
    trained = [pair for pair in steps if pair[0] is not None]
    num_late = sum(best == last for last, best in trained)
    if not num_late:
        return []
    return [
        f"{num_late} of {len(trained)} trained rows were best at their last step with every seed: "
        "they were still learning. The order is that of this budget, not of models trained to the "
        "end, and a row that learns slowly from few steps may lead after many."
    ]


def speed_blocks(results: pd.DataFrame, sizes: ArchitecturePreset) -> list[Block]:
    """Return what was measured of single parts, with one thread and with two."""
    training: Conditions = {"part": "train"}
    names: list[tuple[str, str, str, Conditions]] = [
        ("matrix product, GFLOP/s", "matrix_gflop_per_s", ".0f", {}),
        *((title, metric, form, training) for metric, (title, form) in _TRAINED.items()),
    ]
    for depth in DEPTHS:
        title = f"inference of the HSD at mean depth {depth}, ms"
        names.append((title, "inference_ms", ".0f", {"part": "inference", "depth": depth}))
    for layers in DECODER_LAYERS:
        for metric, (words, form) in _DECODED.items():
            title = f"{words}, {layers} layers, {NUM_BEAMS} beams"
            names.append((title, metric, form, {"part": "decode", "depth": layers}))
    rows: list[list[Cell]] = []
    for title, metric, form, at in names:
        found = [mean_of(under(results, threads=n, **at), MACHINE, metric) for n in THREADS]
        if found[0] is not None:
            rows.append([title, *(format(value, form) for value in found)])
    note = (
        f"Medians of {sizes.speed_repeats} calls that take turns, D = T = 128, "
        f"{sizes.speed_batch} sequences, two layers; alone on the machine. Training is forward and "
        "backward. The plain encoder is torch's TransformerEncoderLayer without a mask, as many "
        "multiply-adds per token as the HSD has. Decoders start from encoded "
        f"histories, run a whole beam search over {NUM_CODES**2:,} paths and ask no critic."
    )
    return [Table("Speed of the parts", ["what", "one thread", "two threads"], rows, note)]


def make_report(
    results: pd.DataFrame,
    settings: Settings[ArchitecturePreset],
    info: WorldInfo,
    tuned: Mapping[str, Path | None],
) -> SuiteReport:
    """Return the report."""
    sizes = settings.sizes
    rows = [row for row in METHODS if row in settings.methods]
    metric = f"hitr_{sizes.list_size}"
    differences = part_differences(results, rows, metric)
    costs = present(cost_table(results, rows), statistics_table(results))
    sections = [
        Section("Costs and collapse", costs),
        Section("Speed", speed_blocks(results, sizes)),
    ]
    note = "Every trial is a whole training, on a seed that is not tested."
    choices = rate_table(tuned, "row", "validation HitR of each", note)
    if choices is not None:
        sections.append(Section("Tuning", [choices]))
    paper: list[list[Cell]] = [[row, PAPER[row]] for row in rows if row in PAPER]
    facts = [
        _PROTOCOL[settings.protocol].format(items=HISTORIES.get(settings.protocol)),
        "Every row has the same windows in the same order, and as many steps; training stops "
        f"after {sizes.training.patience} validations without a better HitR, and the best weights "
        "are tested.",
        *still_learning(results, rows),
        "`base` is the HSTU-like block of Eq. 1 with causal softmax attention and a plain code "
        "decoder; a part's row adds one thing to it, `full` all. `hstu` is the published model "
        "with its own attention and a softmax over ads.",
        *REGIMES,
        "`tiger` and `onerec` encode once per supervised request, the others once per window.",
        "`control_X` is the base with feed-forward networks just so wide that it has no fewer "
        "parameters outside of tables than X.",
        "`lazy_ar` has three decoder layers of which two don't read the codes, `deep` three that "
        "do.",
    ]
    sections.append(
        Section(
            "How to read it",
            [
                Bullets(facts),
                Table("GPR Tab. 2, HitR@100 in %, private data", ["row", "HitR@100"], paper),
            ],
        )
    )
    return SuiteReport(
        title="Architectures (GPR Tab. 2)",
        lead=f"{len(rows)} rows, {len(settings.seeds)} seeds. {world_words(info)}"
        + " ".join(info.notes),
        sections=sections,
        tables=[main_table(results, rows, sizes.list_size)],
        differences=differences,
    )
