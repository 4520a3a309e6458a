"""What a protocol shows of a world, against a loop over users."""

from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

from benchmarks.architecture.flags import Flags
from benchmarks.architecture.models import _Knowledge
from benchmarks.architecture.protocol import PROTOCOLS, make_protocol, with_history
from benchmarks.errors import UserError
from benchmarks.provenance import command
from gpr_rl.pretraining.mtp import validate_targets
from gpr_rl.schema import Action, TokenType
from simulators.make import load_world
from simulators.world import World
from simulators.world.history import DAY_S
from simulators.world.supervision import NoWindows, WindowBatches
from tests.benchmarks.command import settings_of
from tests.simulators.imported.logs_in_memory import START, make, random_log


def test_by_time_all_that_is_learned_lies_before_all_that_is_tested() -> None:
    world = load_world("tiny")
    shown = make_protocol("time", world)
    end = world.info.num_log_days * DAY_S
    assert shown.world is world
    assert (shown.until == end).all()
    for split in ("validation", "test"):
        ids = shown.held_out(split, 10**9)
        assert (world.request_time[ids] >= end).all()
        assert (world.request_action[ids] >= int(Action.CLICK)).all()
        actions = world.request_action[world.request_ids(split)]
        assert len(ids) == int((actions >= int(Action.CLICK)).sum())
        assert len(shown.held_out(split, 7)) == 7
    assert len(shown.training_ads()) == int((world.request_time < end).sum())


def test_leave_one_out_tests_the_last_event_and_validates_on_the_one_before() -> None:
    world = load_world("tiny")
    shown = make_protocol("leave-one-out", world)
    validation, test = [], []
    for user in range(len(world.users)):
        taken = [
            (int(world.request_time[r]), r)
            for r in np.flatnonzero(world.request_user == user)
            if world.request_action[r] >= int(Action.CLICK)
        ]
        taken.sort()
        if len(taken) >= 3:
            validation.append(taken[-2][1])
            test.append(taken[-1][1])
            assert shown.until[user] == taken[-2][0]
        else:
            assert shown.until[user] == world.info.num_days * DAY_S
    assert shown.validation.tolist() == validation
    assert shown.test.tolist() == test
    assert len(test) > 10


