"""Many requests, few kinds of them: the answers are those of a row of ads per request."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpr_rl.decoding import CodeTrie, beam_search, gumbel_paths, sample_paths
from tests.references.decoding_fakes import StepPolicy, catalogue, requests


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_levels=st.integers(1, 4),
    num_codes=st.integers(1, 4),
    num_ads=st.integers(1, 40),
)
def test_a_signature_is_a_row_of_ads(
    seed: int, num_levels: int, num_codes: int, num_ads: int
) -> None:
    codes, rows = catalogue(seed, num_ads, num_levels, num_codes, 4)
    rows[1] = False
    rows[2] = False
    rows[2, -1] = True
    value = torch.randint(3, (num_ads,), generator=torch.Generator().manual_seed(seed)).float()
    trie = CodeTrie(codes, num_codes, value)
    trie.signatures(rows)
    signature = torch.tensor([3, 0, 3, 1, 2, 0])
    legal, wanted = trie.restrict(signature=signature), trie.restrict(rows[signature])
    assert torch.equal(legal.eligible, rows[signature])
    paths = torch.randint(num_codes, (6, 5, num_levels))
    assert torch.equal(legal.path_masks(paths), wanted.path_masks(paths))
    assert torch.equal(legal.path_ad, wanted.path_ad)
    policy, asked = StepPolicy(seed, 6, num_levels, num_codes), requests(*range(6))
    found = beam_search(policy, asked, trie, 5, signature=signature, renormalize=True)
    same = beam_search(policy, asked, trie, 5, rows[signature], renormalize=True)
    for key in ("codes", "log_prob", "value", "ad_id", "valid"):
        assert torch.equal(getattr(found, key), getattr(same, key)), key


def test_draws_take_signatures_too() -> None:
    codes, rows = catalogue(0, 30, 3, 4, 3)
    trie, policy, asked = CodeTrie(codes, 4), StepPolicy(0, 3, 3, 4), requests(0, 1, 2)
    trie.signatures(rows)
    signature = torch.tensor([2, 0, 1])
    for draw in (sample_paths, gumbel_paths):
        found = draw(policy, asked, trie, 6, 0, 0, signature=signature)
        same = draw(policy, asked, trie, 6, 0, 0, rows[signature])
        assert torch.equal(found.ad_id, same.ad_id)
        assert torch.equal(found.log_prob, same.log_prob)


def test_what_is_kept_is_bounded_and_used_again() -> None:
    codes, rows = catalogue(0, 64, 3, 4, 8)
    trie = CodeTrie(codes, 4)
    row_bytes = trie.signatures(rows).row_bytes(trie.tree)
    kept = trie.signatures(rows, max_bytes=2 * row_bytes)

    def ask(*signature: int) -> None:
        legal = trie.restrict(signature=torch.tensor(signature))
        assert torch.equal(legal.eligible, rows[list(signature)])

    for signature, made in (((0,), 1), ((1, 0), 2), ((0,), 2), ((2,), 3), ((0,), 3), ((1,), 4)):
        ask(*signature)
        assert kept.num_made == made, signature
        assert kept.num_bytes <= 2 * row_bytes
    ask(0, 1, 2, 3, 4)  # one search needs more than may be kept
    assert kept.num_made == 9 - 2
    trie.set_active(torch.ones(64, dtype=torch.bool))  # another version: all are made again
    ask(1)
    assert kept.num_made == 8


def test_a_search_in_progress_keeps_its_rows() -> None:
    codes, rows = catalogue(0, 64, 3, 4, 8)
    trie = CodeTrie(codes, 4)
    trie.signatures(rows, max_bytes=0)
    first = trie.restrict(signature=torch.tensor([0, 1]))
    others = [trie.restrict(signature=torch.tensor([number])) for number in range(2, 8)]
    assert torch.equal(first.eligible, rows[:2])
    for number, legal in enumerate(others, 2):
        assert torch.equal(legal.eligible, rows[number : number + 1])


def test_a_function_is_asked_once_per_number() -> None:
    codes, rows = catalogue(0, 20, 2, 5, 4)
    trie, asked = CodeTrie(codes, 5), []

    def ads_of(number: torch.Tensor) -> torch.Tensor:
        asked.extend(number.tolist())
        return rows[number // 1_000_000_007, :15]  # ads that came later are not known there

    trie.signatures(ads_of)
    for _ in range(2):
        legal = trie.restrict(signature=torch.tensor([3, 0, 3, 3]) * 1_000_000_007)
        wanted = rows[[3, 0, 3, 3]].clone()
        wanted[:, 15:] = False
        assert torch.equal(legal.eligible, wanted)
    assert sorted(asked) == [0, 3 * 1_000_000_007]


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.signatures(torch.ones(2, 3)), r"eligible must be bool \[S, N\]"),
        (lambda t: t.signatures(torch.ones(2, 2).bool(), -1), "max_bytes must be at least 0"),
        (lambda t: t.restrict(signature=torch.tensor([1])), r"lie in \[0, 1\), got 1"),
        (lambda t: t.restrict(signature=torch.tensor([-1])), r"lie in \[0, 1\), got -1"),
        (lambda t: t.restrict(signature=torch.tensor([0.0])), r"must be int64 \[B\]"),
        (lambda t: t.restrict(torch.ones(1, 2).bool(), torch.tensor([0])), "not both"),
    ],
)
def test_says_what_is_wrong(call, message: str) -> None:
    trie = CodeTrie(torch.tensor([[0, 0], [1, 1]]), 2)
    trie.signatures(torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=message):
        call(trie)
    assert trie.restrict(signature=torch.tensor([0])).eligible.all()


def test_a_function_that_answers_something_else_is_named() -> None:
    trie = CodeTrie(torch.tensor([[0, 0], [1, 1]]), 2)
    trie.signatures(lambda number: torch.ones(2))
    with pytest.raises(ValueError, match=r"must return bool \[1, N\], got torch.float32 \[2\]"):
        trie.restrict(signature=torch.tensor([0]))
