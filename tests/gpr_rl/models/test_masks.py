import math

import torch

from gpr_rl.models.masks import NUM_DISTANCE_BUCKETS, bucket_of_distance, hybrid_mask
from gpr_rl.schema import TokenType
from tests.gpr_rl.models.model_inputs import E, I, O, U

KINDS = [[U, O, E, I, O, E, I, E], [U, E, I, E, I, O, E], [U, O, O, E]]
PROMPTS = [5, 2, 4]


def _kind() -> torch.Tensor:
    return torch.tensor([[*row, *[TokenType.PAD] * (8 - len(row))] for row in KINDS])


def test_matches_the_rule_said_in_words() -> None:
    mask = hybrid_mask(_kind(), torch.tensor(PROMPTS))
    for row, (kinds, prompt) in enumerate(zip(KINDS, PROMPTS, strict=True)):
        for i, query in enumerate(kinds):
            expected = [
                j <= i or (i < prompt and j < prompt and query != I and key != I)
                for j, key in enumerate(kinds)
            ]
            assert mask[row, i, : len(kinds)].tolist() == expected


def test_nobody_sees_padding() -> None:
    mask = hybrid_mask(_kind(), torch.tensor([8, 8, 8]))
    for row, kinds in enumerate(KINDS):
        assert not mask[row, : len(kinds), len(kinds) :].any()


def test_without_hybrid_attention_it_is_causal() -> None:
    mask = hybrid_mask(_kind(), torch.tensor(PROMPTS), hybrid=False)
    assert torch.equal(mask, torch.ones(3, 8, 8, dtype=torch.bool).tril())


def test_distance_buckets_are_exact_then_logarithmic() -> None:
    bucket = bucket_of_distance(torch.arange(300)[:, None] - torch.arange(300))
    past = bucket[-1].flip(0).tolist()  # past[d] is the bucket of distance d
    assert past[:8] == list(range(8))
    # Above: 8 + floor(2 log2(d / 8)), at most 15. By squares, free of rounding: 2 log2(d / 8) >= k
    # where d^2 >= 64 * 2^k.
    for distance in range(8, 300):
        steps = max(k for k in range(20) if distance**2 >= 64 * 2**k)
        assert past[distance] == min(8 + steps, 15), distance
    assert math.isclose(past[128], 15)


def test_later_tokens_have_buckets_of_their_own() -> None:
    bucket = bucket_of_distance(torch.arange(20)[:, None] - torch.arange(20))
    half = NUM_DISTANCE_BUCKETS // 2
    upper = bucket.triu(1)
    assert torch.equal(upper, (bucket.mT + half).triu(1))
    assert bucket.tril().max() < half
