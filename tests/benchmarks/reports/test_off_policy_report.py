"""The off-policy report: verdicts and tables worked out by hand."""

import pandas as pd
import pytest

from benchmarks.off_policy.presets import OffPolicyPreset
from benchmarks.off_policy.report import make_report
from benchmarks.reports.blocks import Paragraph, SuiteReport, Table
from tests.benchmarks.reports.frames import frame, rows_of

SIZES = OffPolicyPreset(log_sizes=(500, 2_000), num_replications=7)
IPS = {
    "bias": 1, "abs_bias": 2, "rmse": 8, "median_error": 3, "coverage": 0.9, "width": 4,
    "rank_correlation": 0.5, "effective_sample_size": 6, "unsupported": 0,
}  # fmt: skip
DM = {**IPS, "abs_bias": 3, "rmse": 4, "coverage": 0.5, "rank_correlation": 0.25}


def results(
    ips: dict[str, float] = IPS, dm: dict[str, float] = DM, bias: float = 2
) -> pd.DataFrame:
    found = []
    for reward in ("revenue", "clicks"):
        at = {"kind": "ads", "reward": reward}
        overall = {("ips", name): v for name, v in ips.items()}
        overall |= {("dm", name): v for name, v in dm.items()}
        found.append(frame(overall, step=2_000, **at))
        for policy, worth in (("greedy", 6), ("uniform", 3), ("behavior", 2)):
            found.append(frame({("truth", "value"): worth}, step=2_000, policy=policy, **at))
        for policy, rows, error in (("greedy", 10, 7), ("uniform", 200, 1)):
            own = {("ips", "effective_sample_size"): rows}
            own |= {("ips", "rmse"): error, ("dm", "rmse"): error + 20}
            for method, sign in (("ips", 1), ("dm", bias)):
                own |= {(method, "bias"): sign, (method, "coverage"): 0.25}
            found.append(frame(own, step=2_000, policy=policy, **at))
    return pd.concat(found, ignore_index=True)


def report(found: pd.DataFrame, methods: tuple[str, ...] = ("ips", "dm")) -> SuiteReport:
    return make_report(found, methods=methods, world="tiny", sizes=SIZES)


def meaning(found: pd.DataFrame) -> list[str]:
    blocks = report(found).sections[0].blocks
    assert all(isinstance(block, Paragraph) for block in blocks)
    return [block.text for block in blocks if isinstance(block, Paragraph)]


def test_the_meaning_names_best_and_worst_and_what_covers_too_rarely() -> None:
    revenue, clicks, optimism = meaning(results())
    assert revenue == (
        "From logs of 2,000 impressions, `dm` estimates revenue with the least error: its RMSE is "
        "4 of what the logging policy earns, against 8 for `ips` (2.0 times). It orders the target "
        "policies with a rank correlation of 0.25; the highest is `ips`'s, 0.50. Intervals that "
        "promise 95 % hold the truth too rarely for `dm` (50 %). They hold it at least 90 % of the "
        "time for `ips`. The error of `dm` is more bias than chance (mean |bias| 3): more rows do "
        "not help, and an interval made of the log's variance can't see it. What decides is "
        "overlap with the log: `ips` is off by 7 for `greedy`, which the log supports with 10 "
        "effective rows, and by 1 for `uniform` with 200."
    )
    assert clicks == revenue.replace("revenue", "clicks")
    assert "It puts `greedy` 2 logging values above its true revenue" in optimism
    assert "It puts `greedy` 2 logging values below" in meaning(results(bias=-2))[-1]


def test_the_meaning_the_other_way_round() -> None:
    """ips best, orders best, covers least by 1 %, with little bias; dm covers."""
    ips = {**IPS, "rmse": 2, "abs_bias": 0.5, "coverage": 0.89, "rank_correlation": 0.5}
    text = meaning(results(ips, {**DM, "coverage": 0.95, "rank_correlation": 0.505}))[0]
    assert "`ips` estimates revenue with the least error: its RMSE is 2 " in text
    assert "against 4 for `dm` (2.0 times)" in text
    assert "0.50, and none is higher by a hundredth." in text
    assert "too rarely for `ips` (89 %). They hold it at least 90 % of the time for `dm`." in text
    assert "more bias than chance" not in text


def test_the_policy_that_the_rankers_misjudge_most_is_named() -> None:
    """Greedy is put 2 too high and a softmax policy 3 too low: the latter is further off."""
    found = results()
    found.loc[found["policy"] == "uniform", "policy"] = "softmax"
    low = (found["policy"] == "softmax") & (found["method"] == "dm") & (found["metric"] == "bias")
    found.loc[low, "value"] = -3.0
    assert "It puts `softmax` 3 logging values below its true revenue" in meaning(found)[-1]


def test_the_error_is_compared_downwards() -> None:
    verdicts = [(d.method, d.baseline, d.verdict) for d in report(results()).differences]
    assert verdicts == [("dm", "ips", "improves")]
    assert [d.verdict for d in report(results(dm={**DM, "rmse": 9})).differences] == ["worsens"]
    found = results()
    mask = (found["method"] == "dm") & (found["metric"] == "rmse")
    mask &= (found["reward"] == "revenue") & (found["policy"] == "")
    found.loc[mask, "value"] = [7.0, 8.0, 9.0]
    assert [d.verdict for d in report(found).differences] == ["no clear difference"]


def test_the_tables_are_in_units_of_the_logging_policy() -> None:
    made = report(results())
    names = ["bias", "|bias|", "RMSE", "median |error|", "covered by 95 % intervals"]
    names += ["interval width", "rank correlation", "effective rows", "no support"]
    assert rows_of(made.tables[0])["ips"] == pytest.approx(
        dict(zip(names, IPS.values(), strict=True))
    )
    table = made.sections[1].blocks[-2]
    assert isinstance(table, Table)
    rows = rows_of(table)
    assert list(rows) == ["uniform", "greedy"]  # by true revenue
    assert list(table.columns)[3:7] == ["bias, ips", "bias, dm", "RMSE, ips", "RMSE, dm"]
    assert rows["greedy"] == {
        "true value": 3.0,  # 6 over the logging policy's 2
        "effective rows": 10,
        "bias, ips": 1,
        "bias, dm": 2,
        "RMSE, ips": 7,
        "RMSE, dm": 27,
        "covered, ips": 0.25,
        "covered, dm": 0.25,
    }
    assert rows["uniform"]["true value"] == 1.5
    assert "2 estimators judge 2 target policies" in made.lead
    assert "3 seeds, 7 logs per seed" in made.lead
