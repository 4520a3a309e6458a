import threading
from functools import partial

import pytest
import torch
from torch import Tensor

from gpr_rl.decoding import Closed, CodeTrie, Overloaded, Recommender, beam_search
from gpr_rl.decoding.serve import Answer
from gpr_rl.models import HHD
from gpr_rl.schema import Candidates, Request
from tests.references.serving_fakes import (
    Clock,
    GatedPolicy,
    every_path,
    one,
    serving,
    small_model,
)

HOUR_MS = 3_600_000.0
LONG_S = 60.0  # for what happens at once; the tests don't depend on it


@pytest.fixture
def policy() -> GatedPolicy:
    return GatedPolicy()


@pytest.fixture
def trie() -> CodeTrie:
    return CodeTrie(every_path(), num_codes=4)


@pytest.fixture(scope="module")
def model(world) -> HHD:
    return small_model(world)


def held(policy: GatedPolicy, service: Recommender, request_id: int = 0) -> Answer:
    """Shut the gate and send a request that waits there, so that others queue up."""
    policy.gate.clear()
    answer = service.recommend(one(request_id))
    assert policy.entered.acquire(timeout=LONG_S)
    return answer


def same(answer: Answer, direct: Candidates) -> None:
    """The answer is the first of what a search found, and padding."""
    found = answer.result(LONG_S)
    number = min(found.valid.shape[1], direct.valid.shape[1])
    assert not found.valid[:, number:].any()
    for name in ("ad_id", "codes", "valid"):
        assert torch.equal(getattr(found, name)[:, :number], getattr(direct, name)[:, :number])
    for name in ("log_prob", "value"):
        torch.testing.assert_close(
            getattr(found, name)[:, :number], getattr(direct, name)[:, :number]
        )


class TestAnswers:
    def test_are_those_of_a_search_of_the_request_alone(self, world, model) -> None:
        ids = world.request_ids("test")[:40]
        with Recommender(model, world, max_batch=8, max_queue=40) as service:
            answers = [service.recommend(world.request(i[None])) for i in ids]
            for i, answer in zip(ids, answers, strict=True):
                answer.result(LONG_S)
                request, eligible = world.request(i[None]), world.eligible(i[None])
                same(answer, beam_search(model, request, world.trie, answer.width, eligible))
            assert service.stats().answered == len(ids)
            assert service.stats().mean_batch > 1

    def test_of_requests_of_different_lengths_are_right(self, world, model) -> None:
        ids = world.request_ids("test")
        request = world.request(ids[:300])
        length = (request.tokens.kind != 0).sum(1)
        short, long = int(length.argmin()), int(length.argmax())
        assert length[short] < length[long]
        rows = [
            _cut(world.request(ids[row : row + 1]), int(length[row]))
            for row in (short, long, short)
        ]
        with Recommender(
            model, world, max_batch=3, deadline_ms=HOUR_MS, cache_s=0, width=40
        ) as service:
            answers = [service.recommend(row) for row in rows]
            for row, answer in zip((short, long, short), answers, strict=True):
                one_id = ids[row : row + 1]
                same(
                    answer,
                    beam_search(
                        model, world.request(one_id), world.trie, 40, world.eligible(one_id)
                    ),
                )
            assert service.stats().mean_batch == 3

    def test_show_only_what_the_caller_allows(self, policy, trie) -> None:
        eligible = torch.zeros(64, dtype=torch.bool)
        eligible[[3, 5]] = True
        with serving(policy, trie, max_batch=3, deadline_ms=HOUR_MS, num_candidates=4) as service:
            free, few = service.recommend(one(1)), service.recommend(one(1), eligible)
            service.recommend(one(2))
            same(free, beam_search(policy, one(1), trie, 4))
            same(few, beam_search(policy, one(1), trie, 4, eligible[None]))
        assert sorted(few.result().ad_id[0].tolist()) == [-1, -1, 3, 5]

    def test_have_as_many_candidates_as_asked_for(self, policy, trie) -> None:
        with serving(policy, trie, deadline_ms=0, num_candidates=6) as service:
            found = service.recommend(one(1), num_candidates=2).result(LONG_S)
        whole = beam_search(policy, one(1), trie, 6)
        assert found.ad_id.tolist() == whole.ad_id[:, :2].tolist()
        assert found.log_prob.tolist() == whole.log_prob[:, :2].tolist()

    def test_come_from_any_search(self, policy, trie) -> None:
        search = partial(beam_search, value_weight=2.0)
        with serving(policy, trie, deadline_ms=0, num_candidates=6, search=search) as service:
            same(service.recommend(one(1)), search(policy, one(1), trie, 6))

    def test_in_bf16_are_near_and_float32(self, world, model) -> None:
        i = world.request_ids("test")[:1]
        request, eligible = world.request(i), world.eligible(i)
        with Recommender(model, world, deadline_ms=0, precision="bf16") as service:
            found = service.recommend(request).result(LONG_S)
        exact = beam_search(model, request, world.trie, world.num_ads, eligible)
        score = dict(zip(exact.ad_id[0].tolist(), exact.log_prob[0].sum(-1).tolist(), strict=True))
        assert found.log_prob.dtype == found.value.dtype == torch.float32
        errors = [
            abs(score[ad] - float(log_prob.sum()))
            for ad, log_prob in zip(found.ad_id[0].tolist(), found.log_prob[0], strict=True)
        ]
        assert 0 < max(errors) < 0.1  # nats; three products of 8 bits