def test_nothing_left_out_is_learned() -> None:
    world = load_world("tiny")
    shown = make_protocol("leave-one-out-20", world)
    assert shown.world.info.max_tokens == shown.world.spec.max_tokens == 42
    batches = WindowBatches(shown.world, 0, 64, 12, 4, last_time=shown.until)
    left_out = set(shown.test.tolist()) | set(shown.validation.tolist())
    supervised = 0
    for step in range(20):
        windows = batches.windows(step)
        assert windows.tokens.kind.shape[1] == 42
        request = windows.request_id[windows.valid]
        supervised += len(request)
        assert not left_out & set(request.tolist())
        ids = request.numpy()
        assert (world.request_time[ids] < shown.until[world.request_user[ids]]).all()
    assert supervised > 1_000


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Of a log that knows times to two hours, so that events share seconds and clicks come late."""
    log = random_log(shown=True)
    hours = (log.frame["timestamp"] - START) // 7_200
    log.frame["timestamp"] = START + hours * 7_200
    return make(log, tmp_path_factory.mktemp("crowded") / "world")


@pytest.mark.parametrize("protocol", ["time", "leave-one-out-20"])
def test_windows_of_a_log_show_each_request_what_it_saw(crowded: World, protocol: str) -> None:
    shared = crowded.events.duplicated(["user_id", "timestamp"])
    late = crowded.events["seen"] > crowded.events["timestamp"]
    assert min(shared.sum(), late.sum()) > 100
    shown = make_protocol(protocol, crowded)
    batches = WindowBatches(shown.world, 0, 64, 6, 4, last_time=shown.until)
    prefixes = 0
    for step in range(3):
        tokens, targets = batches(step)
        validate_targets(tokens, targets)
        request_id = batches.windows(step).request_id[..., 0]
        for row, column in targets.valid[..., 0].nonzero().tolist():
            served = shown.world.request(request_id[row, column : column + 1]).tokens
            end, length = int(targets.position[row, column]) + 1, int(served.prompt_length[0])
            size = min(end, length) - 1  # the USER token apart; a window may begin later
            for name in ("kind", "codes", "action", "context"):
                window = getattr(tokens, name)[row, end - size : end]
                assert torch.equal(window, getattr(served, name)[0, length - size : length])
            prefixes += column < 5
    assert prefixes > 200
    assert set(batches.request_ids(0).tolist()) <= set(range(crowded.num_requests))


def test_knowledge_holds_what_was_seen_before_the_request(crowded: World) -> None:
    shown = make_protocol("time", crowded)
    provider = _Knowledge(shown, 4).provider
    clicks = crowded.events[crowded.events["action"] >= int(Action.CLICK)]
    checked = 0
    for number in range(0, crowded.num_requests, 5):
        user, time = int(crowded.request_user[number]), int(crowded.request_time[number])
        before = clicks[(clicks["user_id"] == user) & (clicks["timestamp"] < time)]
        if not (before["seen"] >= time).any():
            continue
        checked += 1
        past = crowded.replace(events=crowded.events[crowded.events["seen"] < time])
        of_past = _Knowledge(replace(shown, world=past), 4).provider
        asked = torch.tensor([user]), torch.tensor([time])
        assert provider.thoughts(*asked) == of_past.thoughts(*asked)
    assert checked > 10


def test_splits_without_a_click_are_named() -> None:
    world = load_world("tiny")
    nothing = replace(world.requests, action=torch.zeros_like(world.request_action))
    world = world.replace(requests=nothing)
    with pytest.raises(UserError, match="'tiny' has no click or conversion on its validation days"):
        make_protocol("time", world)
    with pytest.raises(UserError, match="no user of world 'tiny' has 3 clicks or conversions"):
        make_protocol("leave-one-out", world)


def test_days_without_a_request_are_named() -> None:
    world = load_world("tiny")
    batches = WindowBatches(world, 0, first_time=100 * DAY_S, last_time=101 * DAY_S)
    with pytest.raises(NoWindows, match=r"'tiny' has no request .* on days 100 to 101"):
        batches(0)


def test_a_world_of_few_users_has_knowledge() -> None:
    world = load_world("tiny")
    world = world.replace(events=world.events[world.events["user_id"] < 3])
    known = _Knowledge(make_protocol("time", world), 16)
    assert known.of_requests(torch.arange(4)).shape == (4, 16)


def test_a_history_holds_so_many_ads() -> None:
    world = load_world("tiny")
    seen = with_history(world, 5)
    ids = world.request_ids("test")[:50]
    tokens = seen.request(ids).tokens
    assert tokens.kind.shape[1] == 12
    assert int((tokens.kind == TokenType.ITEM).sum(1).max()) == 5
    whole = world.request(ids).tokens
    assert whole.kind.shape[1] == world.info.max_tokens
    for row in range(len(ids)):
        mine = tokens.kind[row][tokens.kind[row] > 0][1:]
        full = whole.kind[row][whole.kind[row] > 0]
        assert torch.equal(mine, full[len(full) - len(mine) :])


def test_the_command_line_names_its_protocols(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    _, settings = settings_of("architecture", "--out", tmp_path)
    assert settings.protocol == PROTOCOLS[0] == "time"
    words = ["architecture", "--out", tmp_path, "--protocol", "leave-one-out"]
    suite, settings = settings_of(*words)
    assert settings.protocol == "leave-one-out"
    assert command(suite, settings).endswith("--preset quick --protocol leave-one-out")
    assert get_args(get_type_hints(Flags)["protocol"]) == PROTOCOLS
    with pytest.raises(SystemExit):
        settings_of("architecture", "--protocol", "loo")
    assert "leave-one-out-20" in capsys.readouterr().err
