"""Arrivals, what becomes of them, and a service under load; the clock decides nothing here."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.warm_start import build_model
from benchmarks.decoding import arrivals, load
from benchmarks.decoding.arrivals import (
    Ledger,
    Traffic,
    drive,
    phase_figures,
    poisson_traffic,
    recovery_s,
)
from benchmarks.decoding.load import LoadBench, is_same_list, measure_load
from benchmarks.decoding.policies import Trained, policy_file
from benchmarks.decoding.presets import DecodingPreset, LoadSizes
from benchmarks.decoding.timings import read_observed
from benchmarks.measure.memory import can_measure
from benchmarks.runs.results import check_results, under
from gpr_rl.decoding import beam_search
from gpr_rl.models import HHDConfig
from gpr_rl.policy import save_policy
from gpr_rl.schema import Candidates
from simulators.world import World

LITTLE = DecodingPreset(
    world="tiny",
    num_repeats=1,
    limit_s=0.0,
    load=LoadSizes(
        loads=(0.5, 1.5), phase_s=0.2, rest_s=0.1, soak_s=0.1, max_batch=4, num_candidates=5,
        width=12, min_width=5, num_requests=6, num_checked=3,
    ),
)  # fmt: skip


class Busy(RuntimeError):
    """A refusal."""


class Answer(Future):
    width = 0


def answered(ad_id: int, width: int) -> Answer:
    answer = Answer()
    answer.width = width
    answer.set_result(candidates(ad_id))
    return answer


def candidates(ad_id: int) -> Candidates:
    return Candidates(
        codes=torch.zeros(1, 2, 3, dtype=torch.int64),
        log_prob=torch.zeros(1, 2, 3),
        value=torch.zeros(1, 2, 3),
        ad_id=torch.tensor([[ad_id, 0]]),
        valid=torch.ones(1, 2, dtype=torch.bool),
        batch_size=[1],
    )


class DirectService:
    """Searches at once with a beam that every second request gets narrower; refuses the fifth."""

    def __init__(self, policy: Any, world: World, sizes: LoadSizes, width: int) -> None:
        self._policy, self._world, self._widths = policy, world, (width, sizes.min_width)
        self._number = sizes.num_candidates
        self.count, self.closed = 0, False

    def recommend(self, request: Any) -> Answer:
        self.count += 1
        if self.count % 5 == 0:
            raise Busy
        answer = Answer()
        answer.width = self._widths[self.count % 2]
        eligible = self._world.eligible(request.request_id)
        found = beam_search(self._policy, request, self._world.trie, answer.width, eligible)
        answer.set_result(_cut(found, self._number))
        return answer

    def close(self) -> None:
        self.closed = True


def _cut(found: Candidates, number: int) -> Candidates:
    parts = {name: x[:, :number] for name, x in found.items()}
    return Candidates(**parts, batch_size=found.batch_size)


@pytest.fixture(scope="module")
def out(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    policy_file(folder).parent.mkdir()
    model = build_model(world, HHDConfig(dim=16, num_hsd_layers=1), seed=3)
    with torch.no_grad():
        model.ptd.output.mul_(20.0)  # far from uniform
    save_policy(model, policy_file(folder))
    return folder


def test_arrivals_are_seeded() -> None:
    one, again, other = (poisson_traffic(50.0, 4.0, 7, seed) for seed in (1, 1, 2))
    assert np.array_equal(one.due_s, again.due_s)
    assert np.array_equal(one.request, again.request)
    assert len(one.due_s) != len(other.due_s) or not np.array_equal(one.due_s, other.due_s)


def test_arrivals_are_a_poisson_process() -> None:
    number = [len(poisson_traffic(100.0, 2.0, 7, seed).due_s) for seed in range(400)]
    # mean and variance of the number are 200; the mean of 400 has a standard deviation of .71, the
    # variance of 400 Poisson numbers of about 200 sqrt(2 / 400) = 14
    assert abs(np.mean(number) - 200) < 4 * 0.71
    assert abs(np.var(number) - 200) < 4 * 14.2
    traffic = poisson_traffic(2_000.0, 5.0, 7, seed=0)
    assert (np.diff(traffic.due_s) >= 0).all()
    assert traffic.due_s[0] >= 0
    assert traffic.due_s[-1] < 5.0
    gaps = np.diff(traffic.due_s)  # exponential: mean and standard deviation are 1 / rate
    assert np.mean(gaps) == pytest.approx(1 / 2_000, rel=0.05)
    assert np.std(gaps) == pytest.approx(1 / 2_000, rel=0.05)
    share = np.bincount(traffic.request, minlength=7) / len(traffic.request)
    assert share == pytest.approx(np.full(7, 1 / 7), abs=0.02)


def test_traffic_goes_on() -> None:
    joined = Traffic(np.array([0.5]), np.array([3])).then(
        Traffic(np.array([0.1, 0.2]), np.array([1, 2])), after_s=1.0
    )
    assert joined.due_s.tolist() == [0.5, 1.1, 1.2]
    assert joined.request.tolist() == [3, 1, 2]


def _ledger(rows: list[tuple[float, float, int]]) -> Ledger:
    """Rows are due, answered (NaN: refused) and width."""
    due, done, width = (np.array(column) for column in zip(*rows, strict=True))
    ledger = Ledger(Traffic(due, np.zeros(len(due), dtype=np.int64)), 0)
    ledger.answered_s[:], ledger.width[:] = done, width
    return ledger


def test_figures_of_a_phase_by_hand() -> None:
    nan = float("nan")
    ledger = _ledger(
        [(0.0, 0.1, 8), (0.5, 0.7, 8), (1.0, 1.3, 4), (1.5, nan, 0), (1.9, 2.3, 4), (2.5, 2.6, 8)]
    )
    found = phase_figures(ledger, 2.0)
    # Five are due within two seconds, three of these are answered by then, one later, one refused.
    assert found["offered_per_s"] == 2.5
    assert found["answered_per_s"] == 1.5
    # 100, 200, 300 and 400 ms
    assert found["p50_ms"] == pytest.approx(250)
    assert found["p99_ms"] == pytest.approx(397)
    assert ledger.refused.tolist() == [False, False, False, True, False, False]
    assert set(phase_figures(_ledger([(0.5, nan, 0)]), 1.0)) == {"offered_per_s", "answered_per_s"}


def test_recovery_by_hand() -> None:
    nan = float("nan")
    overload = [(0.5, nan, 0), (0.9, 1.2, 4)]
    rest = [(1.1, 1.3, 4), (1.4, nan, 0), (1.6, 1.7, 8)]
    assert recovery_s(_ledger([*overload, *rest]), 1.0, 8) == pytest.approx(0.4)
    assert recovery_s(_ledger([*overload, (1.1, 1.2, 8)]), 1.0, 8) == 0.0
    assert recovery_s(_ledger([*overload, *rest[:2]]), 1.0, 8) is None
    assert recovery_s(_ledger(overload), 1.0, 8) is None


def _recommender(*what: Callable[[], Answer]) -> Callable[[Any], Answer]:
    calls = iter(what)
    return lambda request: next(calls)()


def _refuse() -> Answer:
    raise Busy


def test_every_arrival_is_noted() -> None:
    traffic = Traffic(np.array([0.0, 0.0, 0.001]), np.array([2, 0, 1]))
    ledger, asked = Ledger(traffic, num_kept=2), []
    recommend = _recommender(lambda: answered(7, 4), _refuse, lambda: answered(9, 8))

    def asking(request: str) -> Answer:
        asked.append(request)
        return recommend(request)

    drive(asking, ["a", "b", "c"], ledger, Busy)
    assert asked == ["c", "a", "b"]
    assert ledger.refused.tolist() == [False, True, False]
    assert ledger.first_ad.tolist() == [7, -1, 9]
    assert ledger.width.tolist() == [4, 0, 8]
    assert {index: width for index, (_, width) in ledger.kept.items()} == {0: 4, 2: 8}
    assert (ledger.latency_ms() >= 0).all()


def test_a_slow_service_does_not_slow_arrivals() -> None:
    """The future is done long after its arrival; the second request goes out before that."""
    traffic = Traffic(np.array([0.0, 0.01]), np.array([0, 0]))
    ledger, first = Ledger(traffic, 0), Answer()
    first.width = 8

    def second() -> Answer:
        first.set_result(candidates(3))
        return answered(5, 8)

    drive(_recommender(lambda: first, second), ["x"], ledger, Busy)
    assert ledger.first_ad.tolist() == [3, 5]
    assert ledger.latency_ms()[0] >= 9  # it waited for the second


def test_waiting_before_it_is_handed_over_counts() -> None:
    traffic = Traffic(np.array([0.0, 0.0]), np.array([0, 0]))
    ledger = Ledger(traffic, 0)

    def slow() -> Answer:
        time.sleep(0.02)
        return answered(1, 8)

    drive(_recommender(slow, lambda: answered(2, 8)), ["x"], ledger, Busy)
    assert ledger.latency_ms().min() >= 19


def test_errors_of_answers_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    traffic, failed = Traffic(np.array([0.0]), np.array([0])), Answer()
    failed.set_exception(ZeroDivisionError("of a search"))
    with pytest.raises(ZeroDivisionError, match="of a search"):
        drive(_recommender(lambda: failed), ["x"], Ledger(traffic, 0), Busy)
    monkeypatch.setattr(arrivals, "PATIENCE_S", 0.01)
    with pytest.raises(TimeoutError, match="no answer"):
        drive(_recommender(Answer), ["x"], Ledger(traffic, 0), Busy)


def test_lists_are_the_same_but_for_ties() -> None:
    total = torch.tensor([[-1.0, -2.0, -2.00005, -3.0, -4.0]])

    def listed(*ads: int) -> Candidates:
        number = len(ads)
        log_prob = torch.stack([total[:, :number], torch.zeros(1, number)], dim=-1)
        zeros = torch.zeros(1, number, 2)
        made = {"codes": zeros.long(), "log_prob": log_prob, "value": zeros}
        ad_id = torch.tensor([ads])
        return Candidates(**made, ad_id=ad_id, valid=ad_id >= 0, batch_size=[1])

    direct = listed(5, 6, 7, 8, 9)
    assert is_same_list(listed(5, 6, 7), direct)
    assert is_same_list(listed(5, 7, 6), direct)
    assert not is_same_list(listed(6, 5, 7), direct)
    assert not is_same_list(listed(5, 6, 7, 9), direct)
    assert is_same_list(listed(5, 6, 7, 8, 9), listed(5, 6, 7))  # the rest is padding


def test_capacity_is_of_full_batches(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "repeated", lambda runs, sizes: {"full": [0.5, 2.0, 1.0]})
    bench = LoadBench(Trained(out, "tiny", 0, ()), LITTLE, seed=1)
    assert bench.capacity_per_s() == 4.0  # four requests in a second


def test_quality_by_hand(out: Path) -> None:
    bench = LoadBench(Trained(out, "tiny", 0, ()), LITTLE, seed=1)
    traffic = Traffic(np.array([0.0, 0.1, 0.2, 0.3]), np.array([0, 1, 2, 3]))
    ledger = Ledger(traffic, 4)
    for index in range(3):  # the last one is refused
        (asked,) = bench._trained.asked(bench.request_id[index : index + 1], 1)
        found = _cut(bench.search(asked, 12), 5)
        ledger.answered_s[index], ledger.width[index] = 0.5, 12
        ledger.first_ad[index] = int(found.ad_id[0, 0])
        ledger.kept[index] = found, 12
    found = bench.quality(ledger, 1.0)
    assert found["refused_share"] == 0.25
    assert found["mean_width"] == 12
    assert found["value_share"] == pytest.approx(1.0)
    assert found["same_list_share"] == 1.0
    assert found["largest_difference"] < 1e-5
    ledger.kept[1][0].ad_id[0, 2] = -1
    assert bench.quality(ledger, 1.0)["same_list_share"] == pytest.approx(2 / 3)
    nothing = Ledger(traffic, 4)
    assert bench.quality(nothing, 1.0) == {"refused_share": 1.0}


@pytest.fixture
def capacity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine does, loads are of 100 requests per second: 10 and 30 arrivals."""
    monkeypatch.setattr(LoadBench, "capacity_per_s", lambda bench: 100.0)


