"""The off-policy suite's grades, by hand, and its exact truths, over all slates."""

import itertools
from dataclasses import replace

import pytest
import torch
from scipy.stats import spearmanr

from agents.off_policy import Estimate
from agents.off_policy.plackett_luce import conditional_probability
from benchmarks.off_policy.grades import grade, judge_ads, judge_slates, rank_correlation
from benchmarks.off_policy.presets import AD_METHODS, PRESETS, SLATE_METHODS
from benchmarks.off_policy.tables import Tables, draw_logs
from simulators.world.tables import BID_TYPES

SIZES = replace(PRESETS["smoke"], log_sizes=(50, 200), num_replications=8)


def toy_tables(num_requests: int = 2, num_ads: int = 5, seed: int = 0) -> Tables:
    generator = torch.Generator().manual_seed(seed)

    def random() -> torch.Tensor:
        return torch.rand(num_requests, num_ads, dtype=torch.float64, generator=generator)

    def policy() -> torch.Tensor:
        return torch.softmax(2 * random(), dim=-1)

    pctr, pcvr = random(), random()
    bid = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).double()
    bid_type = torch.tensor([0, 1, 2, 0, 1])
    factor = torch.stack([torch.ones_like(pctr), 1000 * pctr, 1000 * pctr * pcvr])
    revenue = bid * factor[bid_type, :, torch.arange(num_ads)].T
    even = torch.full((num_requests, num_ads), 1.0 / num_ads).double()
    return Tables(
        request_id=torch.arange(num_requests),
        logging=policy(),
        targets={"uniform": even, "one": policy(), "two": policy()},
        pctr=pctr,
        pcvr=pcvr,
        truth={"revenue": revenue, "clicks": pctr},
        predicted={"revenue": 500 * random(), "clicks": random()},
        bid=bid,
        bid_type=bid_type,
    )


def test_drawn_logs_earn_what_the_truth_says() -> None:
    tables = toy_tables()
    assert BID_TYPES == ("CPM", "CPC", "OCPA")
    sizes = replace(SIZES, log_sizes=(5_000,), num_replications=4)
    logs = draw_logs(tables, tables.logging, sizes, seed=0, num_positions=1)
    for name in ("revenue", "clicks"):
        found = logs.reward(tables, name).flatten()
        value = float((tables.logging * tables.truth[name]).sum(-1).mean())
        assert abs(float(found.mean()) - value) < 4 * float(found.std()) / 20_000**0.5
    sizes = replace(SIZES, log_sizes=(7,), num_replications=2)
    short = draw_logs(tables, tables.logging, sizes, seed=0, num_positions=1)
    for name in ("row", "ad_id", "click", "conversion"):  # a short log begins the long one
        assert torch.equal(getattr(short, name), getattr(logs, name)[:2, :7])


def test_the_truth_of_ads_and_the_estimates_agree() -> None:
    tables = toy_tables()
    sizes = replace(SIZES, log_sizes=(5_000,), num_replications=20)
    found, truth = judge_ads(tables, AD_METHODS, sizes, seed=1)
    for reward, policy in itertools.product(("revenue", "clicks"), tables.targets):
        table = tables.targets[policy] * tables.truth[reward]
        assert truth[reward][policy] == pytest.approx(float(table.sum(-1).mean()))
        for method in ("ips", "snips", "dr"):  # 100,000 rows in all
            value = found[method, reward, 5_000][policy].value
            error = float(value.std()) / 20**0.5
            assert abs(float(value.mean()) - truth[reward][policy]) < 4 * error, (method, policy)


def test_the_truth_of_slates_is_a_sum_over_all_slates() -> None:
    tables = toy_tables()
    sizes = replace(SIZES, log_sizes=(4_000,), num_replications=20, slate_floor=0.0)
    found, truth = judge_slates(tables, SLATE_METHODS, sizes, seed=1)
    slates = torch.tensor(list(itertools.permutations(range(5), 3)))
    median = tables.pctr.median(-1).values
    for reward, (policy, p) in itertools.product(("revenue", "clicks"), tables.targets.items()):
        value = 0.0
        for row in range(2):
            rows = torch.full((len(slates),), row)
            chance = conditional_probability(p, rows, slates).prod(-1)
            for slate, weight in zip(slates.tolist(), chance.tolist(), strict=True):
                reached = 1.0
                for ad in slate:
                    value += 0.5 * weight * reached * float(tables.truth[reward][row, ad])
                    click = float(tables.pctr[row, ad])
                    reached *= click / (click + float(median[row]))
        assert truth[reward][policy] == pytest.approx(value)
        for method in ("slate_sips", "slate_rips", "slate_snrips", "slate_cascade_dr"):
            estimate = found[method, reward, 4_000][policy].value
            error = float(estimate.std()) / 20**0.5
            assert abs(float(estimate.mean()) - value) < 4 * error, (method, policy)


def test_cascade_dr_with_its_model_has_less_spread_than_rips() -> None:
    """The prediction and its expectation belong together: a slip there would add variance."""
    tables = toy_tables()
    tables = replace(tables, predicted=tables.truth)
    sizes = replace(SIZES, log_sizes=(2_000,), num_replications=40, slate_floor=0.0)
    found, _ = judge_slates(tables, ("slate_rips", "slate_cascade_dr"), sizes, seed=2)
    for policy in tables.targets:
        rips, dr = (found[m, "clicks", 2_000][policy].value.std() for m in
                    ("slate_rips", "slate_cascade_dr"))  # fmt: skip
        assert float(dr) < float(rips)


def test_grades_by_hand() -> None:
    def estimate(*values: float) -> Estimate:
        x = torch.tensor(values).double()
        half = torch.full_like(x, 1.5)
        return Estimate(x, half, x - half, x + half, 10 * half, torch.ones_like(x).bool())

    found = {"a": estimate(2.0, 4.0), "b": estimate(1.0, 5.0)}
    of_policy = grade(found, {"a": 2.0, "b": 4.0, "behavior": 2.0})
    assert list(of_policy) == ["a", "b", ""]
    grades = of_policy[""]
    assert of_policy["a"]["bias"] == pytest.approx(0.5)  # errors 0 and 1 in units of 2
    assert of_policy["b"]["bias"] == pytest.approx(-0.5)  # -1.5 and 0.5
    assert grades["bias"] == pytest.approx(0.0)
    assert grades["abs_bias"] == pytest.approx(0.5)
    assert grades["rmse"] == pytest.approx(((0 + 1 + 2.25 + 0.25) / 4) ** 0.5)
    assert of_policy["b"]["median_error"] == 0.5  # the lower one of 1.5 and 0.5
    assert grades["median_error"] == 0.25
    assert of_policy["a"]["coverage"] == 0.5  # [0.5, 3.5] holds 2, [2.5, 5.5] does not
    assert grades["coverage"] == 0.5
    assert grades["width"] == pytest.approx(1.5)
    assert grades["effective_sample_size"] == 15.0
    assert grades["unsupported"] == 0.0
    assert grades["rank_correlation"] == pytest.approx(0.0)  # -1 in the first log, 1 in the other


def test_rank_correlation_is_spearmans() -> None:
    generator = torch.Generator().manual_seed(0)
    value = torch.randint(0, 4, (20, 6), generator=generator).double().numpy()
    value[3] = 1.0  # constant: no order at all
    truth = [3.0, 1.0, 2.0, 2.0, 5.0, 0.0]
    wanted = [0.0 if i == 3 else spearmanr(row, truth)[0] for i, row in enumerate(value)]
    assert rank_correlation(value, truth) == pytest.approx(sum(wanted) / 20)
