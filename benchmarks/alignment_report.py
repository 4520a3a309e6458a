"""What the alignment suite says about its results: tables, curves, cards and a computed reading."""

from collections.abc import Sequence
from dataclasses import asdict

import pandas as pd

from agents.methods import TrainConfig, make_method
from benchmarks.figures import interval_chart, learning_curves
from benchmarks.rankers_report import group_table
from benchmarks.reading import Difference, compare
from benchmarks.report import (
    Block,
    Bullets,
    Cell,
    Figure,
    KeyValues,
    Paragraph,
    Section,
    SuiteReport,
    Table,
)
from benchmarks.results import BOOTSTRAP_SEED, final_values
from benchmarks.stats import Interval, bootstrap
from simulators.world_info import WorldInfo

REFERENCES = ("logging", "popularity", "proxy_argmax", "best")
WARM_START = "vaft"
KINDS = ("expected", "greedy", "served")


def _interval(results: pd.DataFrame, method: str, metric: str) -> Interval | None:
    rows = results[(results["method"] == method) & (results["metric"] == metric)]
    values = rows[rows["split"] == "test"]["value"].to_numpy()
    return bootstrap(values, BOOTSTRAP_SEED) if len(values) else None


def _table(
    results: pd.DataFrame,
    title: str,
    methods: Sequence[str],
    columns: dict[str, str],
    note: str = "",
) -> Table:
    rows: list[list[Cell]] = []
    for method in methods:
        cells: list[Cell] = [_interval(results, method, metric) for metric in columns.values()]
        if any(cell is not None for cell in cells):
            rows.append([method, *cells])
    kept = [i for i in range(len(columns)) if any(row[i + 1] is not None for row in rows)]
    names = list(columns)
    return Table(
        title,
        ["method", *(names[i] for i in kept)],
        [[row[0], *(row[i + 1] for i in kept)] for row in rows],
        note,
    )


def add_normalised(results: pd.DataFrame) -> pd.DataFrame:
    """Return the final rows with avg and max final_value min-max normalised over all methods.

    As in GPR 4.3 the scale is the set of all candidates of all methods compared, here per seed. It
    is applied when the report is made, so adding a method changes no finished run.
    """
    final = final_values(results)
    test = final[final["split"] == "test"]
    wide = test.pivot(index=["method", "seed"], columns="metric", values="value")
    if not {"pool_min", "pool_max"} <= set(wide.columns):
        return final
    low = wide["pool_min"].groupby("seed").transform("min")
    high = wide["pool_max"].groupby("seed").transform("max")
    parts = [final]
    for name in ("avg", "max"):
        value = ((wide[f"{name}_final_value"] - low) / (high - low)).dropna()
        frame = value.rename("value").reset_index()
        parts.append(
            frame.assign(
                suite="alignment", step=0, split="test", metric=f"{name}_final_value_normalised"
            )
        )
    return pd.concat(parts, ignore_index=True)


def _hyper_parameters(methods: Sequence[str], config: TrainConfig, num_levels: int) -> Table:
    rows: list[list[Cell]] = []
    for method in methods:
        built, rate = make_method(method, config, num_levels)
        own = {
            "hepo": f"alpha {config.process_reward_scale:g}, lambda {config.gae_lambda:g}",
            "hepo_terminal": f"alpha {config.process_reward_scale:g}, lambda {config.gae_lambda:g}",
            "ppo": f"lambda {config.gae_lambda:g}",
            "dpo": f"beta {config.dpo_beta:g}, {config.dpo_num_pairs} pairs per request",
        }.get(method, "")
        critic = "yes" if built.uses_critic else "no"
        clip = "" if method == "dpo" else f"{config.clip:g}"
        leash = "its own" if built.uses_reference else f"{config.kl_penalty:g}"
        rows.append([method, f"{rate:g}", critic, clip, leash, own])
    budget = config.num_steps * config.num_requests * config.num_candidates
    return Table(
        "Hyper-parameters",
        ["method", "learning rate", "critic", "clip", "KL weight", "own"],
        rows,
        f"Shared by all: {config.num_steps} steps of {config.num_requests} requests x "
        f"{config.num_candidates} candidates = {budget:,} ranker evaluations, "
        f"{config.num_epochs} epochs, Adam, gradients clipped at {config.max_grad_norm:g}. The KL "
        "penalty towards the warm start is no part of the published methods; all rows carry it "
        "whose loss has no reference of its own.",
    )


