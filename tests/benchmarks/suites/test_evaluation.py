"""The exact evaluation: the path distribution against sampling, beams and plain enumeration."""

import pytest
import torch

from benchmarks.evaluation import (
    ad_distribution,
    evaluate_model,
    make_evaluation_set,
    path_log_prob,
    policy_beam,
    value_metrics,
)
from gpr_rl.decoding import sample_paths
from gpr_rl.models import HHD, HHDConfig
from simulators.rewards import RewardMix
from simulators.world import World


@pytest.fixture(scope="module")
def model(world: World) -> HHD:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return HHD(HHDConfig(dim=16, num_heads=2, num_hsd_layers=1), world.spec).eval()


@pytest.fixture(scope="module")
def data(world: World):
    return make_evaluation_set(world, RewardMix.from_specs([]), 12)


def test_paths_are_a_distribution_over_legal_ads(world: World, model: HHD, data) -> None:
    log_prob = path_log_prob(model, world, data.request_id, data.eligible)
    torch.testing.assert_close(log_prob.exp().sum(1), torch.ones(12), rtol=1e-5, atol=1e-5)
    assert torch.equal(log_prob > -torch.inf, data.path_ad >= 0)
    by_ad = ad_distribution(log_prob.exp(), data)
    assert (by_ad[~data.eligible] == 0).all()


def test_the_beam_holds_the_most_probable_paths(world: World, model: HHD, data) -> None:
    log_prob = path_log_prob(model, world, data.request_id, data.eligible)
    wide = policy_beam(model, world, data.request_id, data.eligible, world.trie.num_paths)
    best = log_prob.sort(dim=1, descending=True).values[:, :10]
    torch.testing.assert_close(wide.log_prob[:, :10], best, rtol=1e-4, atol=1e-4)
    ads = data.path_ad.gather(1, log_prob.argmax(1, keepdim=True))[:, 0]
    assert torch.equal(wide.ad_id[:, 0], ads)


def test_expected_value_is_what_samples_average_to(world: World, model: HHD, data) -> None:
    ids, legal = data.request_id[:3], data.eligible[:3]
    drawn = sample_paths(model, world.request(ids), world.trie, 6_000, 0, 0, legal)
    sampled = data.value[:3].gather(1, drawn.ad_id)
    log_prob = path_log_prob(model, world, data.request_id, data.eligible)
    exact = (ad_distribution(log_prob.exp(), data) * data.value).sum(1)[:3]
    error = sampled.std(1) / 6_000**0.5
    assert ((sampled.mean(1) - exact).abs() < 4 * error).all()


def test_shares_run_from_logging_to_best(data) -> None:
    logging = value_metrics(data, "expected", distribution=data.logging)
    assert logging["proxy_share_expected"] == pytest.approx(0.0, abs=1e-6)
    assert logging["truth_share_expected"] == pytest.approx(0.0, abs=1e-6)
    best = value_metrics(data, "greedy", ad_id=data.proxy_best())
    assert best["proxy_share_greedy"] == pytest.approx(1.0, abs=1e-6)


def test_the_warm_start_is_at_no_distance_from_itself(world: World, model: HHD, data) -> None:
    log_prob = path_log_prob(model, world, data.request_id, data.eligible)
    beam = policy_beam(model, world, data.request_id, data.eligible, 10)
    metrics = evaluate_model(model, world, data, beam.ad_id, log_prob, 10)
    assert metrics["kl_to_warm_start"] == pytest.approx(0.0, abs=1e-5)
    assert metrics["illegal_rate"] == 0.0
    assert metrics["ndcg"] == pytest.approx(metrics["ndcg_own"], abs=1e-6)
    assert metrics["proxy_served"] >= metrics["proxy_greedy"]
