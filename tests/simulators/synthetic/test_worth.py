"""What a world pays for: lists against plain loops, gates, prices."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from gpr_rl.schema import Action
from simulators import gate
from simulators.make import make_world
from simulators.rewards import final_value
from simulators.synthetic import worth
from simulators.synthetic.cascade import Cascade, market_bids, price_level
from simulators.synthetic.config import PRESETS, WorldConfig
from simulators.synthetic.evaluator import TruthEvaluator, read_truth
from simulators.world import World
from simulators.world.info import read_file


def test_what_the_ad_explains_is_not_personal() -> None:
    request, ad = torch.randn(6, 1), torch.randn(1, 5)
    legal = torch.ones(6, 5, dtype=torch.bool)
    assert worth.personal_share(request + ad, legal) == pytest.approx(0, abs=1e-9)
    taste = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])  # each request likes one ad of two
    assert worth.personal_share(taste, torch.ones(2, 2, dtype=torch.bool)) == pytest.approx(1)
    half = taste + torch.tensor([[1.0, -1.0]])  # variances 1 and 1
    assert worth.personal_share(half, torch.ones(2, 2, dtype=torch.bool)) == pytest.approx(0.5)


def test_gains_against_plain_loops(world: World) -> None:
    found = worth.measure_worth(world, num_train=40, num_test=25)
    truth, k = TruthEvaluator(world), 5
    train, test = worth.spaced(world, "train", 40), worth.spaced(world, "test", 25)
    total, count = np.zeros(world.num_ads), np.zeros(world.num_ads)
    for request in train.split(1):
        legal = world.eligible(request)[0].numpy()
        total += final_value(world.outcome_all(request))[0].numpy() * legal
        count += legal
    order = np.argsort(-total / np.maximum(count, 1), kind="stable")
    logging, best, served, favourite, firsts = 0.0, 0.0, 0.0, 0.0, []
    for request in test.split(1):
        legal = world.eligible(request)[0].numpy()
        proxy = final_value(world.outcome_all(request))[0].numpy()
        true = final_value(truth.outcome_all(request))[0].numpy()
        shown = truth.logging_distribution(request)[0].numpy()
        logging += float(shown @ true)
        best += true[legal].max()
        first = [ad for ad in order if legal[ad]][:k]
        served += true[max(first, key=lambda ad: proxy[ad])]
        firsts.append(np.where(legal, proxy, -np.inf).argmax())
        favourite += true[firsts[-1]]
    gain = found["gain"]
    assert gain["constant"]["truth@5"] == pytest.approx((served - logging) / (best - logging), 1e-3)
    share = (favourite - logging) / (best - logging)
    assert gain["favourite"]["truth@1"] == pytest.approx(share, 1e-3)
    assert gain["favourite"]["truth@40"] == gain["favourite"]["truth@1"]
    assert gain["favourite"]["rankers@1"] == pytest.approx(1)
    assert found["production"] == pytest.approx(logging / 25, 1e-4)
    mix = np.bincount(firsts)[np.unique(firsts)] / 25
    assert found["best_ads"] == pytest.approx(np.exp(-(mix * np.log(mix)).sum()))
    types = world.ads["bid_type"].to_numpy()[world.request_ad.numpy()]
    assert found["impressions"]["CPC"] == pytest.approx((types == "CPC").mean())


def admitted(world: World, user: pd.Series) -> list[bool]:
    """Return which ads' targeting a user meets, ad by ad; -1 and nothing admit everyone."""

    def meets(ad: pd.Series) -> bool:
        equal = [(user[c], ad[f"target_{c}"]) for c in ("gender", "region", "device")]
        low, high = ad["target_age_min"], ad["target_age_max"]
        return all(pd.isna(t) or t in (-1, u) for u, t in equal) and (
            (pd.isna(low) or user["age"] >= low) and (pd.isna(high) or user["age"] <= high)
        )

    return [meets(ad) for _, ad in world.ads.iterrows()]


def test_lists_know_their_group(world: World) -> None:
    scorers = worth.list_scorers(world, worth.spaced(world, "train", 60))
    ids = world.request_ids("test")[:30]
    user = world.request_user[ids.numpy()]
    assert torch.equal(scorers["constant"](ids)[0], scorers["constant"](ids)[-1])
    admits = [admitted(world, world.users.loc[u]) for u in user]
    scores, group = scorers["signature"](ids), worth._signatures(world)[user]
    for i in range(len(ids)):
        for j in range(i):
            same = admits[i] == admits[j]
            assert bool(group[i] == group[j]) == same
            assert torch.equal(scores[i], scores[j]) or not same
    assert len(scorers["cluster"](ids).unique(dim=0)) > 3


def card(constant: float, favourite: float) -> dict:
    return {"gain": {"constant": {"rankers@1": constant}, "favourite": {"truth@1": favourite}}}


