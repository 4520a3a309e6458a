"""The service's cache: what is found again, by whom, for how long."""

from contextlib import AbstractContextManager

import pytest
import torch

from gpr_rl.decoding import CodeTrie, Recommender, beam_search
from gpr_rl.decoding.serving.cache import AnswerCache, Found
from gpr_rl.decoding.serving.collate import request_key
from tests.references.serving_fakes import Clock, GatedPolicy, every_path, one

LONG_S = 60.0


@pytest.fixture
def policy() -> GatedPolicy:
    return GatedPolicy()


@pytest.fixture
def trie() -> CodeTrie:
    return CodeTrie(every_path(), num_codes=4)


def found(policy: GatedPolicy, width: int = 4) -> Found:
    trie = CodeTrie(every_path(), num_codes=4)
    return Found(beam_search(policy, one(0), trie, width), width, 0)


def serve(policy, trie, **arguments) -> AbstractContextManager[Recommender]:
    return Recommender(
        policy, trie, **{"deadline_ms": 0, "num_candidates": 4, "key": int} | arguments
    )


def ask(service: Recommender, *arguments, **options) -> tuple[bool, list[int]]:
    answer = service.recommend(one(1), *arguments, **options)
    return answer.cached, answer.result(LONG_S).ad_id[0].tolist()


def test_the_same_request_is_searched_once(policy, trie) -> None:
    with serve(policy, trie) as service:
        fresh, first = ask(service)
        cached, second = ask(service)
        assert (fresh, cached) == (False, True)
        assert first == second
        assert policy.sizes == [1]
        stats = service.stats()
        assert (stats.accepted, stats.answered, stats.hits) == (2, 2, 1)
        assert stats.hit_rate == 0.5


def test_an_answer_lives_for_cache_s(policy, trie) -> None:
    clock = Clock()
    with serve(policy, trie, cache_s=10, clock=clock) as service:
        ask(service)
        clock.now = 9.9
        assert ask(service)[0]
        clock.now = 10.0
        assert not ask(service)[0]
        clock.now = 19.9  # anew from the second search on
        assert ask(service)[0]


def test_another_catalogue_is_another_answer(policy, trie) -> None:
    with serve(policy, trie) as service:
        _, first = ask(service)
        service.retire(torch.tensor(first[:1]))
        cached, second = ask(service)
        assert not cached
        assert first[0] not in second
        assert ask(service) == (True, second)


def test_other_ads_allowed_is_another_answer(policy, trie) -> None:
    some = torch.arange(64) < 32
    with serve(policy, trie) as service:
        _, free = ask(service)
        cached, fewer = ask(service, some)
        assert not cached
        assert max(fewer) < 32
        assert ask(service, some) == (True, fewer)
        assert ask(service, some.clone()) == (True, fewer)
        assert not ask(service, ~some)[0]
        assert ask(service) == (True, free)


def test_a_shorter_list_is_cut_from_the_same_entry(policy, trie) -> None:
    with serve(policy, trie) as service:
        cached, two = ask(service, num_candidates=2)
        assert not cached
        cached, four = ask(service)
        assert cached
        assert four[:2] == two
        assert len(four) == 4


def test_what_a_caller_does_to_an_answer_stays_with_the_caller(policy, trie) -> None:
    with serve(policy, trie) as service:
        _, first = ask(service)
        for _ in range(2):
            service.recommend(one(1)).result(LONG_S).ad_id.zero_()
        assert ask(service) == (True, first)


def test_an_answer_of_a_narrower_beam_is_searched_anew_when_there_is_room(policy, trie) -> None:
    sizes = {"max_batch": 1, "max_queue": 2, "width": 8, "min_width": 4}
    with serve(policy, trie, **sizes) as service:
        policy.gate.clear()
        service.recommend(one(0))
        assert policy.entered.acquire(timeout=LONG_S)
        narrow, wide = service.recommend(one(1)), service.recommend(one(2))
        policy.gate.set()
        wide.result(LONG_S)
        assert (narrow.width, wide.width) == (4, 8)
        again = service.recommend(one(1))
        again.result(LONG_S)
        assert (again.cached, again.width) == (False, 8)
        assert service.recommend(one(1)).cached
        assert service.recommend(one(2)).cached


def test_a_full_queue_still_answers_from_the_cache(policy, trie) -> None:
    with serve(policy, trie, max_batch=1, max_queue=1) as service:
        _, known = ask(service)
        policy.gate.clear()
        for i in (2, 3):
            service.recommend(one(i))
            if i == 2:
                assert policy.entered.acquire(timeout=LONG_S)
                assert policy.entered.acquire(timeout=LONG_S)
        assert service.stats().queue_length == 1
        assert ask(service) == (True, known)
        policy.gate.set()


@pytest.mark.parametrize("off", [{"cache_s": 0}, {"cache_size": 0}, {"key": lambda request: None}])
def test_the_cache_can_be_off(policy, trie, off) -> None:
    with serve(policy, trie, **off) as service:
        ask(service)
        assert not ask(service)[0]


def test_the_longest_unused_leaves_first(policy) -> None:
    cache, entry = AnswerCache(10.0, 2, Clock()), found(policy)
    cache.put("a", entry)
    cache.put("b", entry)
    assert cache.get("a", 4) is not None
    cache.put("c", entry)
    assert len(cache) == 2
    assert cache.get("b", 4) is None
    assert cache.get("a", 4) is not None
    assert cache.get("c", 4) is not None


@pytest.mark.parametrize(("life_s", "size"), [(0.0, 2), (10.0, 0)])
def test_a_cache_that_is_off_keeps_nothing(policy, life_s, size) -> None:
    cache = AnswerCache(life_s, size, Clock())
    cache.put("a", found(policy))
    assert len(cache) == 0


def test_the_key_is_user_and_tokens_not_the_request_id(world) -> None:
    ids = world.request_ids("test")[:50]
    request = world.request(ids)
    rows = [world.request(i[None]) for i in ids]
    keys = [request_key(row) for row in rows]
    assert keys == [request_key(request[i : i + 1]) for i in range(len(ids))]
    renamed = world.request(ids[:1])
    renamed.request_id = renamed.request_id + 1
    assert request_key(renamed) == keys[0]
    for name in ("kind", "codes", "action", "time_gap", "context", "user", "preference"):
        changed = world.request(ids[:1])
        setattr(changed.tokens, name, getattr(changed.tokens, name) + 1)
        assert request_key(changed) != keys[0], name
    other = world.request(ids[:1])
    other.user_id = other.user_id + 1
    assert request_key(other) != keys[0]
    assert request_key(one(1)) is None