def _cut(request: Request, length: int) -> Request:
    """The same request without padding."""
    for name in ("kind", "codes", "action", "time_gap", "context"):
        setattr(request.tokens, name, getattr(request.tokens, name)[:, :length])
    return request


class TestBatches:
    def test_hold_what_waited_up_to_the_largest(self, policy, trie) -> None:
        with serving(policy, trie, max_batch=4, deadline_ms=0) as service:
            held(policy, service)
            rest = [service.recommend(one(i)) for i in range(1, 7)]
            policy.gate.set()
            for answer in rest:
                answer.result(LONG_S)
            stats = service.stats()
        assert policy.batches == [[0], [1, 2, 3, 4], [5, 6]]
        assert stats.mean_batch == pytest.approx(7 / 3)
        for i, answer in enumerate(rest, start=1):
            same(answer, beam_search(policy, one(i), trie, answer.width))

    def test_wait_for_others_until_full(self, policy, trie) -> None:
        with serving(policy, trie, max_batch=3, deadline_ms=HOUR_MS) as service:
            for answer in [service.recommend(one(i)) for i in range(3)]:
                answer.result(LONG_S)
        assert policy.sizes == [3]

    def test_wait_no_longer_than_the_deadline(self, policy, trie) -> None:
        with serving(policy, trie, max_batch=3, deadline_ms=20) as service:
            service.recommend(one(0)).result(LONG_S)
        assert policy.sizes == [1]

    def test_count_the_deadline_from_submission(self, policy, trie) -> None:
        clock = Clock()
        with serving(policy, trie, max_batch=2, deadline_ms=HOUR_MS, clock=clock) as service:
            policy.gate.clear()
            first = [service.recommend(one(i)) for i in range(2)]
            assert policy.entered.acquire(timeout=LONG_S)
            late = service.recommend(one(2))
            clock.now += 3_600.0  # it has waited its hour while the others were searched
            policy.gate.set()
            late.result(LONG_S)
        assert policy.sizes == [2, 1]
        assert late.latency_ms == first[0].latency_ms == HOUR_MS


