"""The pessimistic ensemble: its members, its arithmetic, its file."""

import itertools
from pathlib import Path

import pytest
import torch

from simulators.make import load_world
from simulators.rankers.ensemble import PessimisticRankers, pessimistic
from simulators.rankers.training import RankerTraining
from simulators.rewards.outcome import ecpm
from simulators.world import World

TRAINING = RankerTraining(num_epochs=1)


@pytest.fixture(scope="module")
def world() -> World:
    return load_world("tiny", seed=0)


@pytest.fixture(scope="module")
def guarded(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Path]:
    path = tmp_path_factory.mktemp("ensemble") / "members.safetensors"
    return pessimistic(world, seed=1, num_rankers=3, training=TRAINING, path=path), path


def test_the_outcome_is_the_mean_less_the_spread(world: World, guarded: tuple[World, Path]) -> None:
    low, _ = guarded
    ids = world.request_ids("test")[:20]
    ads = torch.arange(30).expand(len(ids), -1)
    inputs, past = world.features(ids)
    assert isinstance(low.rankers, PessimisticRankers)
    said = [member(inputs, past, ads) for member in low.rankers.members]
    for index, name in enumerate(("pctr", "pcvr")):
        parts = torch.stack([pair[index] for pair in said]).double()
        mean = parts.sum(0) / 3
        spread = ((parts - mean) ** 2).sum(0).div(3).sqrt()
        assert (spread > 0).float().mean() > 0.99  # the members differ
        expected = (mean - spread).clamp_min(0.0)
        found = getattr(low.outcome(ids, ads), name).double()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    outcome = low.outcome(ids, ads)
    torch.testing.assert_close(
        outcome.ecpm, ecpm(outcome.pctr, outcome.pcvr, outcome.bid, outcome.bid_type)
    )
    # The world itself keeps its rankers.
    assert not isinstance(world.rankers, PessimisticRankers)
    assert low.trie is world.trie


def test_more_pessimism_is_lower_and_none_is_the_mean(
    world: World, guarded: tuple[World, Path]
) -> None:
    _, path = guarded
    ids = world.request_ids("test")[:20]
    ads = torch.arange(30).expand(len(ids), -1)
    values = [
        pessimistic(world, seed=1, num_rankers=3, pessimism=p, path=path).outcome(ids, ads).pctr
        for p in (0.0, 0.5, 2.0, 50.0)
    ]
    for more, less in itertools.pairwise(values):
        assert (less <= more + 1e-9).all()
        assert (less < more).any()
    assert values[-1].min() == 0.0


def test_a_stored_ensemble_is_read_not_trained(
    world: World, guarded: tuple[World, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    low, path = guarded

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("simulators.rankers.training.fit_rankers", never)
    again = pessimistic(world, seed=1, num_rankers=3, path=path)
    ids = world.request_ids("test")[:4]
    ads = torch.arange(9).expand(4, -1)
    assert torch.equal(again.outcome(ids, ads).pctr, low.outcome(ids, ads).pctr)


def test_bad_arguments_are_named(world: World, guarded: tuple[World, Path]) -> None:
    members = guarded[0].rankers.members
    with pytest.raises(ValueError, match="at least 2 rankers, got 1"):
        PessimisticRankers(list(members)[:1], 1.0)
    with pytest.raises(ValueError, match="pessimism must be at least 0, got -1"):
        PessimisticRankers(list(members), -1.0)