def _ranker_card(results: pd.DataFrame) -> list[Block]:
    card = results[(results["method"] == "rankers") & (results["split"] == "test")]
    rows: list[list[Cell]] = []
    metrics = ("auc", "auc_oracle", "log_loss", "ece", "ratio", "rate", "num_rows")
    for task in ("pctr", "pcvr"):
        cells: list[Cell] = []
        for metric in metrics:
            values = card[card["metric"] == f"{task}/{metric}"]["value"].to_numpy()
            cells.append(bootstrap(values, BOOTSTRAP_SEED) if len(values) else None)
        if any(cell is not None for cell in cells):
            rows.append([task, *cells])
    names = ("AUC", "AUC of the truth", "log-loss", "ECE", "sum(p)/sum(y)", "rate", "rows")
    blocks: list[Block] = [
        Table("Frozen rankers on held-out days", ["task", *names], rows, "Over the worlds used."),
        *(table for task in ("pctr", "pcvr") if (table := group_table(card, task, "rankers"))),
    ]
    share = card[card["metric"] == "regime/share"]["value"]
    if len(share):
        hacking = int((share <= 0).sum())
        text = (
            "On 300 held-out requests per world, taken when the world was made, the ad that the "
            f"rankers like best reaches {share.mean():.2f} of the way from the logging policy (0) "
            "to the truly best ad (1) under the hidden truth. "
        )
        text += (
            f"In {hacking} of {len(share)} worlds it falls below the logging policy: there, "
            "optimising the rankers is reward hacking."
            if hacking
            else "It beats the logging policy in every world used, so optimising the rankers can "
            "help; what is left to 1 is the rankers' error."
        )
        blocks.append(Paragraph(text))
    return blocks


def _differences(final: pd.DataFrame, methods: Sequence[str]) -> list[Difference]:
    trained = [m for m in methods if m not in ("mtp", WARM_START)]
    found: list[Difference] = []
    for metric, words in (
        ("proxy_share_expected", "the expected value under the rankers"),
        ("truth_share_expected", "the expected value under the hidden truth"),
        ("truth_share_served", "the served value under the hidden truth"),
    ):
        found += compare(final, metric, words, trained, WARM_START)
    for rival in ("dpo", "ppo", "grpo"):
        if rival in methods:
            ours = [m for m in ("hepo", "hepo_terminal") if m in methods]
            words = "the expected value under the rankers"
            found += compare(final, "proxy_share_expected", words, ours, rival)
    return found


def _lead(info: WorldInfo, trained: Sequence[str], num_seeds: int, num_test_requests: int) -> str:
    text = (
        f"{', '.join(trained)} against the warm start, {num_seeds} seeds, {num_test_requests} "
        f"requests of held-out days per seed. World `{info.name}` ({info.source}). "
        f"Simulated: {', '.join(info.simulated)}. "
    )
    text += (
        "Every value is given under the frozen rankers (what was optimised) and under the world's "
        "hidden truth (what would have happened)."
        if info.has_truth
        else "There is no known truth, so values are under the frozen rankers only."
    )
    return " ".join([text, *info.notes])


def _alignment_table(final: pd.DataFrame, order: Sequence[str]) -> Table:
    columns = {
        "nDCG": "ndcg",
        "OPR": "opr",
        "avg final_value": "avg_final_value_normalised",
        "max final_value": "max_final_value_normalised",
        "nDCG, own list": "ndcg_own",
        "OPR, own list": "opr_own",
    }
    return _table(
        final,
        "Value alignment (the columns of GPR Tab. 3)",
        order,
        columns,
        "nDCG and OPR rank one shared list, the warm start's beam; a collapsed policy can score "
        "well on its own list. final_value: min-max over the candidates of all rows shown.",
    )


def _value_columns(share: str) -> dict[str, str]:
    return {
        f"{words} {kind}": f"{name}{share}_{kind}"
        for name, words in (("proxy", "rankers,"), ("truth", "truth,"))
        for kind in KINDS
    }


def _gain_table(final: pd.DataFrame, order: Sequence[str]) -> Table:
    return _table(
        final,
        "Share of the possible gain: 0 is the logging policy, 1 the best ad",
        order,
        {**_value_columns("_share"), "illegal": "illegal_rate", "seconds": "train_s"},
        "expected: over the policy's own draws; greedy: its first choice; served: its beam, "
        f"re-ranked by the rankers. `{WARM_START}` is the warm start of all methods below it. The "
        "best ad is the best of all legal ads, those included whose path another ad holds.",
    )


