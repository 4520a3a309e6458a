"""The report of the alignment suite: its main tables, its sections, and a computed reading."""

from collections.abc import Sequence
from dataclasses import asdict

import pandas as pd

from agents.methods import make_method, method_config, search_space
from benchmarks.alignment.page.answer import answer
from benchmarks.alignment.page.curves import curves_section, unsettled_words
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
    Bullets,
    Cell,
    Figure,
    Paragraph,
    Section,
    SuiteReport,
    Table,
    key_values,
)
from benchmarks.reports.figures import interval_chart
from benchmarks.reports.lookup import TEST, interval_of, interval_table, mean_of
from benchmarks.reports.reading import Difference, adjust, compare
from benchmarks.runs.results import under
from benchmarks.runs.trials import with_choice
from benchmarks.worlds import BASE, world_words
from simulators.world.info import WorldInfo
from simulators.world.tables import BID_TYPES

_VALUES = {
    VIEWS["rankers"]: "the expected value under the rankers",
    VIEWS["truth"]: "the expected value under the hidden truth",
}
AGAINST_START = {
    **_VALUES,
    "truth_share_served": "the served value under the hidden truth",
    "truth_share_served_5": "the value served of 5 under the hidden truth",
}
AGAINST_RIVALS = {
    **_VALUES,
    "ndcg": "the nDCG on the shared list (GPR Tab. 3)",
    "opr": "the OPR on the shared list (GPR Tab. 3)",
}
LEAST_ENTROPY = 0.3
"""Nats over paths, below which a policy counts as collapsed."""


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
    "What is served, under the truth, and how personal it is": (
        {
            **{f"served@{k}": f"truth_share_served_{k}" for k in SERVED},
            "served@40": "truth_share_served",
            "error": "truth_share_served_se",
            "personal, rankers": "proxy_personal_share",
            "personal, truth": "truth_personal_share",
            "ads in use": "effective_ads",
            "coverage": "coverage",
        },
        "Shares of the gain. served@k: the best by the rankers of the first k of a beam; with all "
        "40 the last. error: standard error of served@40 over requests, within a seed. personal: "
        "what the policy earns more than its own mix of ads shown to everybody who may see them. "
        "coverage: share of the catalogue in any beam.",
    ),
}
"""Title to columns (heading to metric) and note."""
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


def _hyper_parameters(
    methods: Sequence[str], settings: AlignmentSettings, num_levels: int
) -> Table:
    sizes = settings.sizes
    rows: list[list[Cell]] = []
    for method in methods:
        config = with_choice(method_config(method, sizes.training), settings.tuned_file(method))
        built, rate = make_method(method, config, num_levels)
        own = [
            f"{name} {getattr(config, name):g}"
            for name in search_space(method)
            if name not in ("learning_rate", "kl_penalty", "clip")
        ]
        critic = "yes" if built.uses_critic else "no"
        leash = "its own" if built.uses_reference else f"{config.kl_penalty:g}"
        rows.append([method, f"{rate:g}", critic, f"{config.clip:g}", leash, ", ".join(own)])
    config = sizes.training
    budget = config.num_steps * config.num_requests * config.num_candidates
    return Table(
        "Hyper-parameters",
        ["method", "learning rate", "critic", "clip", "KL weight", "own"],
        rows,
        f"Shared by all: {config.num_steps} steps of {config.num_requests} requests x "
        f"{config.num_candidates} candidates = {budget:,} ranker evaluations, "
        f"{config.num_epochs} epochs unless said, Adam, gradients clipped at "
        f"{config.max_grad_norm:g}. The KL penalty towards the warm start is no part of the "
        "published methods; all rows carry it whose loss has no reference of its own. clip: "
        "where the loss has one.",
    )


def _differences(final: pd.DataFrame, methods: Sequence[str]) -> list[Difference]:
    """Return the declared comparisons; p-values are corrected inside each measure."""
    found: list[Difference] = []
    for metric, words in AGAINST_START.items():
        found += compare(final, metric, words, methods, WARM_START)
    ours = [m for m in ("hepo", "hepo_terminal") if m in methods]
    for rival in ("dpo", "ppo", "grpo"):
        for metric, words in AGAINST_RIVALS.items() if rival in methods else ():
            found += compare(final, metric, words, ours, rival)
    return adjust(found)


