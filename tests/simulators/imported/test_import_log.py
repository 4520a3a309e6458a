"""From a log to a world, on logs whose answers are known."""

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pandas as pd
import pytest
import torch

from gpr_rl.schema import Action
from simulators.building import read_world
from simulators.day.traffic import LoggedTraffic, traffic_of
from simulators.import_log import import_log, main
from simulators.imported.config import ImportConfig
from simulators.imported.readers.log import LogFormatError, open_log
from simulators.synthetic.arr import RehearsalWorld
from simulators.world import World
from tests.simulators.imported.logs_in_memory import DAY_S, SMALL, START, make, random_log, rows

RETAIL = Path(__file__).parents[4] / "shared" / "data" / "online_retail"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make(random_log(shown=True), tmp_path_factory.mktemp("shown") / "world")


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> World:
    log = random_log(shown=False, clicks=False)
    return make(log, tmp_path_factory.mktemp("taken") / "world")


def test_every_impression_is_a_request_with_its_outcome(shown: World) -> None:
    log = random_log(shown=True).frame
    impressions = log[log["action"] == "impression"].sort_values(["timestamp", "user_id"])
    events = shown.events[shown.events["kind"] == 1]
    # clicks are at most 3,000 s after their impressions, conversions 3,600 s: none opens a request
    assert len(events) == len(impressions)
    assert (events["timestamp"] + START).tolist() == impressions["timestamp"].tolist()
    ids = shown.ads["product_id"].to_numpy()[events["item_id"]]
    assert sorted(ids) == sorted(impressions["item_id"])
    assert shown.info.has_clicks
    assert shown.info.has_conversions
    assert shown.info.simulated == ("prices", "bids", "budgets")
    assert shown.info.notes[0] == "A note of the reader."
    assert (shown.ads["bid_type"] == "OCPA").all()
    views = shown.events[shown.events["kind"] == 0]
    assert len(views) == (log["action"] == "view").sum()