class TestAdmission:
    def test_a_full_queue_refuses_at_once_and_loses_nothing(self, policy, trie) -> None:
        with serving(policy, trie, max_batch=2, max_queue=3, deadline_ms=0) as service:
            answers = [held(policy, service), *(service.recommend(one(i)) for i in (1, 2, 3))]
            with pytest.raises(
                Overloaded, match="3 requests wait already; try again in"
            ) as refusal:
                service.recommend(one(4))  # the gate is still shut
            assert refusal.value.retry_after_s > 0
            stats = service.stats()
            assert (stats.accepted, stats.refused, stats.queue_length) == (4, 1, 3)
            assert (stats.pending, stats.answered) == (4, 0)
            policy.gate.set()
            for answer in answers:
                assert answer.result(LONG_S).valid[:, : answer.width].all()
            service.recommend(one(4)).result(LONG_S)
            stats = service.stats()
        assert (stats.accepted, stats.answered, stats.refused, stats.pending) == (5, 5, 1, 0)

    def test_a_cancelled_request_is_not_searched(self, policy, trie) -> None:
        with serving(policy, trie, max_batch=2, deadline_ms=0) as service:
            held(policy, service)
            gone, kept = service.recommend(one(1)), service.recommend(one(2))
            also_gone = [service.recommend(one(i)) for i in (3, 4)]
            assert gone.cancel()
            assert all(answer.cancel() for answer in also_gone)  # a whole batch of them
            policy.gate.set()
            kept.result(LONG_S)
            service.recommend(one(5)).result(LONG_S)
            stats = service.stats()
        assert policy.batches == [[0], [2], [5]]
        assert (stats.cancelled, stats.answered, stats.pending) == (3, 3, 0)

    def test_closing_finishes_what_was_accepted(self, policy, trie) -> None:
        service = Recommender(policy, trie, max_batch=2, deadline_ms=HOUR_MS)
        policy.gate.clear()
        answers = [service.recommend(one(i)) for i in range(5)]
        service.close(wait=False)
        with pytest.raises(Closed, match="takes no more"):
            service.recommend(one(6))
        policy.gate.set()
        service.close()
        assert all(answer.done() for answer in answers)
        assert sorted(id for batch in policy.batches for id in batch) == [0, 1, 2, 3, 4]
        assert service.stats().answered == 5
        service.close()


class TestErrors:
    def test_a_bad_request_fails_alone(self, policy, trie) -> None:
        def fault(ids: list[int]) -> None:
            if 2 in ids:
                raise ValueError("two is bad")

        policy.fault = fault
        with serving(policy, trie, max_batch=5, deadline_ms=HOUR_MS) as service:
            answers = [service.recommend(one(i)) for i in range(5)]
            for i, answer in enumerate(answers):
                if i == 2:
                    with pytest.raises(ValueError, match="two is bad"):
                        answer.result(LONG_S)
                else:
                    same(answer, beam_search(policy, one(i), trie))
            stats = service.stats()
            assert (stats.failed, stats.answered, stats.pending) == (1, 4, 0)

    @pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, StopIteration])
    def test_nothing_that_a_policy_raises_ends_the_service(self, policy, trie, error) -> None:
        def fault(ids: list[int]) -> None:
            raise error

        with serving(policy, trie, deadline_ms=0) as service:
            policy.fault = fault
            with pytest.raises(RuntimeError, match=f"raised {error.__name__}") as failure:
                service.recommend(one(1)).result(LONG_S)
            assert isinstance(failure.value.__cause__, error)
            policy.fault = lambda ids: None
            service.recommend(one(1)).result(LONG_S)

    def test_requests_that_do_not_go_together_fail_alone(self, policy, trie) -> None:
        with serving(policy, trie, max_batch=2, deadline_ms=HOUR_MS) as service:
            good, bad = service.recommend(one(1)), service.recommend(torch.tensor([1, 2]))
            good.result(LONG_S)
            with pytest.raises(ValueError, match="1 requests were put together, 2 came out"):
                bad.result(LONG_S)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"max_batch": 0}, "max_batch must be at least 1, got 0"),
            ({"deadline_ms": -1}, "deadline_ms must be finite and at least 0, got -1"),
            ({"cache_s": float("nan")}, "cache_s must be finite and at least 0, got nan"),
            ({"width": 39}, "width must be at least 40, got 39"),
            ({"min_width": 41}, "min_width must be at most width = 40, got 41"),
            ({"max_queue": 63}, "max_queue must be at least 64, got 63"),
            ({"precision": "int8"}, r"precision must be one of \('float32', 'bf16'\), got 'int8'"),
        ],
    )
    def test_arguments_are_checked(self, policy, trie, arguments, message) -> None:
        with pytest.raises(ValueError, match=message):
            Recommender(policy, trie, **arguments)

    def test_requests_are_checked(self, policy, trie, world, model, unchecked_shapes) -> None:
        with serving(policy, trie, num_candidates=4) as service:
            with pytest.raises(ValueError, match="num_candidates must be at most 4, got 5"):
                service.recommend(one(1), num_candidates=5)
            with pytest.raises(
                ValueError, match=r"eligible must be bool \[64\], got .*bool \[63\]"
            ):
                service.recommend(one(1), torch.ones(63, dtype=torch.bool))
        with Recommender(model, world) as service:
            with pytest.raises(ValueError, match=r"of batch \[1\], got \[2\]"):
                service.recommend(world.request(torch.tensor([1, 2])))
            foreign = world.request(torch.tensor([1]))
            foreign.request_id = torch.tensor([-1])
            with pytest.raises(ValueError, match="request_id must be one of the world's"):
                service.recommend(foreign)
            mask = torch.ones(world.num_ads, dtype=torch.bool)
            assert service.recommend(foreign, mask).result(LONG_S).valid.all()
            assert service.stats().accepted == 1


