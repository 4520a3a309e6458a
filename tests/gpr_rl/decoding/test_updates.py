"""Ads that come, go and pause: the tree is that of a build anew, and a search sees one version."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpr_rl.decoding import CodeTrie, beam_search, sample_paths
from gpr_rl.decoding.tree import Tree
from tests.references.decoding_fakes import StepPolicy, requests


def check_same(one: Tree, other: Tree) -> None:
    for name in ("ad_id", "edge", "value"):
        mine, its = getattr(one, name), getattr(other, name)
        assert (mine is None) == (its is None)
        assert mine is None or (mine.dtype == its.dtype and torch.equal(mine, its)), name
    for name in ("first", "code"):
        for mine, its in zip(getattr(one, name), getattr(other, name), strict=True):
            assert mine.dtype == its.dtype, name
            assert torch.equal(mine, its), name


class Catalogue:
    """What a trie should hold, in plain Python."""

    def __init__(self, seed: int, num_ads: int, num_levels: int, num_codes: int, valued: bool):
        self.generator = torch.Generator().manual_seed(seed)
        self.shape, self.valued = (num_levels, num_codes), valued
        self.path: dict[int, list[int]] = {}
        self.value: dict[int, float] = {}
        self.put(list(range(num_ads)))

    def put(self, ids: list[int]) -> tuple[Tensor, Tensor | None]:
        codes = torch.randint(self.shape[1], (len(ids), self.shape[0]), generator=self.generator)
        value = torch.randint(3, (len(ids),), generator=self.generator).double()
        self.path |= dict(zip(ids, codes.tolist(), strict=True))
        self.value |= dict(zip(ids, value.tolist(), strict=True))
        return codes, value if self.valued else None

    def anew(self) -> tuple[CodeTrie, Tensor]:
        """A trie of the same ads, numbered from 0, and their ids here."""
        ids = sorted(self.path)
        value = torch.tensor([self.value[i] for i in ids]).double() if self.valued else None
        codes = torch.tensor([self.path[i] for i in ids])
        return CodeTrie(codes, self.shape[1], value), torch.tensor(ids)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_ads=st.integers(1, 30),
    num_levels=st.integers(1, 4),
    num_codes=st.integers(1, 5),
    valued=st.booleans(),
)
def test_any_course_of_updates_ends_at_a_tree_built_anew(
    seed: int, num_ads: int, num_levels: int, num_codes: int, valued: bool
) -> None:
    wanted = Catalogue(seed, num_ads, num_levels, num_codes, valued)
    codes = torch.tensor([wanted.path[i] for i in range(num_ads)])
    value = torch.tensor([wanted.value[i] for i in range(num_ads)]).double() if valued else None
    trie = CodeTrie(codes, num_codes, value)
    free = [*range(num_ads, num_ads + 9)]
    for step in range(4):
        ids = [free.pop(int(torch.randint(len(free), (1,), generator=wanted.generator)))]
        ids += [free.pop() for _ in range(min(step, len(free)))]
        trie.add(wanted.put(ids)[0], torch.tensor(ids), *_value(wanted, ids))
        order = torch.randperm(len(wanted.path), generator=wanted.generator)
        gone = [sorted(wanted.path)[i] for i in order[: len(order) // 2].tolist()]
        if gone:
            trie.retire(torch.tensor(gone))
        for ad in gone:
            del wanted.path[ad]
            free.append(ad)
        anew, ids_of = wanted.anew()
        renamed = ids_of[anew.tree.ad_id.long()].int()
        assert torch.equal(trie.tree.ad_id, renamed)
        check_same(trie.tree, Tree(**{**vars_of(anew.tree), "ad_id": renamed}))
        found = trie.codes
        assert found[ids_of].tolist() == [wanted.path[i] for i in ids_of.tolist()]
        assert (found.sum(-1) < 0).sum() == trie.num_ads - len(ids_of)


def _value(wanted: Catalogue, ids: list[int]) -> list[Tensor]:
    return [torch.tensor([wanted.value[i] for i in ids]).double()] if wanted.valued else []


def vars_of(tree: Tree) -> dict:
    return {name: getattr(tree, name) for name in Tree.__dataclass_fields__}


def test_a_search_gives_what_the_tree_built_anew_gives() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(4, (60, 3), generator=generator)
    policy = StepPolicy(1, 6, 3, 4)
    trie = CodeTrie(codes[:40], 4)
    trie.add(codes[40:], torch.arange(40, 60))
    trie.retire(torch.arange(10, 30))
    left = torch.cat([torch.arange(10), torch.arange(30, 60)])
    anew = CodeTrie(codes[left], 4)
    eligible = torch.rand(6, 60, generator=generator) < 0.5
    for search in (
        lambda t, e: beam_search(policy, requests(*range(6)), t, 7, e, renormalize=True),
        lambda t, e: beam_search(policy, requests(*range(6)), t, 7, e, value_weight=0.5),
        lambda t, e: sample_paths(policy, requests(*range(6)), t, 7, 0, 0, e),
    ):
        found, wanted = search(trie, eligible), search(anew, eligible[:, left])
        assert torch.equal(found.codes, wanted.codes)
        assert torch.equal(found.log_prob, wanted.log_prob)
        named = left[wanted.ad_id.clamp_min(0)].where(wanted.valid, -1)
        assert torch.equal(found.ad_id, named)


def test_paused_ads_are_shown_to_nobody_and_come_back() -> None:
    codes = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 0]])
    trie = CodeTrie(codes, 2)
    trie.signatures(torch.ones(1, 4, dtype=torch.bool))
    trie.set_active(torch.tensor([True, False, False, True]))
    for legal in (
        trie.restrict(),
        trie.restrict(torch.ones(1, 4, dtype=torch.bool)),
        trie.restrict(signature=torch.tensor([0])),
    ):
        assert legal.resolve(codes[None]).tolist() == [[0, -1, 3, 3]]
        assert legal.mask(torch.tensor([[0]])).tolist() == [[True, False]]
    trie.set_active(torch.ones(4, dtype=torch.bool))
    assert trie.restrict().resolve(codes[None]).tolist() == [[0, 1, 2, 2]]
    assert trie.version == 2


def test_who_has_begun_keeps_the_catalogue_of_then() -> None:
    trie = CodeTrie(torch.tensor([[0, 0], [1, 1]]), 2)
    before = trie.restrict()
    trie.retire(torch.tensor([0]))
    trie.add(torch.tensor([[0, 1]]), torch.tensor([5]))
    paths = torch.tensor([[[0, 0], [0, 1], [1, 1]]])
    assert before.resolve(paths).tolist() == [[0, -1, 1]]
    assert trie.restrict().resolve(paths).tolist() == [[-1, 5, 1]]
    assert trie.num_ads == 6
    assert trie.codes.tolist() == [[-1, -1], [1, 1], [-1, -1], [-1, -1], [-1, -1], [0, 1]]


def test_searches_run_while_ads_come_and_go() -> None:
    """Every answer is of one version: an ad and its path were there together."""
    codes = torch.randint(3, (30, 2), generator=torch.Generator().manual_seed(0))
    trie, policy = CodeTrie(codes, 3), StepPolicy(0, 2, 2, 3)
    trie.signatures(torch.ones(1, 60, dtype=torch.bool), max_bytes=0)
    stop, wrong = threading.Event(), []
    twin = codes.flip(0)  # the same ids under other paths

    def search() -> None:
        signature = torch.zeros(2, dtype=torch.int64)
        while not stop.is_set():
            found = beam_search(policy, requests(0, 1), trie, 9, signature=signature)
            for path, ad in zip(found.codes[found.valid], found.ad_id[found.valid], strict=True):
                known = (codes[ad], twin[ad]) if ad < 30 else (codes[ad - 30],)
                if not any(torch.equal(path, x) for x in known):
                    wrong.append((path, ad))

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    for turn in range(60):
        ids = torch.arange(turn % 20, turn % 20 + 10)
        trie.add(codes[ids], ids + 30)
        trie.retire(ids)
        trie.add((twin if turn % 2 else codes)[ids], ids)
        trie.retire(ids + 30)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert trie.version == 240


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.retire(torch.tensor([7])), "ad 7 is not in the catalogue"),
        (lambda t: t.retire(torch.tensor([0, 1])), "all would be retired"),
        (lambda t: t.retire(torch.tensor([1, 1])), "ad 1 is given twice"),
        (lambda t: t.retire(torch.tensor([0.0])), r"must be integers \[M\]"),
        (lambda t: t.retire(torch.tensor([-1])), "at least 0, got -1"),
        (lambda t: t.add(torch.tensor([[0, 0]]), torch.tensor([1])), "ad 1 is in the catalogue"),
        (lambda t: t.add(torch.tensor([[0, 2]]), torch.tensor([2])), r"\[0, 2\), got 2"),
        (lambda t: t.add(torch.tensor([[0]]), torch.tensor([2])), r"codes must be \[1, 2\]"),
        (lambda t: t.add(torch.tensor([[0, 0]]), torch.tensor([2]), [1.0]), "takes no value"),
        (lambda t: t.set_active(torch.ones(3, dtype=torch.bool)), r"active must be bool \[2\]"),
        (lambda t: t.restrict(signature=torch.tensor([0])), "signature needs"),
    ],
)
def test_a_refused_update_changes_nothing(call, message: str) -> None:
    trie = CodeTrie(torch.tensor([[0, 0], [1, 1]]), 2)
    tree = trie.tree
    with pytest.raises(ValueError, match=message):
        call(trie)
    assert trie.tree is tree


def test_values_are_asked_for_where_the_others_have_them() -> None:
    trie = CodeTrie(torch.tensor([[0, 0], [0, 0]]), 2, ad_value=torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match="add needs a value"):
        trie.add(torch.tensor([[0, 0]]), torch.tensor([2]))
    trie.add(torch.tensor([[0, 0], [0, 0]]), torch.tensor([9, 4]), torch.tensor([2.0, 3.0]))
    assert trie.tree.ad_id.tolist() == [4, 1, 9, 0]
