"""Logs with propensities: what they hold, how they are written, what a damaged one says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from agents.off_policy import (
    Feedback,
    LogError,
    LoggedFeedback,
    PropensityError,
    ips,
    log_of_distribution,
    log_of_policy,
    log_of_world,
    policy_probability,
    read_parquet,
)
from benchmarks.evaluation import ad_distribution, make_evaluation_set, path_log_prob
from gpr_rl.models import HHD, HHDConfig
from gpr_rl.schema import Action
from simulators.rewards import RewardMix
from simulators.synthetic.evaluator import TruthEvaluator
from simulators.world import World


@pytest.fixture(scope="module")
def model(world: World) -> HHD:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return HHD(HHDConfig(dim=16, num_heads=2, num_hsd_layers=1), world.spec).eval()


@pytest.fixture(scope="module")
def log(world: World) -> LoggedFeedback:
    return log_of_world(world, world.request_ids("test")[:400])


def test_the_worlds_own_log_is_what_its_events_say(world: World, log: LoggedFeedback) -> None:
    events = world.events[world.events["kind"] == 1].set_index("request_id")
    ads = world.ads.set_index("ad_id")
    seen = set()
    for i in range(len(log)):
        event = events.loc[int(log.request_id[i])]
        ad = ads.loc[int(log.ad_id[i])]
        assert int(log.ad_id[i]) == event["item_id"]
        assert int(log.user_id[i]) == event["user_id"]
        assert int(log.timestamp[i]) == event["timestamp"]
        assert int(log.position[i]) == event["position"]
        assert float(log.propensity[i]) == event["propensity"]
        click = event["action"] >= Action.CLICK
        conversion = event["action"] == Action.CONVERSION
        charge = {"CPM": 1.0, "CPC": 1000.0 * click, "OCPA": 1000.0 * conversion}[ad["bid_type"]]
        assert float(log.reward[i]) == pytest.approx(charge * ad["bid"], rel=1e-6)
        assert (int(log.click[i]), int(log.conversion[i])) == (click, conversion)
        seen.add((ad["bid_type"], bool(click)))
    assert len(seen) >= 5
    assert torch.equal(log.codes, world.codes[log.ad_id])


def test_the_logs_propensities_are_the_cascades(world: World, log: LoggedFeedback) -> None:
    table = TruthEvaluator(world).logging_distribution(log.request_id)
    own = table.gather(1, log.ad_id[:, None])[:, 0].double()
    torch.testing.assert_close(log.propensity, own, rtol=1e-4, atol=1e-7)


def test_parquet_gives_back_the_log(log: LoggedFeedback, tmp_path: Path) -> None:
    path = tmp_path / "logs" / "log.parquet"
    log.to_parquet(path)
    assert list(path.parent.iterdir()) == [path]  # nothing temporary stays
    torch.testing.assert_close(vars(read_parquet(path)), vars(log), rtol=0, atol=0)
    frame = pd.read_parquet(path)
    assert list(frame.columns) == [
        "request_id", "user_id", "timestamp", "ad_id", "codes", "position", "propensity",
        "reward", "click", "conversion", "slate_id",
    ]  # fmt: skip
    assert frame["codes"].iloc[0].tolist() == log.codes[0].tolist()


def test_a_damaged_log_is_named(log: LoggedFeedback, tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    with pytest.raises(LogError, match=r"log\.parquet"):
        read_parquet(path)
    log.to_parquet(path)
    table = pq.read_table(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(LogError, match=r"log\.parquet can't be read as Parquet"):
        read_parquet(path)
    assert path.stat().st_size == 500
    pq.write_table(table.drop_columns(["propensity", "click"]), path)
    with pytest.raises(LogError, match="it has no column propensity, click"):
        read_parquet(path)
    frame = table.to_pandas()
    frame.assign(reward=frame["reward"].where(frame.index != 3)).to_parquet(path)
    with pytest.raises(LogError, match=r"log\.parquet: column 'reward' has 1 nulls"):
        read_parquet(path)
    frame.assign(propensity=frame["propensity"].where(frame.index != 3, 0.0)).to_parquet(path)
    with pytest.raises(LogError, match=r"log\.parquet: propensity of row 3 must lie in \(0, 1\]"):
        read_parquet(path)
    frame.assign(ad_id="many").to_parquet(path)
    with pytest.raises(LogError, match=r"log\.parquet: column 'ad_id' can't be read"):
        read_parquet(path)
    frame.iloc[1:].reset_index(drop=True).assign(codes=[[1, 2]] + [[1, 2, 3]] * 398).to_parquet(
        path
    )
    with pytest.raises(LogError, match=r"log\.parquet: column 'codes' can't be read"):
        read_parquet(path)


def test_columns_must_have_one_length(log: LoggedFeedback) -> None:
    with pytest.raises(LogError, match="column 'reward' has 1 rows, request_id has 400"):
        replace(log, reward=log.reward[:1])


def test_open_bandit_style(world: World, log: LoggedFeedback) -> None:
    feedback = log.to_open_bandit(world)
    assert set(feedback) == {
        "n_rounds", "n_actions", "context", "action_context", "action", "position", "reward",
        "pscore",
    }  # fmt: skip
    assert feedback["n_rounds"] == 400
    assert feedback["n_actions"] == 200
    assert feedback["context"].shape[0] == 400
    assert feedback["action_context"].shape[0] == 200
    assert all(isinstance(v, np.ndarray) for k, v in feedback.items() if not k.startswith("n_"))
    np.testing.assert_array_equal(feedback["pscore"], log.propensity.numpy())
    # two slates of two: the slate's probability and the running one
    four = LoggedFeedback(**{name: value[:4] for name, value in vars(log).items()})
    slates = replace(
        four,
        slate_id=torch.tensor([0, 0, 1, 1]),
        propensity=torch.tensor([0.5, 0.25, 0.2, 0.5]).double(),
    ).to_open_bandit(world)
    np.testing.assert_allclose(slates["pscore"], [0.125, 0.125, 0.1, 0.1], rtol=1e-6)
    np.testing.assert_allclose(slates["pscore_cascade"], [0.5, 0.125, 0.2, 0.1], rtol=1e-6)


def test_a_policys_propensity_is_that_of_its_path(world: World, model: HHD) -> None:
    data = make_evaluation_set(world, RewardMix.from_specs([]), 20)
    by_ad = ad_distribution(path_log_prob(model, world, data.request_id, data.eligible).exp(), data)
    log = log_of_policy(model, world, data.request_id, seed=3, num_candidates=5)
    row = torch.searchsorted(data.request_id, log.request_id)
    assert len(log) == 100
    torch.testing.assert_close(log.propensity, by_ad[row, log.ad_id].double(), rtol=1e-3, atol=1e-7)
    ranked = world.outcome(log.request_id, log.ad_id[:, None]).ecpm[:, 0].double()
    torch.testing.assert_close(log.reward, ranked)
    assert (log.click == -1).all()
    # the policy's probability of any ad, also of those whose path shows another one, or none
    ads = torch.arange(world.num_ads).expand(20, -1)
    ids = data.request_id[:, None].expand_as(ads)
    every = policy_probability(model, world, ids.flatten(), ads.flatten()).view(20, -1)
    torch.testing.assert_close(every, by_ad.double(), rtol=1e-3, atol=1e-7)
    assert (every[~data.eligible] == 0).all()


def test_realised_clicks_follow_the_truth_and_do_not_depend_on_the_batch(
    world: World, model: HHD
) -> None:
    truth = TruthEvaluator(world)
    ids = world.request_ids("test")[:60]
    log = log_of_policy(
        model, world, ids, seed=3, num_candidates=40, feedback=Feedback(truth=truth)
    )
    chance = truth.outcome(log.request_id, log.ad_id[:, None])
    click, both = chance.pctr[:, 0].double(), (chance.pctr * chance.pcvr)[:, 0].double()
    for drawn, p in ((log.click, click), (log.conversion, both)):
        spread = float((p * (1 - p)).sum().sqrt())
        assert abs(float(drawn.sum() - p.sum())) < 4 * spread
    assert bool((log.conversion <= log.click).all())
    assert int(log.conversion.sum()) > 0
    half = log_of_policy(
        model, world, ids[30:], seed=3, num_candidates=40, feedback=Feedback(truth=truth)
    )
    own = log.request_id >= ids[30]
    for name in ("ad_id", "click", "conversion", "reward"):
        assert torch.equal(getattr(half, name), getattr(log, name)[own])
    other = log_of_policy(
        model, world, ids, seed=3, draw=1, num_candidates=40, feedback=Feedback(truth=truth)
    )
    assert not torch.equal(other.click, log.click)


def test_a_log_from_a_table_tells_what_another_policy_earns(world: World) -> None:
    truth = TruthEvaluator(world)
    ids = world.request_ids("test")
    legal = world.eligible(ids).double()
    probability = legal / legal.sum(-1, keepdim=True)
    log = log_of_distribution(world, ids, probability, seed=0, feedback=Feedback(truth=truth))
    torch.testing.assert_close(log.propensity, probability.gather(1, log.ad_id[:, None])[:, 0])
    target = truth.logging_distribution(ids).double()
    value = float((target * truth.outcome_all(ids).pctr).sum(-1).mean())
    found = ips(log.click, log.propensity, target.gather(1, log.ad_id[:, None])[:, 0])
    assert abs(float(found.value) - value) < 4 * float(found.std_error)
    with pytest.raises(PropensityError, match=r"probabilities of row 0 must be >= 0 and sum to 1"):
        log_of_distribution(world, ids, probability / 2, seed=0)


def test_a_world_without_propensities_says_so(world: World) -> None:
    real = world.replace(events=world.events.assign(propensity=np.nan))
    with pytest.raises(LogError, match="'tiny' has no propensity for request 5: nobody knows how"):
        log_of_world(real, torch.tensor([5, 6]))