class TestWidth:
    def test_falls_with_the_queue_and_recovers(self, policy, trie) -> None:
        sizes = {"max_batch": 2, "max_queue": 6, "num_candidates": 4, "width": 9, "min_width": 3}
        with serving(policy, trie, deadline_ms=0, **sizes) as service:
            first = held(policy, service)
            rest = [service.recommend(one(i)) for i in range(1, 7)]
            assert service.stats().width == 3
            policy.gate.set()
            for i, answer in enumerate(rest, start=1):
                answer.result(LONG_S)
                same(answer, beam_search(policy, one(i), trie, answer.width))
                assert int(answer.result().valid.sum()) == min(4, answer.width)
            stats = service.stats()
        # 6 wait: the queue is full; 4 wait: half way from one batch, 2, to full, 6; 2 wait: idle
        assert [answer.width for answer in (first, *rest)] == [9, 3, 3, 6, 6, 9, 9]
        assert stats.width == 9
        assert stats.mean_width == pytest.approx((9 + 3 + 3 + 6 + 6 + 9 + 9) / 7)

    def test_padding_is_blank(self, policy, trie) -> None:
        with serving(
            policy, trie, max_batch=1, max_queue=2, deadline_ms=0, num_candidates=3, min_width=1
        ) as service:
            held(policy, service)
            narrow = service.recommend(one(1))
            service.recommend(one(2))
            policy.gate.set()
            found = narrow.result(LONG_S)
        assert narrow.width == 1
        assert found.ad_id[0, 1:].tolist() == [-1, -1]
        assert found.log_prob[0, 1:].eq(-torch.inf).all()
        assert found.codes[0, 1:].eq(0).all()
        assert found.value[0, 1:].eq(0).all()


class TestManyThreads:
    def test_with_a_changing_catalogue_nothing_is_lost_or_stale(self, policy, trie) -> None:
        retired: set[int] = set()  # grows after `retire` has returned
        wrong: list[object] = []
        service = Recommender(
            policy, trie, max_batch=4, deadline_ms=0, num_candidates=8, key=lambda r: int(r)
        )

        def ask(start: int) -> None:
            for i in range(60):
                gone = frozenset(retired)
                try:
                    answer = service.recommend(one((start + i) % 8))
                except Overloaded as error:
                    wrong.append(error)
                    continue
                found = answer.result(LONG_S)
                shown = set(found.ad_id[found.valid].tolist())
                if shown & gone or len(shown) != 8:
                    wrong.append((shown & gone, answer.version))

        threads = [threading.Thread(target=ask, args=(8 * i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for ad in range(0, 40):
            service.retire(torch.tensor([ad]))
            retired.add(ad)
        for thread in threads:
            thread.join()
        stats = service.stats()
        service.close()
        assert wrong == []
        assert (stats.accepted, stats.answered, stats.failed) == (240, 240, 0)
        assert service.version == 40
        assert 0 < stats.hits < 240


def test_a_bare_trie_without_versions_serves(policy) -> None:
    trie = CodeTrie(every_path(), num_codes=4)
    with serving(policy, trie, deadline_ms=0) as service:
        answer = service.recommend(one(1))
        same(answer, beam_search(policy, one(1), trie))
    assert service.version == answer.version == 0


def test_a_catalogue_changes_through_the_service(policy, trie) -> None:
    def shown() -> Tensor:
        return service.recommend(one(1)).result(LONG_S).ad_id[0]

    with serving(policy, trie, deadline_ms=0, num_candidates=3, key=int) as service:
        best = shown()
        assert torch.equal(shown(), best)
        service.retire(best[:1])
        assert shown()[:2].tolist() == best[1:].tolist()
        service.add(every_path()[best[:1]], best[:1])
        assert torch.equal(shown(), best)
        mask = torch.zeros(64, dtype=torch.bool)
        mask[7] = True
        service.set_active(mask)
        assert shown().tolist() == [7, -1, -1]
        assert service.stats().hits == 1
