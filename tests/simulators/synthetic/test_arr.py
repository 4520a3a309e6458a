"""Rehearsed requests: when they come, what they know, and that logged ones stay as they are."""

import numpy as np
import pytest
import torch

from agents.train_config import TrainConfig
from agents.training.schedule import make_schedule
from simulators.make import load_world
from simulators.synthetic.arr import RehearsalWorld, peak_hours, rehearsal_times
from simulators.synthetic.logs import HOUR_SHARE
from simulators.world import World
from simulators.world.history import DAY_S

HOUR = 3_600


@pytest.fixture(scope="module")
def world() -> World:
    return load_world("tiny", seed=0)


@pytest.fixture(scope="module")
def rehearsal(world: World) -> RehearsalWorld:
    return RehearsalWorld(world, seed=3)


def test_active_users_ask_every_two_hours_at_peak_and_every_four_otherwise() -> None:
    assert peak_hours().tolist() == [bool(x > np.mean(HOUR_SHARE)) for x in HOUR_SHARE]
    rate = np.array([10.0, 30.0, 5.0])
    active = np.array([False, True, False])
    start, stop = 3 * DAY_S, 5 * DAY_S
    user, time = rehearsal_times(rate, active, start, stop, seed=0)
    assert ((time >= start) & (time < stop)).all()
    mine = time[user == 1]
    assert (np.diff(mine) > 0).all()
    # A walk over minutes: each adds a minute over the interval that is in force.
    peak = peak_hours().tolist()
    clock, ticks = 0.0, []
    for minute in range((stop - start) // 60):
        before = clock
        hour = (start + 60 * minute) % DAY_S // HOUR
        clock += (1 / 60) / (2.0 if peak[hour] else 4.0)
        ticks.append((before, clock))
    grid = np.array([t for _, t in ticks])
    reached = grid[(mine - start) // 60]
    np.testing.assert_allclose(np.diff(reached), 1.0, atol=0.02)
    total = clock
    assert abs(len(mine) - total) <= 1
    assert abs((user == 0).sum() - total / 3) <= 1
    assert abs((user == 2).sum() - total / 6) <= 1


def test_logged_requests_are_as_they_were(world: World, rehearsal: RehearsalWorld) -> None:
    ids = world.request_ids("train")[::977]
    one, other = world.request(ids), rehearsal.request(ids)
    for name in ("kind", "codes", "preference", "context"):
        assert torch.equal(getattr(one.tokens, name), getattr(other.tokens, name)), name
    assert torch.equal(one.popularity, other.popularity)
    ads = torch.arange(5).expand(len(ids), -1)
    torch.testing.assert_close(
        world.outcome(ids, ads).ecpm, rehearsal.outcome(ids, ads).ecpm, rtol=1e-6, atol=0
    )
    assert torch.equal(world.eligible(ids), rehearsal.eligible(ids))
    for split in ("train", "validation", "test"):
        assert torch.equal(world.request_ids(split), rehearsal.request_ids(split))


def test_rehearsed_requests_lie_in_the_last_logged_days(
    world: World, rehearsal: RehearsalWorld
) -> None:
    ids = rehearsal.rehearsal_ids()
    assert ids[0] == world.num_requests
    day = rehearsal.request(ids).timestamp // DAY_S
    last = world.info.num_log_days
    assert set(day.tolist()) == {last - 2, last - 1}
    assert rehearsal.eligible(ids[:64]).any(-1).all()


def test_a_rehearsed_request_knows_nothing_of_its_own_time_or_later(world: World) -> None:
    before = RehearsalWorld(world, seed=3)
    ids = before.rehearsal_ids()[::41]
    ads = torch.arange(7).expand(len(ids), -1)
    times = before.request(ids).timestamp
    for row in (0, len(ids) // 2, len(ids) - 1):
        cut = int(times[row])
        later = world.events["timestamp"] >= cut
        events = world.events.copy()
        # Every later event turns into a conversion on ad 0.
        events.loc[later, "action"] = 4
        events.loc[later & (events["kind"] == 1), "item_id"] = 0
        after = RehearsalWorld(world.replace(events=events), seed=3)
        one = ids[row : row + 1]
        here, there = before.request(one), after.request(one)
        assert int(there.timestamp) == cut
        assert torch.equal(here.tokens.codes, there.tokens.codes)
        assert torch.equal(here.tokens.action, there.tokens.action)
        assert torch.equal(here.popularity, there.popularity)
        assert torch.equal(before.outcome(one, ads[:1]).ecpm, after.outcome(one, ads[:1]).ecpm)


def test_very_active_users_reuse_the_user_token_of_their_last_request(
    world: World, rehearsal: RehearsalWorld
) -> None:
    group = torch.tensor(world.users["activity_group"].to_numpy())
    ids = rehearsal.rehearsal_ids()
    request = rehearsal.request(ids)
    active = group[request.user_id] == group.max()
    fresh = ~active
    assert torch.equal(request.tokens.preference[fresh], request.popularity[fresh])
    for row in active.nonzero()[::23, 0].tolist():
        user, time = int(request.user_id[row]), int(request.timestamp[row])
        own = np.flatnonzero((world.request_user == user) & (world.request_time < time))
        last = world.request(torch.tensor([own[-1]]))
        assert torch.equal(request.tokens.preference[row], last.tokens.preference[0])
    # Some users clicked in between: the reused token is older than the request.
    assert not torch.equal(request.tokens.preference[active], request.popularity[active])


def test_batches_mix_and_do_not_matter(world: World, rehearsal: RehearsalWorld) -> None:
    mixed = torch.stack(
        [world.request_ids("train")[:6], rehearsal.rehearsal_ids()[:6]], 1
    ).flatten()
    whole = rehearsal.request(mixed)
    for i in range(0, 12, 5):
        alone = rehearsal.request(mixed[i : i + 1])
        assert torch.equal(whole.tokens.codes[i], alone.tokens.codes[0])
        assert torch.equal(whole.tokens.preference[i], alone.tokens.preference[0])
        assert torch.equal(rehearsal.eligible(mixed)[i], rehearsal.eligible(mixed[i : i + 1])[0])


def test_a_schedule_draws_the_stated_share(world: World, rehearsal: RehearsalWorld) -> None:
    config = TrainConfig(num_requests=16, arr_share=0.25)
    schedule = make_schedule(rehearsal, config, 0)
    seen = [schedule(step) for step in range(5)]
    for batch in seen:
        assert (batch >= world.num_requests).sum() == 4
        assert len(batch) == 16
    assert len(torch.cat(seen).unique()) == 80
    with pytest.raises(ValueError, match="arr_share must be 0 in a world without rehearsed"):
        make_schedule(world, config, 0)
