"""What the off-policy suite says about its results: tables, curves and a computed reading."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from benchmarks.off_policy.presets import AD_METHODS, SLATE_METHODS, TRUTH, OffPolicyPreset
from benchmarks.off_policy.tables import REWARDS
from benchmarks.reports.blocks import (
    Block,
    Bullets,
    Cell,
    Figure,
    Paragraph,
    Section,
    SuiteReport,
    Table,
)
from benchmarks.reports.figures import interval_chart, learning_curves
from benchmarks.reports.lookup import interval_of, interval_table
from benchmarks.reports.reading import Difference, compare
from benchmarks.runs.results import final_values, under

COLUMNS = {
    "bias": "bias",
    "|bias|": "abs_bias",
    "RMSE": "rmse",
    "median |error|": "median_error",
    "covered by 95 % intervals": "coverage",
    "interval width": "width",
    "rank correlation": "rank_correlation",
    "effective rows": "effective_sample_size",
    "no support": "unsupported",
}
NOMINAL = 0.95
TOLERATED = 0.05
"""How far below nominal a coverage may lie before the reading calls it too low."""


def _value(found: pd.DataFrame, method: str, metric: str, **conditions: str | int) -> float:
    found = interval_of(under(found, **conditions), method, metric)
    return np.nan if found is None else found.value


def _grades(final: pd.DataFrame, methods: Sequence[str], reward: str, label: str) -> Table:
    return interval_table(
        under(final, reward=reward),
        f"Estimators of {reward}, {label}",
        methods,
        COLUMNS,
        "Means over target policies and logs, in units of what the logging policy truly earns. "
        "RMSE: root of the mean square over policies and logs, ruled by the rare log with a huge "
        "weight; median |error|: a typical log; rank correlation: Spearman's, of "
        "the target policies inside one log; effective rows: Kish, (sum w)^2 / sum w^2; no "
        "support: share of estimates without a single weighted row (their intervals are "
        "infinite and count as covering).",
        first="estimator",
    )


def _policies(final: pd.DataFrame) -> list[str]:
    """Return the target policies by true revenue, the best last."""
    worth = final[(final["method"] == TRUTH) & (final["reward"] == "revenue")]
    order = worth.groupby("policy")["value"].mean().sort_values()
    return [str(name) for name in order.index if name != "behavior"]


def _by_policy(
    final: pd.DataFrame, policies: Sequence[str], methods: Sequence[str], reward: str, label: str
) -> Table:
    names = {"bias": "bias", "rmse": "RMSE", "coverage": "covered"}
    measures = [(name, m) for name in names for m in methods]
    weighted = [m for m in methods if "dm" not in m][:1]
    behavior = _value(final, TRUTH, "value", reward=reward, policy="behavior")
    rows: list[list[Cell]] = []
    for policy in policies:
        own = under(final, reward=reward, policy=policy)
        truth = _value(own, TRUTH, "value") / behavior
        size = [_value(own, m, "effective_sample_size") for m in weighted]
        rows.append([policy, truth, *size, *(_value(own, m, name) for name, m in measures)])
    columns = ["target policy", "true value", *("effective rows" for _ in weighted)]
    columns += [f"{names[name]}, {m}" for name, m in measures]
    title = f"By target policy: {reward}, {label}"
    return Table(title, columns, rows, "In units of what the logging policy truly earns.")


def _listed(items: Sequence[str]) -> str:
    return ", ".join(items[:-1]) + (" and " if len(items) > 1 else "") + items[-1]


def _meaning(
    final: pd.DataFrame,
    policies: Sequence[str],
    methods: Sequence[str],
    reward: str,
    logged: str,
) -> str:
    """Return what the numbers of one table say; `logged` is how many of what a log has."""
    of_reward = under(final, reward=reward)
    value = {m: {name: _value(of_reward, m, name) for name in COLUMNS.values()} for m in methods}
    ranked = sorted(methods, key=lambda m: value[m]["rmse"])
    best, worst = ranked[0], ranked[-1]
    text = (
        f"From logs of {logged}, `{best}` estimates {reward} with the least error: its "
        f"RMSE is {value[best]['rmse']:.2g} of what the logging policy earns"
    )
    if worst != best:
        text += (
            f", against {value[worst]['rmse']:.2g} for `{worst}` "
            f"({value[worst]['rmse'] / value[best]['rmse']:.1f} times)"
        )
    leader = min(methods, key=lambda m: -value[m]["rank_correlation"])
    text += (
        ". It orders the target policies with a rank correlation of "
        f"{value[best]['rank_correlation']:.2f}"
    )
    text += (
        ", and none is higher by a hundredth. "
        if value[leader]["rank_correlation"] - value[best]["rank_correlation"] < 0.01
        else f"; the highest is `{leader}`'s, {value[leader]['rank_correlation']:.2f}. "
    )
    low = [m for m in methods if value[m]["coverage"] < NOMINAL - TOLERATED]
    if low:
        text += (
            "Intervals that promise 95 % hold the truth too rarely for "
            + _listed([f"`{m}` ({100 * value[m]['coverage']:.0f} %)" for m in low])
            + ". "
        )
    fine = [m for m in methods if m not in low]
    if fine:
        text += f"They hold it at least 90 % of the time for {_listed([f'`{m}`' for m in fine])}. "
    mostly = [m for m in methods if value[m]["abs_bias"] > 0.5 * value[m]["rmse"] and m in low]
    if mostly:
        text += (
            f"The error of {_listed([f'`{m}`' for m in mostly])} is more bias than chance "
            f"(mean |bias| {_listed([format(value[m]['abs_bias'], '.2g') for m in mostly])}): more "
            "rows do not help, and an interval made of the log's variance can't see it. "
        )
    return text + _support(of_reward, policies, methods)


def _support(of_reward: pd.DataFrame, names: Sequence[str], methods: Sequence[str]) -> str:
    """Return how error follows the effective sample size over the policies, for one estimator."""
    method = next((m for m in methods if "dm" not in m), None)
    if method is None:
        return ""
    rows, error = (
        [_value(of_reward, method, metric, policy=p) for p in names]
        for metric in ("effective_sample_size", "rmse")
    )
    least, most = int(np.argmin(rows)), int(np.argmax(rows))
    return (
        f"What decides is overlap with the log: `{method}` is off by {error[least]:.2g} for "
        f"`{names[least]}`, which the log supports with {rows[least]:,.0f} effective rows, and by "
        f"{error[most]:.2g} for `{names[most]}` with {rows[most]:,.0f}."
    )


def _optimism(ads: pd.DataFrame, policies: Sequence[str], reward: str) -> list[str]:
    """Return what the reward model says of the policies that trust it, if it was asked."""
    own = [p for p in policies if p == "greedy" or p.startswith("softmax")]
    told = {p: interval_of(under(ads, reward=reward, policy=p), "dm", "bias") for p in own}
    known = {p: i for p, i in told.items() if i is not None}
    if not known:
        return []
    worst = max(known, key=lambda p: abs(known[p].value))
    word = "above" if known[worst].value > 0 else "below"
    return [
        "The direct method takes the frozen rankers' word, and the softmax and greedy policies "
        f"choose what these rankers like. It puts `{worst}` {abs(known[worst].value):.2g} logging "
        f"values {word} its true {reward}: what a policy is worth under the rankers that it "
        "was fitted to is no estimate of what it earns."
    ]


def _curves(results: pd.DataFrame, methods: Sequence[str], name: str, label: str) -> list[Block]:
    return [
        Figure(
            f"{name}_{reward}",
            f"Error of {label} estimators of {reward} by the size of the log.",
            learning_curves(
                under(results, reward=reward),
                "rmse",
                methods=methods,
                split="test",
                label=f"RMSE, {reward}",
                x_label="logged rows",
            ),
        )
        for reward in REWARDS
        if ((results["metric"] == "rmse") & (results["reward"] == reward)).any()
    ]


def _bias_chart(
    final: pd.DataFrame, policies: Sequence[str], methods: Sequence[str], name: str
) -> list[Block]:
    own = {p: under(final, reward="revenue", policy=p) for p in policies}
    groups = {
        method: [(p, i) for p, at in own.items() if (i := interval_of(at, method, "bias"))]
        for method in ("ips", "dm", "dr", "slate_rips", "slate_cascade_dr")
        if method in methods
    }
    if not groups:
        return []
    chart = interval_chart(groups, label="bias, in logging values", reference=0.0)
    caption = "Mean error of revenue by target policy, the best policy at the bottom."
    return [Figure(name, caption, chart)]


_METHOD_NOTES = (
    "`ips`: mean of w r, w = target / propensity; `snips`: divided by the mean weight; `dm`: the "
    "frozen rankers' expectation; `dr`: `dm` plus the weighted residuals. `_clipped`: weights at "
    "most `max_weight`.",
    "`slate_sips` weights by the whole slate, `slate_rips` by the positions down to the reward's "
    "(cascade), `slate_iips` by the reward's own position; `sn`: divided by each position's mean "
    "weight; `slate_cascade_dr`: RIPS around the reward model.",
    "Revenue is the charge in eCPM units (CPM: the bid; CPC: 1000 bid per click; oCPA: 1000 bid "
    "per conversion), clicks and conversions drawn from the hidden truth.",
    "The truth of a policy is exact: its expectation over all legal ads of all requests that the "
    "logs are drawn from. Intervals of the estimators are normal; those of this report are over "
    "seeds.",
    "Slates are drawn one below the other without replacement. Users go on below an ad with "
    "probability c / (c + median c), c its true click rate: rewards depend on the ads above, not "
    "below, so SIPS and RIPS are unbiased and IIPS is not. The reward model believes that half of "
    "the users go on.",
)


def make_report(
    results: pd.DataFrame, *, methods: Sequence[str], world: str, sizes: OffPolicyPreset
) -> SuiteReport:
    """Return the report of all rows of a run, whose step is the number of rows per log."""
    final = final_values(results)
    final = final[final["split"] == "test"]
    policies = _policies(final)
    kinds = (
        ("ads", AD_METHODS, "single ads", "impressions"),
        ("slates", SLATE_METHODS, f"slates of {sizes.num_positions} ads", "slates"),
    )
    sections, tables, meanings = [], [], []
    differences: list[Difference] = []
    for kind, known, label, unit in kinds:
        own = [m for m in methods if m in known]
        if not own:
            continue
        of_kind = under(final, kind=kind)
        tables.append(_grades(of_kind, own, "revenue", label))
        logged = f"{max(sizes.log_sizes):,} {unit}"
        meanings += [_meaning(of_kind, policies, own, reward, logged) for reward in REWARDS]
        blocks = [
            _grades(of_kind, own, "clicks", label),
            *_bias_chart(of_kind, policies, own, f"bias_{kind}"),
            *_curves(under(results, kind=kind), own, f"error_{kind}", label),
            *(_by_policy(of_kind, policies, own, reward, label) for reward in REWARDS),
        ]
        sections.append(Section(f"{label[:1].upper()}{label[1:]}", blocks))
        differences += compare(
            under(of_kind, reward="revenue"),
            "rmse",
            f"the error of estimated revenue, {label} (RMSE in logging values)",
            own,
            own[0],
            higher_is_better=False,
        )
    meanings += _optimism(under(final, kind="ads"), policies, "revenue")
    return SuiteReport(
        title="Off-policy evaluation against the known truth",
        lead=(
            f"{len(methods)} estimators judge {len(policies)} target policies from logs of "
            f"the production system of world `{world}`: {final['seed'].nunique()} seeds, "
            f"{sizes.num_replications} logs per seed. Propensities are known, and so is what each "
            "policy truly earns."
        ),
        sections=[
            Section("What it means", [Paragraph(text) for text in meanings]),
            *sections,
            Section("How it was done", [Bullets(_METHOD_NOTES)]),
        ],
        tables=tables,
        differences=differences,
    )