def _lead(info: WorldInfo, trained: Sequence[str], settings: AlignmentSettings) -> str:
    text = (
        f"{', '.join(trained)} against the warm start, {len(settings.seeds)} seeds, "
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
    drawn = interval_chart(
        {words: pairs for words, pairs in chart.items() if pairs},
        label="share of the possible gain",
        reference=0.0,
    )
    caption = "Expected share of the possible gain with 95 % intervals over seeds."
    tables = [interval_table(final, title, order, *how) for title, how in END_TABLES.items()]
    kept = [Paragraph(text)] if (text := spread_words(final, trained)) else []
    return Section("Where the methods end", [Figure("shares", caption, drawn), *kept, *tables])


def spread_words(final: pd.DataFrame, methods: Sequence[str]) -> str:
    """Return which policies collapsed, and which earn nothing by whom they show an ad to."""
    text = []
    for metric, least, words in (
        ("entropy", LEAST_ENTROPY, "nats of entropy over paths"),
        ("proxy_personal_share", 0.0, "of the gain by whom it serves"),
    ):
        found = {m: x for m in methods if (x := mean_of(final, m, metric, TEST)) is not None}
        if not found:
            continue
        below = ", ".join(f"`{m}` ({x:.2f})" for m, x in found.items() if x <= least)
        lowest = min(found, key=lambda m: found[m])
        text.append(
            f"With {least:g} {words} or less: {below}."
            if below
            else f"Every policy has more than {least:g} {words}; the least, {found[lowest]:.2f}, "
            f"has `{lowest}`."
        )
    return " ".join(text)


def warm_up_words(settings: AlignmentSettings) -> str:
    """Return what the critic had before, and whether it costs its methods policy updates."""
    sizes = settings.sizes
    warm, training = sizes.warm_start, sizes.training
    seen = warm.critic.num_steps * warm.num_requests * warm.num_candidates
    text = f"The critic is trained in the warm start, on {seen:,} ranker evaluations."
    if training.critic_warmup_steps:
        return (
            f"{text} The first {training.critic_warmup_steps} of {training.num_steps} steps go on "
            "with that for the methods with a critic, which so have fewer policy updates."
        )
    return f"{text} It has no warm-up beyond that, so all methods have as many policy updates."


def _how(trained: Sequence[str], settings: AlignmentSettings, num_levels: int) -> Section:
    facts = [
        "One warm start per seed is shared by all methods; they meet the same requests, random "
        "streams and number of ranker evaluations.",
        "`hepo` is as printed in GPR Eq. 8; `hepo_terminal` also carries the terminal reward to "
        "the coarse levels; `ppo` is TorchRL's ClipPPOLoss and GAE; `dpo` takes fresh pairs from "
        "every step's candidates, `dpo_offline` pairs of the warm start's candidates.",
        warm_up_words(settings),
        "Ads that share a path resolve to the one that earns most on average.",
        "The rankers were fitted on all logged days but the last, so most training requests lie in "
        "their training days; test requests lie after both.",
    ]
    return Section(
        "How the methods were run",
        [
            _hyper_parameters(trained, settings, num_levels),
            Bullets(facts),
            key_values("Training", asdict(settings.sizes.training)),
        ],
    )


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
    side, by = ("truth", "hidden truth") if info.has_truth else ("proxy", "rankers")
    sections = [
        _value_section(final, order, trained),
        curves_section(base, trained, settings.sizes.training),
        why_section(base, trained, settings.sizes.list_size, side),
        markets_section(results, settings),
        conditions_section(results, settings),
        ablations_section(results, settings),
        tuning_section(settings),
        rankers_section(base),
        _how(trained, settings, info.num_levels),
        None if clock is None else Section("Where the time goes", [clock]),
    ]
    differences = _differences(final, compared)
    words = _VALUES[VIEWS["truth" if info.has_truth else "rankers"]]
    verdicts = verdict_table(
        [d for d in differences if (d.measure, d.baseline) == (words, WARM_START)],
        f"Against the warm start: {words}",
    )
    served = {
        f"{side}_share_served_5": f"the value served of a list of 5 under the {by}",
        f"{side}_share_served": f"the value served of a list of {settings.sizes.list_size}",
    }
    said = answer(final, trained, served)
    main = [interval_table(final, title, order, *how) for title, how in MAIN_TABLES.items()]
    return SuiteReport(
        title="Value alignment by reinforcement learning",
        lead=_lead(info, compared, settings),
        sections=[section for section in sections if section is not None],
        tables=[*main, verdicts],
        differences=differences,
        answer=" ".join(filter(None, (said, unsettled_words(base, trained) if said else ""))),
    )
