"""The report of the alignment suite: its main tables, its sections, and a computed reading."""

from collections.abc import Mapping, Sequence

import pandas as pd

from benchmarks.alignment.page.answer import answer
from benchmarks.alignment.page.curves import curves_section, unsettled_words
from benchmarks.alignment.page.how import how_section
from benchmarks.alignment.page.rankers import rankers_section
from benchmarks.alignment.page.studies import (
    ablations_section,
    conditions_section,
    markets_section,
)
from benchmarks.alignment.page.tables import (
    BOUNDS,
    KINDS,
    REFERENCES,
    VIEWS,
    WARM_START,
    add_normalised,
    time_table,
    verdict_table,
)
from benchmarks.alignment.page.tuning import tuning_section
from benchmarks.alignment.page.why import why_section
from benchmarks.alignment.presets import SUPERVISED, WARM_ROWS, AlignmentSettings
from benchmarks.evaluation import SERVED
from benchmarks.reports.blocks import (
    Figure,
    Paragraph,
    Section,
    SuiteReport,
    Table,
    present,
)
from benchmarks.reports.figures import interval_chart
from benchmarks.reports.lookup import TEST, interval_of, interval_table, mean_of
from benchmarks.reports.reading import Difference, adjust, compare, count
from benchmarks.runs.results import under
from benchmarks.worlds import BASE, world_words
from simulators.world.info import WorldInfo
from simulators.world.tables import BID_TYPES

_VALUES = {
    VIEWS["rankers"]: "the expected value under the rankers",
    VIEWS["truth"]: "the expected value under the hidden truth",
}
_BY = {"truth": "under the hidden truth", "proxy": "under the rankers"}
AGAINST_RIVALS = {
    **_VALUES,
    "ndcg": "the nDCG on the shared list (GPR Tab. 3)",
    "opr": "the OPR on the shared list (GPR Tab. 3)",
}
LEAST_ENTROPY = 0.3
"""Nats over paths, below which a policy counts as collapsed."""


def _served(side: str, list_size: int) -> dict[str, str]:
    """Return what the answer is about: metric to words, under the truth where it is known."""
    return {
        f"{side}_share_served_5": f"the value served of a list of 5 {_BY[side]}",
        f"{side}_share_served": f"the value served of a list of {list_size} {_BY[side]}",
    }


def _by_kind(share: str) -> dict[str, str]:
    return {
        f"{words} {kind}": f"{name}{share}_{kind}"
        for name, words in (("proxy", "rankers,"), ("truth", "truth,"))
        for kind in KINDS
    }


MAIN_TABLES = {
    "Value alignment (the columns of GPR Tab. 3)": (
        {
            "nDCG": "ndcg",
            "OPR": "opr",
            "avg final_value": "avg_final_value_normalised",
            "max final_value": "max_final_value_normalised",
            "nDCG, own list": "ndcg_own",
            "OPR, own list": "opr_own",
        },
        "nDCG and OPR rank one shared list, the warm start's beam; a collapsed policy can score "
        "well on its own list. final_value: min-max over the candidates of all rows shown.",
    ),
    "Share of the possible gain: 0 is the logging policy, 1 the best ad": (
        {**_by_kind("_share"), "illegal": "illegal_rate", "seconds": "train_s"},
        "expected: over the policy's own draws; greedy: its first choice; served: its beam, "
        f"re-ranked by the rankers. `{WARM_START}` is the warm start of all methods below it. The "
        "best ad is the best of all legal ads, those included whose path another ad holds.",
    ),
}
"""Title to columns (heading to metric) and note."""


def _served_table(final: pd.DataFrame, order: Sequence[str], side: str, list_size: int) -> Table:
    """Return what is served of lists, under the truth where it is known, and how personal it is."""
    other = {"served@5, rankers": "proxy_share_served_5"} if side == "truth" else {}
    columns = {
        **{f"served@{k}": f"{side}_share_served_{k}" for k in SERVED},
        f"served@{list_size}": f"{side}_share_served",
        "error": f"{side}_share_served_se",
        **other,
        "personal, rankers": "proxy_personal_share",
        "personal, truth": "truth_personal_share",
        "ads in use": "effective_ads",
        "coverage": "coverage",
    }
    return interval_table(
        final,
        f"What is served, {_BY[side]}, and how personal it is",
        order,
        columns,
        "Shares of the gain. served@k: the best by the rankers of the first k of a beam. error: "
        f"standard error of served@{list_size} over requests, within a seed. personal: what the "
        "policy earns more than its own mix of ads shown to everybody who may see them. coverage: "
        "share of the catalogue in any beam.",
    )


END_TABLES = {
    "Mean reward per request": (
        _by_kind(""),
        "In the reward's own unit; for final_value that of eCPM.",
    ),
    "Reward hacking and regret": (
        {
            "gap, expected": "hacking_gap_expected",
            "gap, greedy": "hacking_gap_greedy",
            "gap, served": "hacking_gap_served",
            "regret, rankers": "proxy_regret_expected",
            "regret, truth": "truth_regret_expected",
        },
        "gap: share of the gain under the rankers less that under the truth. regret: what the best "
        "ad is worth more, in the reward's unit, expected over draws.",
    ),
    "Spread of the policies": (
        {
            "entropy (nats)": "entropy",
            "KL to warm start (nats)": "kl_to_warm_start",
            "ads in use": "effective_ads",
            "distinct first ads": "distinct_first_share",
            **{f"{name} ads": f"impressions_{name.lower()}" for name in BID_TYPES},
            "small advertisers": "small_advertiser_share",
        },
        "Entropy and KL exact over all legal paths. ads in use: exp(entropy) of the impressions of "
        "all requests over ads; distinct first ads per request; small advertisers: their share of "
        "the impressions (daily budget below the median's).",
    ),
}


