"""Stepping down the code tree against brute force over the catalogue."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.choices import Choices, IllegalActionError
from gpr_rl.decoding import CodeTrie


class Catalogue:
    """A random catalogue with shared paths, ties in value and rows of any eligibility."""

    def __init__(self, rng: np.random.Generator, num_ads: int, num_codes: int, levels: int) -> None:
        self.codes = rng.integers(0, num_codes, (num_ads, levels))
        self.value = rng.integers(0, 4, num_ads).astype(float)
        self.trie = CodeTrie(self.codes, num_codes=num_codes, ad_value=self.value)
        self.rng, self.num_codes = rng, num_codes

    def eligible(self, num_rows: int) -> np.ndarray:
        share = self.rng.choice([0.0, 0.1, 0.5, 1.0], (num_rows, 1))
        return self.rng.random((num_rows, len(self.codes))) < share

    def mask(self, eligible: np.ndarray, prefix: list[int]) -> list[bool]:
        left = self.left(eligible, prefix)
        return [any(self.codes[ad, len(prefix)] == v for ad in left) for v in range(self.num_codes)]

    def left(self, eligible: np.ndarray, prefix: list[int]) -> list[int]:
        ads = np.flatnonzero(eligible)
        return [a for a in ads if self.codes[a, : len(prefix)].tolist() == prefix]

    def ad(self, eligible: np.ndarray, path: list[int]) -> int:
        return min(self.left(eligible, path), key=lambda ad: (-self.value[ad], ad))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_ads=st.integers(1, 40),
    num_codes=st.integers(1, 5),
    levels=st.integers(1, 4),
    num_rows=st.integers(1, 6),
)
def test_rows_follow_the_rules_whatever_the_others_do(
    seed: int, num_ads: int, num_codes: int, levels: int, num_rows: int
) -> None:
    """Random choices, a third of them illegal, random pauses and restarts, against plain lists."""
    rng = np.random.default_rng(seed)
    ads = Catalogue(rng, num_ads, num_codes, levels)
    choices = Choices(ads.trie, num_rows)
    eligible = np.zeros((num_rows, num_ads), dtype=bool)
    prefix: list[list[int]] = [[] for _ in range(num_rows)]
    awaiting, ad_id = [False] * num_rows, [-1] * num_rows
    for turn in range(12):
        restart = rng.random(num_rows) < (1.0 if turn == 0 else 0.3)
        fresh = ads.eligible(num_rows)
        given_rows = restart if turn or rng.random() < 0.5 else None
        some = given_rows is not None and rng.random() < 0.5
        legal = ads.trie.restrict(torch.from_numpy(fresh[restart] if some else fresh))
        before = legal.eligible.clone()
        choices.open(legal, given_rows)
        for row in np.flatnonzero(restart):
            eligible[row], prefix[row], ad_id[row] = fresh[row], [], -1
            awaiting[row] = bool(fresh[row].any())
        masks = [
            ads.mask(eligible[row], prefix[row]) if awaiting[row] else [True] * num_codes
            for row in range(num_rows)
        ]
        assert choices.legal_mask.tolist() == masks
        assert choices.awaiting.tolist() == awaiting
        action = rng.integers(0, num_codes, num_rows)
        legal_too = [rng.choice(np.flatnonzero(mask)) for mask in masks]
        action = np.where(rng.random(num_rows) < 0.67, legal_too, action)
        rows = rng.random(num_rows) < 0.8 if rng.random() < 0.5 else None
        finished, illegal = choices.step(action, rows)
        for row in range(num_rows):
            acts = awaiting[row] and (rows is None or rows[row])
            assert illegal[row] == (acts and not masks[row][action[row]])
            if acts:
                prefix[row] = [*prefix[row], int(action[row])]
            done = acts and not illegal[row] and len(prefix[row]) == levels
            assert finished[row] == done
            if done:
                ad_id[row] = ads.ad(eligible[row], prefix[row])
            if done or illegal[row]:
                awaiting[row] = False
        assert torch.equal(legal.eligible, before)
        assert choices.ad_id.tolist() == ad_id
        assert choices.level.tolist() == [len(p) for p in prefix]
        assert choices.prefix.tolist() == [p + [0] * (levels - len(p)) for p in prefix]


def test_a_row_without_an_eligible_ad_awaits_nothing() -> None:
    choices = Choices(CodeTrie(np.array([[0, 1]]), num_codes=2), 2)
    choices.open(choices.trie.restrict(torch.tensor([[False], [True]])))
    assert choices.awaiting.tolist() == [False, True]
    assert choices.legal_mask.tolist() == [[True, True], [True, False]]
    finished, illegal = choices.step(np.array([1, 0]))
    assert not finished.any()
    assert not illegal.any()
    assert choices.step(np.array([1, 1]))[0].tolist() == [False, True]
    assert choices.ad_id.tolist() == [-1, 0]


def test_closed_rows_stay_where_they_are() -> None:
    choices = Choices(CodeTrie(np.array([[0, 1], [1, 0]]), num_codes=2), 2)
    choices.open(choices.trie.restrict(torch.ones(2, 2, dtype=torch.bool)))
    choices.close(np.array([True, False]))
    choices.step(np.array([1, 1]))
    assert choices.prefix.tolist() == [[0, 0], [1, 0]]
    assert choices.legal_mask.tolist() == [[True, True], [True, False]]
    choices.close()
    assert not choices.awaiting.any()
    assert choices.legal_mask.all()


def test_a_part_of_the_trees_shares_their_memory() -> None:
    ads = Catalogue(np.random.default_rng(1), 30, 3, 3)
    legal = ads.trie.restrict(torch.from_numpy(ads.eligible(6)))
    part = legal.part(2, 4)
    assert torch.equal(part.root_mask, legal.mask(torch.zeros(6, 0, dtype=torch.int64))[2:4])
    assert part.eligible.data_ptr() == legal.eligible[2:].data_ptr()
    paths = torch.from_numpy(ads.codes[:4]).expand(6, -1, -1)
    assert torch.equal(part.path_masks(paths[:2]), legal.path_masks(paths)[2:4])
    assert torch.equal(part.resolve(paths[:2]), legal.resolve(paths)[2:4])


def test_errors_name_the_row_and_change_nothing() -> None:
    choices = Choices(CodeTrie(np.array([[0, 1], [1, 0]]), num_codes=3), 2)
    legal = choices.trie.restrict(torch.ones(2, 2, dtype=torch.bool))
    choices.open(legal)
    with pytest.raises(ValueError, match=r"action must be an integer in \[0, 3\), got -1"):
        choices.step(np.array([0, -1]))
    with pytest.raises(
        IllegalActionError,
        match=r"action 2 is illegal in request 9 after codes \[\]; legal: \[0, 1\]",
    ):
        choices.step(np.array([0, 2]), strict=True, request_id=np.array([4, 9]))
    assert choices.level.tolist() == [0, 0]
    with pytest.raises(ValueError, match="legal must be of 2 rows, got 1"):
        choices.open(legal.part(0, 1))
    # an action that is not read may be anything
    choices.step(np.array([0, 99]), np.array([True, False]))
    assert choices.level.tolist() == [1, 0]