def test_the_world_is_in_order_of_time_and_reads_back(shown: World) -> None:
    assert shown.directory is not None
    stored = read_world(shown.directory)
    pd.testing.assert_frame_equal(stored.events, shown.events)
    assert (stored.events["timestamp"].diff().dropna() >= 0).all()
    ids = shown.request_ids("test")
    assert torch.equal(stored.outcome_all(ids).ecpm, shown.outcome_all(ids).ecpm)
    days = [shown.request_time[shown.request_ids(s).numpy()] // DAY_S for s in ("train", "test")]
    assert days[0].max() < shown.info.num_log_days < days[1].min()
    assert days[1].max() == 11
    legal = shown.eligible(torch.arange(shown.num_requests))
    assert legal.gather(1, shown.request_ad[:, None]).all()


@pytest.mark.parametrize("shows", [True, False])
def test_later_rows_change_nothing_before(shows: bool, tmp_path: Path) -> None:
    days = replace(SMALL, test_days=2, validation_days=1, train_days=4, calibration_days=2)
    log = random_log(shown=shows)
    until = 11 * DAY_S + 40_000  # on the last day
    stays = log.frame["timestamp"] < START + until
    # each item occurs once more at the end of the log: until when an ad is legal looks ahead
    ends = rows(*((99, item, 12 * DAY_S - 1, "view") for item in range(24)))
    whole = make(replace(log, frame=pd.concat([log.frame, ends])), tmp_path / "whole", days)
    cut = make(replace(log, frame=pd.concat([log.frame[stays], ends])), tmp_path / "cut", days)
    assert (~stays).sum() > 20
    pd.testing.assert_frame_equal(cut.ads, whole.ads)
    assert torch.equal(cut.item_embedding, whole.item_embedding)
    assert torch.equal(cut.item_codes, whole.item_codes)
    first = np.flatnonzero(whole.request_time < until)
    ids = torch.from_numpy(first)
    assert torch.equal(cut.request_ad[ids], whole.request_ad[ids])
    assert (cut.request_time[first] == whole.request_time[first]).all()
    # an exposure is part of the past from its outcome on, and here some outcomes were cut off
    awaited = whole.events.get("seen", whole.events["timestamp"]) >= until
    awaited = whole.events[awaited & (whole.events["timestamp"] < until)]
    assert len(awaited) > 0 or not shows
    known = ~np.isin(whole.request_user, awaited["user_id"])[first]
    same = (cut.request_action[ids] == whole.request_action[ids]).numpy()
    assert same[~np.isin(first, awaited["request_id"])].all()
    ids = ids[torch.from_numpy(known & (whole.request_time[first] >= 11 * DAY_S))]
    assert len(ids) > 20
    for one, other in zip(whole.features(ids), cut.features(ids), strict=True):
        for name in ("recent_item", "recent_known", "recent_action", "context", "groups"):
            if hasattr(one, name):
                assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert (whole.request(ids).tokens == cut.request(ids).tokens).all()
    assert torch.equal(whole.request(ids).popularity, cut.request(ids).popularity)
    assert torch.equal(whole.outcome_all(ids).ecpm, cut.outcome_all(ids).ecpm)


def test_an_outcome_is_not_known_before_it_happens(tmp_path: Path) -> None:
    log = random_log(shown=True)
    # user 500 sees item 3, then item 4, and clicks item 3 after that, on the last day
    at = 11 * DAY_S + 1_000
    extra = rows(
        (500, 3, at, "impression"),
        (500, 4, at + 10, "impression"),
        (500, 3, at + 20, "click"),
        (500, 5, at + 30, "impression"),
    )
    world = make(replace(log, frame=pd.concat([log.frame, extra])), tmp_path / "w")
    user = int(world.users["user_id"][world.users["source_id"] == 500].iloc[0])
    ids = torch.from_numpy(np.flatnonzero(world.request_user == user))
    assert world.request_action[ids].tolist() == [
        Action.CLICK,
        Action.IMPRESSION,
        Action.IMPRESSION,
    ]
    inputs, _ = world.features(ids)
    assert inputs.recent_known.sum(-1).tolist() == [0, 0, 1]
    clicked = (world.request(ids).tokens.action == Action.CLICK).sum(-1)
    assert clicked.tolist() == [0, 0, 1]


def test_exposures_of_a_log_of_successes(taken: World) -> None:
    log = random_log(shown=False, clicks=False).frame
    info = taken.info
    assert info.simulated == ("impressions", "ad split", "prices", "bids", "budgets")
    assert not info.has_clicks
    bought = log[log["action"] == "conversion"]
    is_ad = bought["item_id"].isin(taken.ads["product_id"])
    action = taken.request_action
    assert int((action == Action.CONVERSION).sum()) == is_ad.sum()
    assert set(action.tolist()) == {Action.IMPRESSION, Action.CONVERSION}
    organic = taken.events[taken.events["kind"] == 0]
    assert len(organic) == (log["action"] == "view").sum() + (~is_ad).sum()
    # three exposures without success for each with one, of all that could be shown
    assert float((action == Action.IMPRESSION).sum() / is_ad.sum()) == pytest.approx(3, rel=0.1)
    pairs = taken.events[taken.events["kind"] == 1].duplicated(["user_id", "timestamp"])
    assert not pairs.any()
    q, rate = info.config["unbought_share"], info.config["unsampled_rate"]
    here = float((action == Action.CONVERSION).float().mean())
    assert rate == pytest.approx(here / (here + (1 - here) / q))
    assert info.config["logit_correction"] == pytest.approx(np.log(q))
    assert torch.equal(taken.logged["pctr"], torch.ones(taken.num_requests))


def test_rows_that_are_whole_exposures_are_not_attributed(tmp_path: Path) -> None:
    log = random_log(shown=True, conversions=False)
    answered = np.random.default_rng(0).random(len(log.frame)) < 0.3
    action = np.where(answered, "click", "impression")
    frame = log.frame.assign(action=action).drop_duplicates(["user_id", "item_id", "timestamp"])
    world = make(replace(log, frame=frame, one_row_per_exposure=True), tmp_path / "w")
    assert world.num_requests == len(frame)
    clicks = (frame["action"] == "click").sum()
    assert int((world.request_action == Action.CLICK).sum()) == clicks
    assert "seen" not in world.events


def test_which_items_are_ads_is_drawn_by_their_ids(taken: World, tmp_path: Path) -> None:
    log = random_log(shown=False, clicks=False)
    assert 5 < len(taken.ads) < 19
    half = replace(log, frame=log.frame[log.frame["item_id"] % 2 == 0], item_frame=log.item_frame)
    other = make(half, tmp_path / "half")
    even = taken.ads["product_id"][taken.ads["product_id"] % 2 == 0]
    assert other.ads["product_id"].tolist() == even.tolist()


def test_the_item_table_says_which_items_are_ads(tmp_path: Path) -> None:
    log = random_log(shown=True)
    items = log.item_frame.assign(is_ad=np.arange(24) < 8)
    world = make(replace(log, item_frame=items), tmp_path / "w")
    assert world.ads["product_id"].tolist() == list(range(8))
    impressions = log.frame[log.frame["action"] == "impression"]
    assert world.num_requests == (impressions["item_id"] < 8).sum()
    # what users took of other items is organic
    assert set(world.organic["product_id"]) == set(range(24))
    assert world.info.simulated == ("prices", "bids", "budgets")


def test_offers_say_what_could_be_shown(tmp_path: Path) -> None:
    log = random_log(shown=False, clicks=False)
    frame = log.frame.assign(place=[f"shop {u % 3}" for u in log.frame["user_id"]])
    offered = pd.DataFrame([(f"shop {i % 3}", i) for i in range(24)], columns=["place", "item_id"])
    log = replace(log, frame=frame, offer_frames=(offered[:10], offered[10:], offered[:3]))
    world = make(log, tmp_path / "w")
    assert world.info.simulated == ("impressions", "prices", "bids", "budgets")
    assert world.info.context_cardinalities[0] == 4
    user = world.users["source_id"].to_numpy()[world.request_user]
    legal = world.eligible(torch.arange(world.num_requests)).numpy()
    product = world.ads["product_id"].to_numpy()
    np.testing.assert_array_equal(legal, product % 3 == user[:, None] % 3)
    bought = log.frame[log.frame["action"] == "conversion"]
    at_offer = bought["user_id"] % 3 == bought["item_id"] % 3
    assert int((world.request_action == Action.CONVERSION).sum()) == at_offer.sum()


def test_clicks_alone_make_a_world_of_clicks(tmp_path: Path) -> None:
    world = make(random_log(shown=True, conversions=False), tmp_path / "w")
    assert not world.info.has_conversions
    assert (world.ads["bid_type"] == "CPC").all()
    ids = world.request_ids("test")[:8]
    outcome = read_world(tmp_path / "w").outcome_all(ids)
    assert (outcome.pcvr == 0).all()
    torch.testing.assert_close(outcome.ecpm, 1000 * outcome.pctr * world.bid)
    assert float(world.alpha[1]) == 0.0
    assert set(world.ranker_card) == {"pctr"}


def test_what_the_log_says_of_ads_is_taken_over(tmp_path: Path) -> None:
    log = random_log(shown=True)
    frame = log.frame.assign(price=log.frame["item_id"] + 1.0, bid=np.nan)
    frame.loc[frame["item_id"] == 4, "bid"] = 9.0
    frame.loc[frame["timestamp"] >= START + 10 * DAY_S, ["price", "bid"]] = 1e6  # held out
    items = log.item_frame.assign(bid=2.0, bid_type="CPC", budget=np.arange(24) + 50.0)
    items.loc[items["item_id"] == 5, ["bid_type", "budget"]] = ["CPM", np.nan]
    config = replace(SMALL, test_days=1, validation_days=1)
    ads = make(replace(log, frame=frame, item_frame=items), tmp_path / "w", config)
    assert ads.info.simulated == ()
    assert ads.ads["price"].tolist() == [i + 1.0 for i in range(24)]
    assert ads.ads["bid"].tolist() == [9.0 if i == 4 else 2.0 for i in range(24)]
    assert ads.ads["bid_type"][5] == "CPM"
    assert ads.ads["budget"].isna().tolist() == [i == 5 for i in range(24)]


def test_users_and_sizes(tmp_path: Path) -> None:
    log = random_log(shown=True)
    known = pd.DataFrame(
        {
            "user_id": [29, 0, 1, 2, 777],
            "age": [None, 31.0, 60.0, 18.0, 40.0],
            "gender": ["f", "m", None, "f", "x"],
            "city": ["b", "b", "a", None, "c"],
        }
    )
    config = replace(SMALL, max_ads=10, max_organic=7)
    world = make(replace(log, user_frame=known), tmp_path / "w", config)
    users = world.users.set_index("source_id")
    assert len(users) == 30
    assert users["age"][[0, 1, 2, 3, 29]].tolist() == [31, 60, 18, 0, 0]
    assert users["gender"][[29, 0, 1, 2]].tolist() == [1, 2, 0, 1]  # null, f, m
    assert users["city"][[29, 0, 1, 2]].tolist() == [2, 2, 1, 0]
    assert world.info.user_columns == ("age_bucket", "gender", "city", "activity_group")
    assert (len(world.ads), len(world.organic)) == (10, 7)
    logged = log.frame[log.frame["timestamp"] < START + world.info.num_log_days * DAY_S]
    count = logged[logged["action"] == "impression"]["item_id"].value_counts()
    assert set(world.ads["product_id"]) == set(count.index[:10])


def test_repeats_are_seen_where_they_are_frequent(shown: World, tmp_path: Path) -> None:
    found = shown.info.config["repeat_share_found"]
    assert 0.05 < found < 1
    assert shown.info.ranker_config["use_repeats"]
    config = replace(SMALL, repeat_share=float(found) + 0.01)
    other = make(random_log(shown=True), tmp_path / "w", config)
    assert not other.info.ranker_config["use_repeats"]


def test_an_item_has_one_embedding_as_ad_and_as_organic_item(shown: World) -> None:
    matrix = random_log(shown=True).embedding
    assert matrix is not None
    num_ads, products = len(shown.ads), shown.organic["product_id"].to_numpy()
    embedding = shown.item_embedding.numpy()
    np.testing.assert_array_equal(embedding[:num_ads, :5], matrix)  # as it was given
    np.testing.assert_array_equal(embedding[num_ads:], embedding[products])
    mean_square = (embedding[:num_ads] ** 2).mean(0)
    assert mean_square[5:].mean() == pytest.approx(mean_square[:5].mean(), rel=1e-3)


def test_bad_and_duplicate_rows_are_listed_and_counted(tmp_path: Path) -> None:
    log = random_log(shown=True)
    wrong = pd.concat([log.frame[:3], rows((1, 77, 5, "click"), (1, 2, 5, "like"))])
    world = make(replace(log, frame=pd.concat([log.frame, wrong])), tmp_path / "w")
    listed = pd.read_parquet(tmp_path / "w" / "rejected.parquet")
    assert len(listed) == 5
    assert listed["line"].tolist() == [len(log.frame) + 5, len(log.frame) + 6] + [
        len(log.frame) + i for i in (2, 3, 4)
    ]
    config = world.info.config
    assert (config["num_rejected"], config["num_duplicates"]) == (2, 3)
    assert not (tmp_path / "w-rejected.parquet").exists()


def test_a_log_with_too_many_bad_rows_is_refused(tmp_path: Path) -> None:
    log = random_log(shown=True)
    wrong = log.frame.assign(item_id=np.where(log.frame.index % 10 == 0, 99, log.frame["item_id"]))
    with pytest.raises(LogFormatError, match="rows are bad"):
        make(replace(log, frame=wrong), tmp_path / "w")
    assert [path.name for path in tmp_path.iterdir()] == ["w-rejected.parquet"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frame": rows((1, 2, 0, "view"), (1, 2, 9 * DAY_S, "view"))}, "no click and no conv"),
        ({"frame": rows((1, 2, 0, "click"), (1, 2, 5, "click"))}, "1 days are too few"),
        ({"item_frame": {"bid_type": "OCPA"}}, "OCPA needs the action 'conversion'"),
        ({"item_frame": {"is_ad": False}}, "no exposure of an ad"),
    ],
)
def test_refusals(change: dict, message: str, tmp_path: Path) -> None:
    log = random_log(shown=True, conversions=False, num_rows=600)
    if "item_frame" in change:
        log = replace(log, item_frame=log.item_frame.assign(**change["item_frame"]))
    else:
        log = replace(log, **change)
    with pytest.raises(ValueError, match=message):
        make(log, tmp_path / "w")
    assert not list(tmp_path.iterdir())