def _differences(
    final: pd.DataFrame, methods: Sequence[str], served: Mapping[str, str]
) -> list[Difference]:
    """Return the declared comparisons; p-values are corrected inside each measure."""
    found: list[Difference] = []
    for metric, words in {**_VALUES, **served}.items():
        found += compare(final, metric, words, methods, WARM_START)
    ours = [m for m in ("hepo", "hepo_terminal") if m in methods]
    for rival in ("dpo", "ppo", "grpo"):
        for metric, words in AGAINST_RIVALS.items() if rival in methods else ():
            found += compare(final, metric, words, ours, rival)
    return adjust(found)


def _lead(info: WorldInfo, trained: Sequence[str], settings: AlignmentSettings) -> str:
    text = (
        f"{', '.join(trained)} against the warm start, {count(len(settings.seeds), 'seed')}, "
        f"{settings.sizes.num_test_requests} requests of held-out days per seed. "
    )
    text += world_words(info) + (
        "Every value is given under the frozen rankers (what was optimised) and under the world's "
        "hidden truth (what would have happened)."
        if info.has_truth
        else "There is no known truth, so values are under the frozen rankers only."
    )
    return " ".join([text, *info.notes])


def _value_section(final: pd.DataFrame, order: Sequence[str], trained: Sequence[str]) -> Section:
    chart = {
        words: [(m, i) for m in order if (i := interval_of(final, m, metric, TEST)) is not None]
        for words, metric in VIEWS.items()
    }
    known = {words: pairs for words, pairs in chart.items() if pairs}
    shares = None
    if known:
        drawn = interval_chart(known, label="share of the possible gain", reference=0.0)
        caption = "Expected share of the possible gain with 95 % intervals over seeds."
        shares = Figure("shares", caption, drawn)
    tables = [interval_table(final, title, order, *how) for title, how in END_TABLES.items()]
    text = spread_words(final, trained)
    return Section(
        "Where the methods end", present(shares, Paragraph(text) if text else None, *tables)
    )


def spread_words(final: pd.DataFrame, methods: Sequence[str]) -> str:
    """Return which policies collapsed, and which earn nothing by whom they show an ad to."""
    text = []
    entropy = {m: x for m in methods if (x := mean_of(final, m, "entropy", TEST)) is not None}
    if entropy:
        below = ", ".join(f"`{m}` ({x:.2f})" for m, x in entropy.items() if x <= LEAST_ENTROPY)
        least = min(entropy, key=lambda m: entropy[m])
        text.append(
            f"Collapsed, with {LEAST_ENTROPY:g} nats of entropy over paths or less: {below}."
            if below
            else f"No policy collapsed: the least entropy over paths, of `{least}`, is "
            f"{entropy[least]:.2f} nats."
        )
    personal = {m: interval_of(final, m, "proxy_personal_share", TEST) for m in methods}
    known = {m: found for m, found in personal.items() if found is not None and found.has_bounds}
    if known:
        unsure = ", ".join(f"`{m}`" for m, found in known.items() if found.low <= 0.0)
        text.append(
            f"Not clearly above 0 is what these earn by whom they serve: {unsure}."
            if unsure
            else "What every policy earns by whom it serves is clearly above 0."
        )
    return " ".join(text)


def make_report(results: pd.DataFrame, settings: AlignmentSettings, info: WorldInfo) -> SuiteReport:
    """Return the report of all rows of a run; `info` is of the first seed's world."""
    methods = settings.methods
    base = under(results, market=BASE)
    final = under(add_normalised(results), market=BASE)
    warm = [m for m in WARM_ROWS if m not in methods]
    order = [*REFERENCES, *warm, *methods, *BOUNDS]
    compared = [m for m in methods if m not in WARM_ROWS]
    trained = [m for m in compared if m not in SUPERVISED]
    clock = time_table(results)
    side, list_size = "truth" if info.has_truth else "proxy", settings.sizes.list_size
    served = _served(side, list_size)
    sections = [
        _value_section(final, order, trained),
        curves_section(base, trained, settings.sizes.training),
        why_section(base, trained, list_size, side),
        markets_section(results, settings),
        conditions_section(results, settings),
        ablations_section(results, settings),
        tuning_section(settings),
        rankers_section(base),
        how_section(trained, settings, info.num_levels),
        None if clock is None else Section("Where the time goes", [clock]),
    ]
    differences = _differences(final, compared, served)
    words = _VALUES[VIEWS["truth" if info.has_truth else "rankers"]]
    verdicts = verdict_table(
        [d for d in differences if (d.measure, d.baseline) == (words, WARM_START)],
        f"Against the warm start: {words}",
    )
    said = answer(final, differences, trained, served)
    main = [interval_table(final, title, order, *how) for title, how in MAIN_TABLES.items()]
    return SuiteReport(
        title="Value alignment by reinforcement learning",
        lead=_lead(info, compared, settings),
        sections=[section for section in sections if section is not None],
        tables=[*main, _served_table(final, order, side, list_size), verdicts],
        differences=differences,
        answer=" ".join(filter(None, (said, unsettled_words(base, trained) if said else ""))),
    )
