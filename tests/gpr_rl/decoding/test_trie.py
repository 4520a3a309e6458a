import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpr_rl.decoding import CodeTrie


def catalogue(
    seed: int, num_ads: int, num_codes: int, num_levels: int = 3, num_requests: int = 5
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, num_codes, (num_ads, num_levels), generator=generator)
    value = torch.randint(0, 4, (num_ads,), generator=generator).double()  # with ties
    share = torch.rand(num_requests, 1, generator=generator)
    eligible = torch.rand(num_requests, num_ads, generator=generator) < share
    eligible[0] = False
    return codes, value, eligible


def reference_mask(
    codes: Tensor, eligible: Tensor, prefix: list[int], num_codes: int
) -> list[bool]:
    seen = {
        tuple(path[: len(prefix) + 1])
        for path, shown in zip(codes.tolist(), eligible.tolist(), strict=True)
        if shown
    }
    return [(*prefix, code) in seen for code in range(num_codes)]


def reference_ad(codes: Tensor, value: Tensor, eligible: Tensor, path: list[int]) -> int:
    rivals = [
        (-float(value[ad]), ad)
        for ad in range(len(codes))
        if eligible[ad] and codes[ad].tolist() == path
    ]
    return min(rivals)[1] if rivals else -1


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_ads=st.integers(1, 40),
    num_codes=st.integers(1, 5),
    num_levels=st.integers(1, 4),
)
def test_agrees_with_sets_of_tuples(
    seed: int, num_ads: int, num_codes: int, num_levels: int
) -> None:
    codes, value, eligible = catalogue(seed, num_ads, num_codes, num_levels)
    trie = CodeTrie(codes, num_codes=num_codes, ad_value=value)
    generator = torch.Generator().manual_seed(seed + 1)
    known = codes[torch.randint(0, num_ads, (5, 3), generator=generator)]
    foreign = torch.randint(0, num_codes, (5, 3, num_levels), generator=generator)
    paths = torch.cat([known, foreign], dim=1)
    legal = trie.restrict(eligible)
    every_level = legal.path_masks(paths)
    for level in range(num_levels):
        prefix = paths[..., :level]
        expected = torch.tensor(
            [
                [reference_mask(codes, shown, row, num_codes) for row in rows]
                for shown, rows in zip(eligible, prefix.tolist(), strict=True)
            ]
        )
        assert torch.equal(trie.legal_mask(prefix, eligible), expected)
        assert torch.equal(trie.legal_mask(prefix[:, 0], eligible), expected[:, 0])
        assert torch.equal(every_level[..., level, :], expected)
    expected_ad = torch.tensor(
        [
            [reference_ad(codes, value, shown, row) for row in rows]
            for shown, rows in zip(eligible, paths.tolist(), strict=True)
        ]
    )
    assert torch.equal(legal.resolve(paths), expected_ad)
    every = sorted(set(map(tuple, codes.tolist())))
    assert [tuple(row) for row in trie.paths.tolist()] == every
    for row, shown in zip(legal.path_ad.tolist(), eligible, strict=True):
        assert row == [reference_ad(codes, value, shown, list(path)) for path in every]


def test_a_hand_worked_tree() -> None:
    # Ads 0 and 2 share path (1, 0); ad 1 is (1, 2); ad 3 is (0, 1).
    trie = CodeTrie(torch.tensor([[1, 0], [1, 2], [1, 0], [0, 1]]), num_codes=3)
    root = torch.zeros(1, 0, dtype=torch.int64)
    assert trie.legal_mask(root).tolist() == [[True, True, False]]
    assert trie.legal_mask(torch.tensor([[1]])).tolist() == [[True, False, True]]
    assert trie.legal_mask(torch.tensor([[2]])).tolist() == [[False, False, False]]
    only_two = torch.tensor([[False, False, True, False]])
    assert trie.legal_mask(root, only_two).tolist() == [[False, True, False]]
    assert trie.legal_mask(torch.tensor([[0]]), only_two).tolist() == [[False] * 3]