def test_a_world_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        make(random_log(shown=True), tmp_path / "w")


def _digests(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != "world.json"  # it has the directory's name
    }


@pytest.mark.parametrize("shows", [True, False])
def test_the_same_seed_makes_the_same_files(shows: bool, tmp_path: Path) -> None:
    log = random_log(shown=shows)
    one, same, other = (
        make(log, tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert _digests(tmp_path / "a") == _digests(tmp_path / "b")
    assert one.ads["bid"].tolist() == same.ads["bid"].tolist() != other.ads["bid"].tolist()
    shuffled = replace(log, frame=log.frame.sample(frac=1, random_state=3), piece_rows=64)
    make(shuffled, tmp_path / "d")
    for name in ("events", "ads", "users", "organic"):
        pd.testing.assert_frame_equal(
            *(pd.read_parquet(tmp_path / d / f"{name}.parquet") for d in "ad")
        )


def _write(folder: Path) -> None:
    log = random_log(shown=True, num_rows=1_000)
    folder.mkdir()
    log.frame.to_csv(folder / "interactions.csv", index=False)
    words = [f"word{i} kind{i % 6}" for i in range(24)]
    log.item_frame.assign(name=words).to_csv(folder / "items.csv", index=False)


def test_the_command_line_makes_a_world_and_says_what_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(tmp_path / "log")
    log, out = str(tmp_path / "log"), str(tmp_path / "world")

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["import_log", *arguments])
        return main()

    assert run(log, "--out", out, "--num-codes", "4", "--text-dim", "3") == 0
    said = capsys.readouterr()
    assert "simulated: prices, bids, budgets" in said.out
    assert "0 rejected and 0 duplicate rows" in said.out
    assert "rows read: 0 bad" in said.err
    assert json.loads((tmp_path / "world" / "world.json").read_text())["source"] == "log"
    for arguments, message in (
        ((log, "--out", out), "exists already"),
        ((str(tmp_path / "no"), "--out", out + "2"), "is missing"),
        ((log, "--out", out + "2", "--format", "tape"), "unknown format 'tape': choose one of"),
        ((log, "--out", out + "2", "--seed", "-1"), "--seed must be at least 0"),
        ((log, "--out", out + "2", "--test-days", "90"), "too few for 90 test days"),
    ):
        assert run(*arguments) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ")
        assert message in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "world"]


