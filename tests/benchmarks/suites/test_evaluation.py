"""The exact evaluation: the path distribution against sampling, beams and plain enumeration."""

from dataclasses import replace

import pytest
import torch

from benchmarks.alignment.distilled import DistilConfig, distil
from benchmarks.evaluation import (
    EvaluationSet,
    ad_distribution,
    concentration_metrics,
    coverage,
    evaluate_model,
    make_evaluation_set,
    path_log_prob,
    personal_metrics,
    policy_beam,
    served_metrics,
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


def test_the_walk_down_the_tree_is_the_teacher_forced_pass(world: World, model: HHD, data) -> None:
    # Requests share a walk: a path that only another request may show stays at -inf.
    ids, legal = data.request_id, data.eligible.clone()
    legal[0] = False
    legal[0, 3] = True
    found = path_log_prob(model, world, ids, legal)
    paths = world.trie.paths.expand(len(ids), -1, -1)
    mask = world.trie.restrict(legal).path_masks(paths)
    logits = model.logits(model.encode(world.request(ids)), paths).double()
    each = logits.masked_fill(~mask, -torch.inf).log_softmax(-1)
    wanted = each.gather(-1, paths[..., None]).sum((-1, -2))
    wanted = wanted.where(world.trie.restrict(legal).path_ad >= 0, -torch.inf)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    assert (found[0] > -torch.inf).sum() == 1


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


def three_ads() -> EvaluationSet:
    """Return two requests and three ads; the third ad is closed to the second request."""
    return EvaluationSet(
        request_id=torch.arange(2),
        eligible=torch.tensor([[True, True, True], [True, True, False]]),
        path_ad=torch.arange(3).expand(2, 3),
        path_of_ad=torch.arange(3),
        value=torch.tensor([[0.0, 4.0, 2.0], [6.0, 0.0, 9.0]]),
        ecpm=torch.ones(2, 3),
        truth=torch.tensor([[0.0, 1.0, 3.0], [2.0, 0.0, 9.0]]),
        logging=torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
        bid_type=torch.tensor([0, 1, 1]),
    )


def test_what_is_served_is_the_best_by_the_rankers_of_the_first_k() -> None:
    lists = torch.tensor([[2, 1, 0], [1, 0, -1]])
    found = served_metrics(three_ads(), lists)
    # production earns 0; the best ads 4 and 6 (rankers), 3 and 2 (truth)
    assert found["proxy_served_1"] == (2 + 0) / 2
    assert found["truth_served_1"] == (3 + 0) / 2
    assert found["proxy_share_served_5"] == pytest.approx(1.0)
    assert found["proxy_share_served"] == pytest.approx(1.0)
    assert found["truth_share_served"] == pytest.approx((1 + 2) / (3 + 2))
    # what is served earns 1 and 2 of 3 and 2: residuals 1 - .6 x 3 and 2 - .6 x 2
    spread = torch.tensor([-0.8, 0.8]).std() / 2**0.5 / 2.5
    assert found["truth_share_served_se"] == pytest.approx(float(spread))
    assert found["proxy_share_served_se"] == pytest.approx(0.0, abs=1e-7)  # always the best


def test_the_error_of_a_share_is_what_resampling_requests_finds(world: World) -> None:
    data = make_evaluation_set(world, RewardMix.from_specs([]), 200)
    shown = data.eligible.float() / data.eligible.sum(1, keepdim=True)
    found = value_metrics(data, "even", distribution=shown)["proxy_share_even_se"]
    rows = torch.randint(200, (4_000, 200), generator=torch.Generator().manual_seed(0))
    best = data.value.masked_fill(~data.eligible, -torch.inf).amax(1)
    value, logging = (shown * data.value).sum(1), (data.logging * data.value).sum(1)
    up, down = value - logging, best - logging
    alone = value_metrics(replace(data, user=None), "even", distribution=shown)
    spread = (up[rows].mean(1) / down[rows].mean(1)).std()
    assert alone["proxy_share_even_se"] == pytest.approx(float(spread), rel=0.1)
    # whole users resampled
    group = data.user.unique(return_inverse=True)[1]
    number = int(group.max()) + 1
    ups, downs = (torch.zeros(number).index_add_(0, group, x) for x in (up, down))
    rows = torch.randint(number, (4_000, number), generator=torch.Generator().manual_seed(1))
    spread = (ups[rows].sum(1) / downs[rows].sum(1)).std()
    assert found == pytest.approx(float(spread), rel=0.1)
    assert found > 1.1 * alone["proxy_share_even_se"]


def test_the_personal_share_is_what_the_mix_for_all_does_not_earn() -> None:
    data = three_ads()
    best = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    # the mix shows ads 0 and 1 to half: (0 + 4) / 2 and (6 + 0) / 2 of 4 and 6
    assert personal_metrics(data, best)["proxy_personal_share"] == pytest.approx(1 - 2.5 / 5)
    same = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    assert personal_metrics(data, same)["proxy_personal_share"] == pytest.approx(0)
    third = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    # half 0, half 2 for the first request (0 + 2) / 2; the second may see ad 0 only: 6
    assert personal_metrics(data, third)["proxy_personal_share"] == pytest.approx(
        ((2 + 6) - (1 + 6)) / 2 / 5
    )


def test_coverage_and_impressions_by_bid_type() -> None:
    assert coverage(torch.tensor([[2, 1], [1, -1]]), 4) == 0.5
    shown = torch.tensor([[0.0, 0.5, 0.5], [1.0, 0.0, 0.0]])
    found = concentration_metrics(three_ads(), shown, torch.tensor([1, 0]))
    assert (found["impressions_cpm"], found["impressions_cpc"]) == (0.5, 0.5)
    assert found["impressions_ocpa"] == 0


def test_distilling_raises_the_value_and_is_seeded(world: World) -> None:
    reward = RewardMix.from_specs([])
    data = make_evaluation_set(world, reward, 40)

    def made() -> HHD:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return HHD(HHDConfig(dim=16, num_heads=2, num_hsd_layers=1), world.spec).eval()

    def value(policy: HHD) -> float:
        log_prob = path_log_prob(policy, world, data.request_id, data.eligible)
        by_ad = ad_distribution(log_prob.exp(), data)
        return value_metrics(data, "expected", distribution=by_ad)["proxy_share_expected"]

    first, second, sizes = made(), made(), DistilConfig(num_requests=16, learning_rate=1e-2)
    for policy in (first, second):
        distil(policy, world, reward, sizes, 50, seed=3)
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))
    assert value(first) > value(made()) + 0.05