def test_the_gate() -> None:
    worth.check_personal(card(0.2, 0.5))
    with pytest.raises(worth.NotPersonalError, match=r"at most 0\.2 of the gain .* got 0\.21"):
        worth.check_personal(card(0.21, 0.9))
    with pytest.raises(worth.NotPersonalError, match=r"at least 0\.5 of the gain .* got 0\.49"):
        worth.check_personal(card(0.0, 0.49))


def test_a_refused_world_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worth, "MOST_CONSTANT", -9.0)
    with pytest.raises(worth.NotPersonalError, match="one list of ads for everybody"):
        make_world(PRESETS["tiny"], 0, tmp_path / "w", allow_constant=False)
    assert list(tmp_path.iterdir()) == []


def test_types_are_worth_the_same_to_a_random_request(world: World) -> None:
    config = replace(PRESETS["tiny"], ad_bid_spread=0.0, advertiser_bid_spread=0.0)
    truth = read_truth(world)
    cascade = Cascade(**read_file(world.directory / "cascade.safetensors"))
    ads = world.ads.assign(bid=1.0)
    bids = market_bids(config, truth, cascade, ads, np.random.default_rng(0))
    users, days, _ = truth.affinity.shape
    rng = np.random.default_rng(1)
    user, day = (torch.from_numpy(rng.integers(0, n, 3_000)) for n in (users, days))
    ones = torch.ones_like(user)
    every = torch.arange(len(ads)).expand(3_000, -1)
    pctr, pcvr = truth.probabilities(user, day, 14 * ones, ones, ones, every, 0 * every)
    unit = {"CPM": torch.ones_like(pctr), "CPC": 1e3 * pctr, "OCPA": 1e3 * pctr * pcvr}
    for name, value in unit.items():
        of_type = (ads["bid_type"] == name).to_numpy()
        earned = value.mean(0).numpy()[of_type] * bids.to_numpy()[of_type]
        assert earned.mean() == pytest.approx(config.market_cpm, rel=0.05)


def test_the_log_earns_the_market_price() -> None:
    ads = pd.DataFrame({"bid": [60.0, 2.0, 30.0], "bid_type": ["CPM", "CPC", "OCPA"]})
    impression, click, conversion = Action.IMPRESSION, Action.CLICK, Action.CONVERSION
    events = pd.DataFrame(
        {
            "kind": [1, 1, 1, 1, 1, 0],
            "item_id": [0, 1, 1, 2, 2, 0],
            "action": [impression, impression, conversion, click, conversion, Action.VIEW],
        }
    )  # 60, 0, 2,000, 0 and 30,000 per thousand: 6,412 in the mean
    config = WorldConfig(market_cpm=75.0)
    assert price_level(config, ads, events) == pytest.approx(75 / 6_412)
    assert price_level(config, ads, events[events["kind"] == 0]) == 1.0


def test_the_gated_worlds_say_what_they_pay_for(world: World) -> None:
    gain = world.ranker_card["worth"]["gain"]
    assert {"constant", "signature", "cluster", "favourite"} <= set(gain)
    share = gain["favourite"]["truth@1"]
    assert world.ranker_card["regime"]["share"] == share


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cpm_share": 0.7}, "cpm_share and cpc_share must not exceed 1 together"),
        ({"cpc_share": -0.1}, "cpc_share must lie in"),
        ({"ad_bid_spread": -1.0}, "ad_bid_spread must be at least 0, got -1.0"),
        ({"quality_spread": float("inf")}, "quality_spread must be at least 0"),
        ({"bids_priced_on": "clicks"}, "bids_priced_on must be 'requests' or 'impressions'"),
        ({"ranker_epochs": 0}, "ranker_epochs"),
    ],
)
def test_dials_out_of_range(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PRESETS["small"], **change)


def test_the_gates_command_prints_what_it_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GPR_RL_CACHE", str(tmp_path))
    monkeypatch.setattr("simulators.make.GATED", ("tiny",))
    monkeypatch.setattr("simulators.synthetic.worth.MOST_CONSTANT", -9.0)
    monkeypatch.setattr("simulators.gate.MOST_CONSTANT", -9.0)
    monkeypatch.setattr("sys.argv", ["gate", "tiny", "--seeds", "2"])
    assert gate.main() == 1
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split()[:2] == ["world", "constant"]
    assert [row.split()[:2] for row in rows] == [["tiny", "0"], ["tiny", "1"]]
    assert all(row.endswith("refused") for row in rows)
    assert not list(tmp_path.iterdir())  # a refused world is not kept
    for words, said in (
        (["nosuch"], "error: unknown world 'nosuch'"),
        (["tiny", "--seeds", "0"], "error: --seeds must be at least 1, got 0"),
    ):
        monkeypatch.setattr("sys.argv", ["gate", *words])
        assert gate.main() == 2
        assert capsys.readouterr().err.startswith(said)