def _value_sections(final: pd.DataFrame, order: Sequence[str]) -> Section:
    chart = {
        words: [
            (method, interval)
            for method in order
            if (interval := _interval(final, method, f"{name}_share_expected")) is not None
        ]
        for name, words in (("proxy", "rankers"), ("truth", "truth"))
    }
    drawn = interval_chart(
        {words: pairs for words, pairs in chart.items() if pairs},
        label="share of the possible gain",
        reference=0.0,
    )
    spread = {
        "entropy (nats)": "entropy",
        "KL to warm start (nats)": "kl_to_warm_start",
        "avg final_value": "avg_final_value",
        "max final_value": "max_final_value",
    }
    return Section(
        "Where the methods end",
        [
            Figure(
                "shares",
                "Expected share of the possible gain with 95 % intervals over seeds.",
                drawn,
            ),
            _table(
                final,
                "Mean reward per request",
                order,
                _value_columns(""),
                "In the reward's own unit; for final_value that of eCPM.",
            ),
            _table(final, "Spread of the policies", order, spread, "Exact over all legal paths."),
        ],
    )


def _curves(results: pd.DataFrame, trained: Sequence[str], training: TrainConfig) -> Section:
    evaluations = training.num_requests * training.num_candidates / 1_000
    blocks: list[Block] = [
        Figure(
            f"curve_{name}",
            f"Validation requests of a held-out day: {label}.",
            learning_curves(
                results,
                name,
                methods=trained,
                split="validation",
                label=label,
                step_label="ranker evaluations (thousands)",
                steps_to_x=evaluations,
            ),
        )
        for name, label in (
            ("proxy_share_expected", "share of the gain, rankers"),
            ("truth_share_expected", "share of the gain, truth"),
        )
        if (results["metric"] == name).any()
    ]
    return Section("Learning curves", blocks)


def _critic(results: pd.DataFrame, trained: Sequence[str]) -> Section:
    names = [n for n in results["metric"].unique() if n.startswith("explained_variance/")]
    blocks: list[Block] = [
        Paragraph(
            "`hepo` learns its coarse levels through the critic alone, so its result "
            "can be no better than these curves."
        )
    ]
    for name in sorted(names):
        level = name.rpartition("/")[2]
        blocks.append(
            Figure(
                f"explained_variance_{level}",
                f"Share of the return's variance that the critic explains at level {level}.",
                learning_curves(
                    results,
                    name,
                    methods=trained,
                    split="train",
                    label=f"explained variance, level {level}",
                ),
            )
        )
    return Section("The critic", blocks)


def _how(trained: Sequence[str], training: TrainConfig, num_levels: int) -> Section:
    facts = [
        "One warm start per seed is shared by all methods; they meet the same requests, random "
        "streams and number of ranker evaluations.",
        "`hepo` is as printed in GPR Eq. 8; `hepo_terminal` also carries the terminal reward to "
        "the coarse levels; `ppo` is TorchRL's ClipPPOLoss and GAE; `dpo` takes fresh pairs from "
        "every step's candidates.",
        "Ads that share a path resolve to the one that earns most on average.",
        "The rankers were fitted on all logged days but the last, so most training requests lie in "
        "their training days; test requests lie after both.",
    ]
    return Section(
        "How the methods were run",
        [
            _hyper_parameters(trained, training, num_levels),
            Bullets(facts),
            KeyValues("Training", asdict(training)),
        ],
    )


def make_report(
    results: pd.DataFrame,
    *,
    methods: Sequence[str],
    info: WorldInfo,
    seeds: Sequence[int],
    training: TrainConfig,
    num_test_requests: int,
) -> SuiteReport:
    """Return the report of all rows of a run.

    Args:
        results: Tidy rows.
        methods: Rows in the order of the command line.
        info: Of the world, or of the first one where every seed has its own.
        seeds: Of the run.
        training: Settings of the RL stage.
        num_test_requests: Held-out requests per seed.
    """
    final = add_normalised(results)
    warm = [m for m in ("mtp", WARM_START) if m not in methods]
    order = [*REFERENCES[:2], *warm, *methods, *REFERENCES[2:]]
    trained = [m for m in methods if m not in ("mtp", WARM_START)]
    return SuiteReport(
        title="Value alignment by reinforcement learning",
        lead=_lead(info, trained, len(seeds), num_test_requests),
        sections=[
            _value_sections(final, order),
            _curves(results, trained, training),
            _critic(results, trained),
            Section("The rankers", _ranker_card(results)),
            _how(trained, training, info.num_levels),
        ],
        tables=[_alignment_table(final, order), _gain_table(final, order)],
        differences=_differences(final, methods),
    )