def _measured(out: Path, tmp_path: Path) -> tuple[Any, Any]:
    file = tmp_path / "parts" / "observed-load-seed1.csv"
    rows = measure_load(
        out=out, world="tiny", world_seed=0, seed=1, reward=(), sizes=LITTLE, file=file
    )
    return check_results(rows, "rows"), read_observed(tmp_path)


def _check(rows: Any, seen: Any) -> None:
    assert set(rows["method"]) == {"load"}
    assert rows["metric"].str.contains(r"(?:_s|_ms|_per_s)$").all()
    assert set(rows["mode"]) == {"", "50", "150", "soak"}
    assert {"refused_share", "mean_width", "value_share"} <= set(seen["metric"])
    soak = under(seen, mode="soak").set_index("metric")["value"]
    assert not can_measure() or (soak["memory_before_mib"] > 1 and soak["memory_after_mib"] > 1)
    found = under(seen, mode="150").set_index("metric")["value"]
    assert found["same_list_share"] == 1.0


@pytest.mark.usefixtures("capacity")
def test_a_service_under_load(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def open_service(*given: Any) -> tuple[DirectService, type[Busy]]:
        made.append(DirectService(*given))
        return made[-1], Busy

    monkeypatch.setattr(load, "open_service", open_service)
    rows, seen = _measured(out, tmp_path)
    _check(rows, seen)
    found = under(seen, mode="150").set_index("metric")["value"]
    assert 5 < found["mean_width"] < 12
    assert len(made) == 3
    assert all(service.closed for service in made)


@pytest.mark.usefixtures("capacity")
def test_the_recommender_under_load(out: Path, tmp_path: Path) -> None:
    pytest.importorskip("gpr_rl.decoding.serve")
    _check(*_measured(out, tmp_path))
