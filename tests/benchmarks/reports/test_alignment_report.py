"""The alignment report: columns, verdicts, clocks and cards worked out by hand."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from benchmarks.alignment.page.answer import answer
from benchmarks.alignment.page.curves import same_clock_table
from benchmarks.alignment.page.rankers import worth_table
from benchmarks.alignment.page.report import make_report
from benchmarks.alignment.page.studies import ablations_section, conditions_section
from benchmarks.alignment.page.tables import add_normalised, market_table, paired, time_table
from benchmarks.alignment.presets import PRESETS
from benchmarks.alignment.rows import labelled
from benchmarks.reports.blocks import Figure, Paragraph, Section, SuiteReport, Table
from benchmarks.reports.markdown import report_text
from benchmarks.reports.reading import adjust, compare
from benchmarks.settings import Settings
from gpr_rl.page import escape
from tests.benchmarks.reports.frames import frame, rows_of

INFO = SimpleNamespace(
    name="tiny", source="by hand", simulated=(), has_truth=True, notes=(), num_levels=3
)
PROXY, TRUTH = "proxy_share_expected", "truth_share_expected"
METRICS = {
    "proxy_share_expected": 1, "proxy_share_greedy": 2, "proxy_share_served": 3,
    "truth_share_expected": 4, "truth_share_greedy": 5, "truth_share_served": 6,
    "illegal_rate": 7, "train_s": 8, "ndcg": 9, "opr": 10, "ndcg_own": 11, "opr_own": 12,
    "proxy_expected": 13, "proxy_greedy": 14, "proxy_served": 15,
    "truth_expected": 16, "truth_greedy": 17, "truth_served": 18,
    "hacking_gap_expected": 19, "hacking_gap_greedy": 20, "hacking_gap_served": 21,
    "proxy_regret_expected": 22, "truth_regret_expected": 23,
}  # fmt: skip
START = {"vaft": 0, "hepo": 100, "ppo": -100, "grpo": 0}


def settings(out: Path, **changed: object) -> Settings:
    plain = Settings(
        suite="alignment",
        preset="smoke",
        methods=("hepo", "ppo", "grpo"),
        seeds=(0, 1, 2),
        world="tiny",
        reward=(),
        sizes=PRESETS["smoke"],
        out=out,
    )
    return replace(plain, **changed)


def results() -> pd.DataFrame:
    """Return metric m of method x as START[x] + METRICS[m]; grpo's truth wavers about vaft's."""
    values: dict[tuple[str, str], float | tuple[float, ...]] = {
        (method, name): start + number
        for method, start in START.items()
        for name, number in METRICS.items()
    }
    values["grpo", TRUTH] = (3, 4, 5)
    card = ("auc", "auc_oracle", "auc_item_mean", "log_loss", "ece", "ratio", "rate", "num_rows")
    graded: dict[tuple[str, str], float] = {("rankers", x): n for n, x in enumerate(card, 1)}
    curves = {
        (method, name): START[method] + METRICS[name]
        for method in ("hepo", "ppo", "grpo")
        for name in (PROXY, TRUTH, "train_s")
    }
    return pd.concat(
        [
            frame(values, market="base"),
            frame(graded, market="base", task="pctr", group="overall"),
            frame(curves, split="validation", step=5, market="base"),
        ]
    )


def report(tmp_path: Path, found: pd.DataFrame, **info: object) -> SuiteReport:
    return make_report(found, settings(tmp_path), SimpleNamespace(**(vars(INFO) | info)))


def table_called(sections: list[Section], start: str) -> Table:
    return next(
        block
        for section in sections
        for block in section.blocks
        if isinstance(block, Table) and block.title.startswith(start)
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SuiteReport:
    return report(tmp_path_factory.mktemp("run"), results())


def test_rankers_and_truth_stand_in_their_own_columns(made: SuiteReport) -> None:
    kinds = ("expected", "greedy", "served")
    names = [f"{side}, {kind}" for side in ("rankers", "truth") for kind in kinds]
    names = [name.replace(", ", ", ", 1) for name in names]
    rows = {row: list(cells.values()) for row, cells in rows_of(made.tables[1]).items()}
    assert rows["hepo"] == [101, 102, 103, 104, 105, 106, 107, 108]
    assert rows["vaft"] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [name.replace(",", "") for name in made.tables[1].columns[1:]] == [
        *(name.replace(",", "") for name in names),
        "illegal",
        "seconds",
    ]
    rewards = rows_of(table_called(list(made.sections), "Mean reward"))
    assert list(rewards["ppo"].values()) == [-87, -86, -85, -84, -83, -82]
    assert rows_of(made.tables[0])["vaft"] == {
        "nDCG": 9,
        "OPR": 10,
        "nDCG, own list": 11,
        "OPR, own list": 12,
    }
    assert rows_of(table_called(list(made.sections), "Reward hacking"))["vaft"] == {
        "gap, expected": 19,
        "gap, greedy": 20,
        "gap, served": 21,
        "regret, rankers": 22,
        "regret, truth": 23,
    }


def test_the_figure_has_the_rankers_and_the_truth(made: SuiteReport) -> None:
    figure = made.sections[0].blocks[0]
    assert isinstance(figure, Figure)
    (axes,) = figure.canvas.axes
    drawn = {
        str(line.get_label()): {float(x) for x in line.get_xdata()} & {101.0, 104.0}
        for line in axes.lines
        if line.get_marker() == "o"
    }
    assert drawn == {"rankers": {101.0}, "truth": {104.0}}


def test_verdicts_against_the_warm_start(made: SuiteReport, tmp_path: Path) -> None:
    assert {row[0]: row[1] for row in made.tables[3].rows} == {
        "hepo": "better",
        "ppo": "worse",
        "grpo": "same",
    }
    assert rows_of(made.tables[3])["hepo"]["difference"] == 100
    assert rows_of(made.tables[3])["hepo"]["P(better)"] == 1
    assert rows_of(made.tables[3])["ppo"]["P(better)"] == 0
    assert rows_of(made.tables[3])["ppo"]["p"] == 0.25  # 2 / 2^3
    assert made.tables[3].title.endswith("the expected value under the hidden truth")
    assert made.tables[2].title == "What is served, under the hidden truth, and how personal it is"
    blind = report(tmp_path, results(), has_truth=False)
    assert blind.tables[2].title == "What is served, under the rankers, and how personal it is"
    assert rows_of(blind.tables[2])["hepo"]["served@40"] == 103
    assert blind.tables[3].title.endswith("the expected value under the rankers")
    assert "There is no known truth" in blind.lead


def test_hepo_is_compared_with_its_rivals(made: SuiteReport) -> None:
    found = {(d.method, d.baseline, d.measure): d for d in made.differences}
    assert len(found) == len(made.differences) == 3 * 3 + 2 * 4
    ours = [d for d in made.differences if d.baseline in ("ppo", "grpo")]
    assert {d.method for d in ours} == {"hepo"}
    served = found["hepo", "vaft", "the value served of a list of 40 under the hidden truth"]
    assert (served.interval.value, served.verdict) == (100, "improves")
    expected = found["grpo", "vaft", "the expected value under the hidden truth"]
    assert expected.verdict == "no clear difference"
    assert found["ppo", "vaft", "the expected value under the rankers"].verdict == "lowers"
    assert found["hepo", "ppo", "the OPR on the shared list (GPR Tab. 3)"].interval.value == 200


@pytest.mark.parametrize(
    ("share", "said"),
    [
        ((0.5, 0.25, 0.75), "reaches 0.50 of the way"),
        ((0.5, 0.25, 0.75), "It beats the logging policy in every world used"),
        ((0.5, -1.0, 0.0), "In 2 of 3 worlds it falls below the logging policy"),
    ],
)
def test_the_rankers_card_and_its_regime(
    share: tuple[float, ...], said: str, tmp_path: Path
) -> None:
    found = pd.concat([results(), frame({("rankers", "regime/share"): share}, market="base")])
    section = next(s for s in report(tmp_path, found).sections if s.title == "The rankers")
    texts = [block.text for block in section.blocks if isinstance(block, Paragraph)]
    assert said in texts[0]
    table = table_called([section], "Frozen")
    assert table.columns[1:4] == ["AUC", "AUC of the truth", "AUC of the item mean"]
    assert list(rows_of(table)["pctr"].values()) == list(range(1, 9))


def test_final_values_are_normalised_over_all_rows_of_a_seed() -> None:
    values = {
        ("a", "pool_min"): (0, 10), ("a", "pool_max"): (8, 20),
        ("b", "pool_min"): (2, 12), ("b", "pool_max"): (10, 30),
        ("a", "avg_final_value"): (5, 15), ("a", "max_final_value"): (10, 30),
        ("b", "avg_final_value"): (0, 10), ("b", "max_final_value"): (2, 20),
    }  # fmt: skip
    final = add_normalised(frame(values)).set_index(["method", "seed", "metric"])["value"]
    assert final["a", 0, "avg_final_value_normalised"] == 0.5  # (5 - 0) / (10 - 0)
    assert final["a", 1, "avg_final_value_normalised"] == 0.25  # (15 - 10) / (30 - 10)
    assert final["b", 0, "max_final_value_normalised"] == pytest.approx(0.2)
    assert final["b", 1, "max_final_value_normalised"] == 0.5


def test_the_same_clock_stops_where_the_fastest_ended() -> None:
    curves = [
        frame({("a", "train_s"): s, ("a", PROXY): s, ("a", TRUTH): -s}, split="validation", step=n)
        for n, s in ((1, 2), (2, 4))
    ] + [
        frame(
            {("b", "train_s"): s, ("b", PROXY): 10 * s, ("b", TRUTH): 7},
            split="validation",
            step=n,
        )
        for n, s in ((1, 3), (2, 6), (3, 9))
    ]
    table = same_clock_table(pd.concat(curves), ["a", "b"])
    assert table is not None
    assert rows_of(table) == {
        "a": {"steps": 2, "seconds": 4, "rankers": 4, "truth": -4},
        "b": {"steps": 1, "seconds": 3, "rankers": 30, "truth": 7},
    }


def test_time_is_shared_out() -> None:
    spent = {
        ("a", "total_s"): 10, ("a", "model_s"): 2, ("a", "update_s"): 5, ("a", "requests_s"): 1,
        ("b", "total_s"): 30, ("b", "model_s"): 6, ("b", "update_s"): 3, ("b", "requests_s"): 9,
    }  # fmt: skip
    table = time_table(frame(spent, split="time"))
    assert table is not None
    names = ["seconds", "model", "update", "requests", "tensor operations"]
    wanted = {"a": [30, 0.2, 0.5, 0.1, 0.7], "b": [90, 0.2, 0.1, 0.3, 0.3]}
    wanted["all"] = [120, 0.2, 0.2, 0.25, 0.4]  # 8, 8 and 10 of 40
    for row, cells in rows_of(table).items():
        assert cells == pytest.approx(dict(zip(names, wanted[row], strict=True))), row


def test_markets_conditions_and_ablations(tmp_path: Path) -> None:
    base = {
        ("hepo", PROXY): 5, ("ppo", PROXY): 2, ("hepo", TRUTH): 7, ("ppo", TRUTH): 8,
        ("hepo", "entropy"): 4,
    }  # fmt: skip
    drift = {("hepo", PROXY): 1, ("ppo", PROXY): 4, ("hepo", TRUTH): 9, ("ppo", TRUTH): 3}
    uncapped = {("hepo", PROXY): 3, ("hepo", TRUTH): 11, ("hepo", "entropy"): 1}
    found = pd.concat(
        [
            frame(base, market="base"),
            frame(drift, market="drift"),
            frame(uncapped, market="base", ablation="uncapped"),
        ]
    )
    assert rows_of(market_table(found, ["hepo", "ppo", "none"], ["base", "drift"], "truth")) == {
        "hepo": {"base": 7, "drift": 9},
        "ppo": {"base": 8, "drift": 3},
    }
    assert paired(labelled(found), "hepo", "absent", PROXY) is None
    asked = settings(tmp_path, methods=("hepo", "ppo"), markets=("drift",), ablations=("uncapped",))
    section = conditions_section(found, asked)
    assert section is not None
    tables = [block for block in section.blocks if isinstance(block, Table)]
    assert [rows_of(table) for table in tables] == [
        {"base": {"hepo - ppo": 3}, "drift": {"hepo - ppo": -3}},
        {"base": {"hepo - ppo": -1}, "drift": {"hepo - ppo": 6}},
    ]
    section = ablations_section(found, asked)
    assert section is not None
    assert rows_of(table_called([section], "Ablations")) == {
        "hepo+uncapped": {
            "rankers, itself": 3, "rankers": -2, "truth": 4, "entropy (nats)": -3, "seeds": 3
        }
    }  # fmt: skip


def said(**shares: tuple[float, ...]) -> str:
    """Return the answer on what three seeds served; the warm start is `vaft`."""
    values = {(method, "served"): value for method, value in shares.items()}
    final = frame(values, num_seeds=len(shares["vaft"]), step=5)
    methods = [method for method in shares if method != "vaft"]
    found = adjust(compare(final, "served", "what was served", methods, "vaft"))
    return answer(final, found, methods, {"served": "what was served", "absent": "nothing"})


def test_the_answer_in_words() -> None:
    start = (0.1, 0.2, 0.3)
    up, down, unsure = (0.4, 0.5, 0.6), (0.0, 0.1, 0.2), (0.0, 0.3, 0.3)
    assert said(vaft=start, rspo=up, ppo=unsure) == (
        "Did RL help? Yes: what was served was raised with `rspo`; not clearly changed with `ppo`. "
        "Highest was `rspo`, +0.30 [0.30, 0.30] of the gain against the warm start; its lead over "
        "the next, `ppo`, is clear (+0.30 [0.20, 0.40])."
    )
    assert said(vaft=start, hepo=down) == (
        "Did RL help? No: what was served was lowered with `hepo`. Highest was `hepo`, -0.10 "
        "[-0.10, -0.10] of the gain against the warm start."
    )
    mixed = "Did RL help? In part: what was served was raised with `rspo`; lowered with `hepo`."
    assert said(vaft=start, hepo=down, rspo=up).startswith(mixed)
    close = said(vaft=start, rspo=up, grpo=(0.3, 0.6, 0.59))
    assert "its lead over the next, `grpo`, is not clear" in close
    for other in ({}, {"hepo": down}):
        found = said(vaft=start, ppo=unsure, **other)
        assert found.startswith("Did RL help? Not clearly: what was served was ")
    assert said(vaft=(0.1, 0.2), rspo=(0.4, 0.5)) == (
        "Did RL help? With 2 seeds this run cannot tell: 3 are needed."
    )
    assert said(vaft=start) == ""
    # what has fewer seeds is neither best nor a reason to say nothing
    values = {
        ("vaft", "served"): start, ("rspo", "served"): up, ("vsl_rspo", "served"): (0.9, 0.9),
        ("ppo", "served"): unsure,
    }  # fmt: skip
    final = pd.concat(
        [frame({key: value}, num_seeds=len(value), step=5) for key, value in values.items()]
    )
    methods = ["rspo", "vsl_rspo", "ppo"]
    found = adjust(compare(final, "served", "what was served", methods, "vaft"))
    text = answer(final, found, methods, {"served": "what was served"})
    assert "Highest was `rspo`" in text
    assert "its lead over the next, `ppo`" in text
    assert text.endswith("Not counted here, for fewer seeds: `vsl_rspo`.")


def test_the_answer_comes_first(made: SuiteReport) -> None:
    start = (
        "Did RL help? In part: the value served of a list of 40 under the hidden truth was raised"
    )
    assert made.answer.startswith(f"{start} with `hepo`; lowered with `ppo`")
    assert report_text(made, "figures", "png", []).split("\n\n")[1] == escape(made.answer)


def test_what_the_worlds_pay_for() -> None:
    assert worth_table(results()) is None
    gains = {
        ("rankers", f"gain/{name}/truth@5"): k for k, name in ((1, "constant"), (2, "cluster"))
    }
    table = worth_table(frame(gains))
    assert table is not None
    rows = rows_of(table)
    assert [rows[name]["truth@5"] for name in ("constant", "cluster")] == [1, 2]
    assert rows["cluster"]["rankers@1"] is None
