"""Cards of the rankers: scikit-learn and plain loops as references, groups, rows too few."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from benchmarks.rankers.report import make_report
from benchmarks.rankers.suite import PRESETS, run_method
from benchmarks.runs.results import check_results
from gpr_rl.schema import Action
from simulators.rankers.cards import (
    MIN_POSITIVES,
    expected_calibration_error,
    grade,
    ranker_card,
    ranker_reliability,
    reliability,
)
from simulators.synthetic.evaluator import TruthEvaluator
from simulators.world import World
from simulators.world.history import DAY_S


def test_ece_by_hand() -> None:
    # Bins of two: mean p .15, rate .5 -> .35; mean p .35, rate 0 -> .35; mean p .85, rate 1 -> .15.
    p = np.array([0.9, 0.1, 0.4, 0.2, 0.3, 0.8])
    y = np.array([1.0, 0.0, 0.0, 1.0, 0.0, 1.0])
    assert expected_calibration_error(p, y, bins=3) == pytest.approx((0.35 + 0.35 + 0.15) / 3)
    assert expected_calibration_error(p, y, bins=1) == pytest.approx(abs(2.7 / 6 - 0.5))
    points = reliability(p, y, bins=3)
    assert [n for _, _, n in points] == [2, 2, 2]
    assert [q for q, _, _ in points] == pytest.approx([0.15, 0.35, 0.85])
    assert [r for _, r, _ in points] == [0.5, 0.0, 1.0]
    # Bins of unequal size weigh by their rows: of 3 and 2, mean p .2 and .85 with rates 1/3 and 1.
    five = expected_calibration_error(p[[0, 1, 3, 4, 5]], y[[0, 1, 3, 4, 5]], bins=2)
    assert five == pytest.approx((3 * (1 / 3 - 0.2) + 2 * 0.15) / 5)


def test_more_bins_than_rows() -> None:
    assert expected_calibration_error(np.array([0.2]), np.array([1.0])) == pytest.approx(0.8)


def test_grades_against_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth = rng.beta(1, 9, 4_000)
    y = (rng.random(4_000) < truth).astype(np.float64)
    p = np.clip(2 * truth**1.2, 0, 1)
    card = grade(*(torch.from_numpy(x) for x in (p, y, truth)))
    assert card["num_rows"] == 4_000
    assert card["num_positives"] == y.sum()
    assert card["rate"] == pytest.approx(y.mean())
    for suffix, values in (("", p), ("_oracle", truth)):
        assert card[f"auc{suffix}"] == pytest.approx(roc_auc_score(y, values))
        clipped = np.clip(values, 1e-7, 1 - 1e-7)
        assert card[f"log_loss{suffix}"] == pytest.approx(log_loss(y, clipped))
        assert card[f"ratio{suffix}"] == pytest.approx(values.sum() / y.sum())
    assert card["ece"] > 3 * card["ece_oracle"]  # p is far too large, the truth is not
    assert card["log_loss"] > card["log_loss_oracle"]


def test_rows_of_one_class() -> None:
    p = torch.tensor([0.1, 0.2])
    none = grade(p, torch.zeros(2), None)
    assert not {"auc", "ratio"} & set(none)
    assert none["ece"] == pytest.approx(0.15)
    assert none["log_loss"] == pytest.approx(-(np.log(0.9) + np.log(0.8)) / 2)
    every = grade(p, torch.ones(2), None)
    assert "auc" not in every
    assert every["ratio"] == pytest.approx(0.15)
    few = grade(p.repeat(20), torch.eye(40)[0] + torch.eye(40)[1], None, min_positives=3)
    assert "auc" not in few
    assert few["num_positives"] == 2


def test_the_card_of_a_world_against_plain_loops(world: World) -> None:
    card = ranker_card(world)
    day = world.request_time // DAY_S
    rows = [r for r in range(world.num_requests) if day[r] >= world.info.num_log_days]
    ads = world.ads
    groups: dict[str, list[int]] = {"overall": rows}
    for r in rows:
        ad = int(world.request_ad[r])
        groups.setdefault(f"vertical {ads['vertical'][ad]}", []).append(r)
        age = day[r] - ads["first_day"][ad]
        groups.setdefault("new ads" if age <= 3 else "old ads", []).append(r)
    assert set(card["pctr"]) == set(groups)
    action = world.request_action.numpy()
    truth = TruthEvaluator(world)
    for task, least in (("pctr", Action.CLICK), ("pcvr", Action.CONVERSION)):
        p = world.logged[task].double().numpy()
        for name, members in groups.items():
            trials = [r for r in members if task == "pctr" or action[r] >= Action.CLICK]
            if not trials:
                assert name not in card[task]
                continue
            y = (action[trials] >= least).astype(float)
            found = card[task][name]
            assert found["num_rows"] == len(trials)
            assert found["num_positives"] == y.sum()
            labels = [0.0, 1.0]
            assert found["log_loss"] == pytest.approx(log_loss(y, p[trials], labels=labels))
            if y.sum() > 0:
                assert found["ratio"] == pytest.approx(p[trials].sum() / y.sum())
            enough = min(y.sum(), len(y) - y.sum()) >= MIN_POSITIVES
            assert ("auc" in found) == enough
            if enough:
                assert found["auc"] == pytest.approx(roc_auc_score(y, p[trials]))
                ids = torch.tensor(trials)
                oracle = getattr(truth.outcome(ids, world.request_ad[ids][:, None]), task)[:, 0]
                assert found["auc_oracle"] == pytest.approx(roc_auc_score(y, oracle))
    parts = [m["num_rows"] for g, m in card["pctr"].items() if g.startswith("vertical")]
    assert sum(parts) == card["pctr"]["overall"]["num_rows"]
    for task in ("pctr", "pcvr"):  # `ranker_card.json` holds the overall grades
        shared = {k: v for k, v in card[task]["overall"].items() if k in world.ranker_card[task]}
        assert shared == pytest.approx({k: world.ranker_card[task][k] for k in shared})
        assert {"auc", "log_loss", "ece", "ratio"} <= set(shared)
    json.dumps(card)


def test_the_item_mean_knows_the_ad_and_nothing_else(world: World) -> None:
    day, action = world.request_time // DAY_S, world.request_action.numpy()
    ad = world.request_ad.numpy()
    logged, held = day < world.info.num_log_days, day >= world.info.num_log_days
    for task, tried, least in (
        ("pctr", Action.IMPRESSION, Action.CLICK),
        ("pcvr", Action.CLICK, Action.CONVERSION),
    ):
        trials, wins = (
            np.array([(logged & (ad == a) & (action >= x)).sum() for a in range(world.num_ads)])
            for x in (tried, least)
        )
        mean = wins.sum() / trials.sum()
        rate = (wins + 2) / (trials + 2 / mean)
        rows = held & (action >= tried)
        wanted = roc_auc_score(action[rows] >= least, rate[ad[rows]])
        assert world.ranker_card[task]["auc_item_mean"] == pytest.approx(wanted, abs=1e-6)


def test_a_card_without_the_truth_reads_no_truth(world: World, monkeypatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("the truth was read")

    monkeypatch.setattr("simulators.rankers.cards.TruthEvaluator", refuse)
    card = ranker_card(world, with_oracle=False)
    assert not [m for groups in card.values() for g in groups.values() for m in g if "oracle" in m]
    with pytest.raises(AssertionError, match="the truth was read"):
        ranker_card(world)


def test_reliability_of_a_world(world: World) -> None:
    points = ranker_reliability(world, bins=5)
    card = ranker_card(world, with_oracle=False)
    for task, bins in points.items():
        count = np.array([n for _, _, n in bins])
        observed = np.array([r for _, r, _ in bins])
        assert count.sum() == card[task]["overall"]["num_rows"]
        assert (observed * count).sum() == pytest.approx(card[task]["overall"]["num_positives"])
        assert np.diff([q for q, _, _ in bins]).min() >= 0


def test_the_suite_reports_what_the_card_says(world: World) -> None:
    rows = pd.concat(
        run_method(world="tiny", seed=seed, method="network", sizes=PRESETS["smoke"])
        for seed in (0, 1)
    )
    checked = check_results(rows, "the suite")
    assert set(checked["split"]) == {"test"}
    first = checked[checked["seed"] == 0].set_index(["task", "group", "metric"])["value"]
    card = ranker_card(world)
    assert first["pctr", "vertical 2", "ece"] == card["pctr"]["vertical 2"]["ece"]
    assert first["pcvr", "overall", "auc_oracle"] == card["pcvr"]["overall"]["auc_oracle"]
    assert first["", "", "regime/share"] == world.ranker_card["regime"]["share"]
    bins = checked.query("task == 'pctr' and bin > 0 and metric == 'num_rows'")
    assert sorted(bins["bin"].unique()) == list(range(1, 11))
    assert bins.groupby("seed")["value"].count().tolist() == [10, 10]
    report = make_report(checked, methods=("network",), info=world.info, seeds=(0, 1))
    overall, regime = report.tables
    assert [row[0] for row in overall.rows] == [
        "pctr, network", "pctr, truth", "pcvr, network", "pcvr, truth"
    ]  # fmt: skip
    assert overall.rows[0][1].value == pytest.approx(
        checked.query("task == 'pctr' and group == 'overall' and metric == 'auc'")["value"].mean()
    )
    assert regime.rows[0][4] is not None
    clicks, conversions, _ = report.sections
    figure, by_group = clicks.blocks
    assert len(figure.canvas.axes[0].lines) == 2  # the method's, and the calibrated one's
    assert [row[0] for row in by_group.rows] == [
        "overall", "vertical 0", "vertical 1", "vertical 2", "vertical 3", "new ads", "old ads"
    ]  # fmt: skip
    few = {row[0]: row for row in conversions.blocks[1].rows}["new ads"]
    assert few[1] is None  # two or three conversions: no AUC
    assert few[2] is not None


@pytest.mark.slow
def test_the_suite_from_the_command_line(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.run", "rankers", "--preset", "smoke",
         "--out", str(tmp_path / "run")],
        cwd=root, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Frozen rankers on held-out days" in done.stdout
    page = (tmp_path / "run" / "report.html").read_text()
    for text in ("new ads", "vertical 3", "reliability_pctr"):
        assert text in page or (tmp_path / "run" / "figures" / f"{text}.png").is_file()
    results = pd.read_parquet(tmp_path / "run" / "results.parquet")
    assert {"network"} <= set(results["method"])