@pytest.mark.parametrize(
    ("field", "value"), [("ad_share", 1.5), ("max_users", 0), ("num_levels", 1), ("max_bad", -0.1)]
)
def test_a_wrong_option_is_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{field} must .*, got {value}"):
        ImportConfig(**{field: value})


@pytest.mark.slow
@pytest.mark.skipif(not RETAIL.exists(), reason="needs the shop's data")
def test_a_shop_of_purchases(tmp_path: Path) -> None:

    config = ImportConfig(max_users=600, max_ads=400, max_organic=400, num_codes=16)
    source = open_log(RETAIL, "generic")
    world = import_log(source, config, tmp_path / "w", lambda line: None)
    raw = pd.read_parquet(RETAIL / "interactions.parquet")
    assert world.info.config["num_rows"] == len(raw)
    assert (
        world.info.config["num_duplicates"]
        == raw.duplicated(["user_id", "item_id", "timestamp"]).sum()
    )
    bought = set(zip(raw["user_id"], raw["item_id"], strict=True))
    user = world.users["source_id"].to_numpy()[world.request_user]
    product = world.ads["product_id"].to_numpy()[world.request_ad.numpy()]
    conversion = (world.request_action == Action.CONVERSION).numpy()
    assert all(pair in bought for pair in zip(user[conversion], product[conversion], strict=True))
    assert world.ranker_card["pcvr"]["auc"] > 0.7
    assert world.info.config["first_day"] == "2010-12-01"


@pytest.fixture(scope="module")
def ads_alone(tmp_path_factory: pytest.TempPathFactory) -> World:
    log = random_log(shown=True)
    log = replace(log, frame=log.frame[log.frame["action"] != "view"])
    return make(log, tmp_path_factory.mktemp("alone") / "world")


@pytest.mark.parametrize("kind", ["shown", "taken", "ads_alone"])
def test_days_are_played_as_logged(kind: str, request: pytest.FixtureRequest) -> None:
    world = request.getfixturevalue(kind)
    assert isinstance(traffic_of(world), LoggedTraffic)
    env = gymnasium.make("envs:gpr_rl/AdDay-v0", world=world, num_requests=20)
    _, info = env.reset(seed=0)
    over = False
    while not over:
        action = int(np.flatnonzero(info["action_mask"])[0])
        _, _, _, over, info = env.step(action)
    with pytest.raises(ValueError, match="comes from a log"):
        RehearsalWorld(world, 0)
