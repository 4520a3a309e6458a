"""NDCG and ordered pairs: scikit-learn, plain loops, hand-worked lists."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score

from gpr_rl.metrics import hit_rate, ndcg, ordered_pair_ratio, recall_ndcg


def test_ndcg_equals_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    score = torch.randn(20, 12, generator=generator, dtype=torch.float64)
    gain = torch.rand(20, 12, generator=generator, dtype=torch.float64) * 100
    expected = [
        ndcg_score(g[None], s[None]) for g, s in zip(gain.numpy(), score.numpy(), strict=True)
    ]
    np.testing.assert_allclose(ndcg(score, gain).numpy(), expected, rtol=1e-12)


def test_ndcg_by_hand() -> None:
    # ranked 1, 3 with gains 1, 3: DCG = 1 + 3/log2(3), ideal = 3 + 1/log2(3).
    got = ndcg(torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 3.0]])).item()
    assert got == pytest.approx((1 + 3 / np.log2(3)) / (3 + 1 / np.log2(3)), rel=1e-6)


def test_pairs_equal_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    score, gain = rng.integers(0, 5, (6, 9)), rng.integers(0, 4, (6, 9))
    got = ordered_pair_ratio(torch.from_numpy(score).double(), torch.from_numpy(gain).double())
    for b in range(6):
        right = pairs = 0.0
        for i in range(9):
            for j in range(9):
                if gain[b, i] > gain[b, j]:
                    pairs += 1
                    right += 1.0 if score[b, i] > score[b, j] else 0.0
                    right += 0.5 if score[b, i] == score[b, j] else 0.0
        assert got[b].item() == pytest.approx(right / pairs)


def test_padding_leaves_no_trace() -> None:
    score = torch.tensor([[0.1, 0.9, 5.0]])
    gain = torch.tensor([[1.0, 2.0, 50.0]])
    valid = torch.tensor([[True, True, False]])
    short = slice(0, 2)
    assert ndcg(score, gain, valid) == ndcg(score[:, short], gain[:, short])
    assert ordered_pair_ratio(score, gain, valid) == ordered_pair_ratio(
        score[:, short], gain[:, short]
    )


def test_padding_that_scores_highest_is_neither_ranked_nor_paired() -> None:
    score, gain = torch.tensor([[-2.0, -1.0, 9.0]]), torch.tensor([[2.0, 1.0, 5.0]])
    valid = torch.tensor([[True, True, False]])
    assert ordered_pair_ratio(score, gain, valid).item() == 0.0  # the one pair is wrong
    second = 1.0 / math.log2(3.0)  # the discount of rank 2
    want = (1.0 + 2.0 * second) / (2.0 + second)
    assert ndcg(score, gain, valid).item() == pytest.approx(want)


def test_lists_without_a_signal_are_nan() -> None:
    assert ndcg(torch.ones(1, 3), torch.zeros(1, 3)).isnan().all()
    assert ordered_pair_ratio(torch.ones(1, 3), torch.ones(1, 3)).isnan().all()


@pytest.mark.usefixtures("unchecked_shapes")
def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"\[2, 3\] and \[2, 4\]"):
        ndcg(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(ValueError, match="gain must be at least 0, got -1"):
        ndcg(torch.ones(1, 2), torch.tensor([[1.0, -1.0]]))


def test_hit_rate_recall_and_ndcg_of_one_relevant_entry() -> None:
    ranked = torch.tensor([[5, 3, 9, 1], [2, 8, -1, -1], [7, 6, 4, 0]])
    target = torch.tensor([9, 5, 7])
    assert hit_rate(ranked, target).tolist() == [1.0, 0.0, 1.0]
    recall, ndcg_at = recall_ndcg(ranked, target, 2)
    assert recall.tolist() == [0.0, 0.0, 1.0]
    assert ndcg_at.tolist() == [0.0, 0.0, 1.0]
    # rank 3 gives 1 / log2(4)
    assert recall_ndcg(ranked, target, 3)[1].tolist() == [0.5, 0.0, 1.0]
    assert recall_ndcg(ranked, target, 99)[0].tolist() == [1.0, 0.0, 1.0]
    with pytest.raises(ValueError, match="cutoff must be at least 1, got 0"):
        recall_ndcg(ranked, target, 0)


def test_ndcg_of_one_relevant_entry_is_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    ranked = torch.stack([torch.randperm(20, generator=generator) for _ in range(30)])
    target = torch.randint(0, 20, (30,), generator=generator)
    score = torch.empty(30, 20).scatter_(1, ranked, -torch.arange(20.0).expand(30, -1))
    relevant = torch.nn.functional.one_hot(target, 20)
    expected = [
        ndcg_score(r[None], s[None], k=10)
        for r, s in zip(relevant.numpy(), score.numpy(), strict=True)
    ]
    assert recall_ndcg(ranked, target, 10)[1].tolist() == pytest.approx(expected, abs=1e-6)