def test_a_shared_path_goes_to_the_eligible_ad_worth_most_then_to_the_lowest_id() -> None:
    codes = torch.tensor([[1, 0], [1, 0], [1, 0]])
    path = torch.tensor([[1, 0]])
    valued = CodeTrie(codes, num_codes=2, ad_value=torch.tensor([1.0, 3.0, 3.0]))
    assert valued.restrict().resolve(path).tolist() == [1]
    without_1 = torch.tensor([[True, False, True]])
    assert valued.restrict(without_1).resolve(path).tolist() == [2]
    assert CodeTrie(codes, num_codes=2).restrict().resolve(path).tolist() == [0]


def test_without_eligible_ads_nothing_is_legal() -> None:
    trie = CodeTrie(torch.tensor([[1, 0], [0, 1]]), num_codes=2)
    legal = trie.restrict(torch.zeros(2, 2, dtype=torch.bool))
    assert not legal.mask(torch.zeros(2, 0, dtype=torch.int64)).any()
    assert not legal.path_masks(torch.tensor([[1, 0], [0, 1]])).any()
    assert legal.path_ad.eq(-1).all()


def test_one_request_of_eligibility_serves_many_prefixes() -> None:
    codes, value, _ = catalogue(3, 30, 4)
    trie = CodeTrie(codes, num_codes=4, ad_value=value)
    every = torch.ones(7, 30, dtype=torch.bool)
    prefix = codes[:28].view(7, 4, 3)
    assert torch.equal(trie.restrict().path_masks(prefix), trie.restrict(every).path_masks(prefix))
    assert torch.equal(trie.restrict().resolve(prefix), trie.restrict(every).resolve(prefix))


def test_levels_may_use_fewer_codes_than_the_largest() -> None:
    trie = CodeTrie(torch.tensor([[7, 1], [3, 0]]), num_codes=8)
    mask = trie.legal_mask(torch.tensor([[7]]))
    assert mask.shape == (1, 8)
    assert mask[0].nonzero().tolist() == [[1]]


def test_says_what_is_wrong_with_the_input() -> None:
    codes = torch.tensor([[0, 1], [1, 1]])
    trie = CodeTrie(codes, num_codes=2)
    with pytest.raises(ValueError, match=r"\[0, 2\), got 2 at \[0, 1\]"):
        CodeTrie(torch.tensor([[0, 2]]), num_codes=2)
    with pytest.raises(ValueError, match=r"N, L >= 1, got \[0, 3\]"):
        CodeTrie(torch.zeros(0, 3, dtype=torch.int64), num_codes=2)
    with pytest.raises(ValueError, match="ad_value of ad 1 is NaN"):
        CodeTrie(codes, num_codes=2, ad_value=torch.tensor([0.0, torch.nan]))
    with pytest.raises(ValueError, match=r"ad_value must be \[2\]"):
        CodeTrie(codes, num_codes=2, ad_value=torch.zeros(3))
    with pytest.raises(ValueError, match=r"\[0, 2\), got -1 at \[0, 0\]"):
        trie.legal_mask(torch.tensor([[-1]]))
    with pytest.raises(ValueError, match=r"l in 0..1, got \[1, 2\]"):
        trie.legal_mask(torch.tensor([[0, 1]]))
    with pytest.raises(ValueError, match=r"eligible must be bool \[B, 2\]"):
        trie.legal_mask(torch.tensor([[0]]), torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="prefix has 3 requests, eligible has 2"):
        trie.restrict(torch.ones(2, 2, dtype=torch.bool)).mask(torch.zeros(3, 1, dtype=torch.int64))


def test_selected_rows_are_the_trees_of_these_requests() -> None:
    codes, value, eligible = catalogue(9, 30, 4)
    trie = CodeTrie(codes, num_codes=4, ad_value=value)
    row = torch.tensor([3, 1, 3])
    chosen, fresh = trie.restrict(eligible).select(row), trie.restrict(eligible[row])
    paths = codes[:27].view(3, 9, 3)
    assert torch.equal(chosen.path_masks(paths), fresh.path_masks(paths))
    assert torch.equal(chosen.resolve(paths), fresh.resolve(paths))
    assert torch.equal(chosen.path_ad, fresh.path_ad)
