import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from scipy import stats

from gpr_rl.decoding import CodeTrie, gumbel_paths
from tests.references.decoding_fakes import StepPolicy, catalogue, legal_prefixes, requests

FIELDS = ("codes", "log_prob", "value", "ad_id", "valid", "log_weight")
NUM_DRAWS = 6_000


def path_probabilities(
    policy: StepPolicy,
    request: int,
    codes: torch.Tensor,
    eligible: torch.Tensor,
    temperature: float,
) -> dict[tuple[int, ...], float]:
    """Return p of every legal path by plain Python."""
    num_levels = codes.shape[1]
    exact = {}
    for path in sorted(legal_prefixes(codes, eligible, num_levels)):
        probability = 1.0
        for level in range(num_levels):
            row = policy.log_prob_of(request, path[:level])
            siblings = [
                p[-1] for p in legal_prefixes(codes, eligible, level + 1) if p[:-1] == path[:level]
            ]
            weight = {code: math.exp(row[code] / temperature) for code in siblings}
            probability *= weight[path[level]] / sum(weight.values())
        exact[path] = probability
    return exact


class OnePolicy(StepPolicy):
    """The same distribution for every request, so that one batch holds many draws."""

    def encode(self, request: SimpleNamespace) -> torch.Tensor:
        return torch.zeros_like(request.request_id)[:, None]


MANY = requests(*range(NUM_DRAWS))


@pytest.fixture(scope="module")
def small() -> tuple[CodeTrie, StepPolicy, dict, torch.Tensor]:
    """A catalogue with six legal paths for the first request."""
    codes, eligible = catalogue(5, 7, 2, 3, 1)
    eligible = torch.ones_like(eligible)
    policy = OnePolicy(3, 1, 2, 3)
    exact = path_probabilities(policy, 0, codes, eligible[0], 1.0)
    assert 4 <= len(exact) <= 7
    return CodeTrie(codes, num_codes=3), policy, exact, eligible


def test_the_order_is_that_of_sampling_without_replacement(small: tuple) -> None:
    trie, policy, exact, _ = small
    expected = {}
    for ordered in itertools.permutations(exact, 2):
        first, second = (exact[path] for path in ordered)
        expected[ordered] = first * second / (1.0 - first)
    assert sum(expected.values()) == pytest.approx(1.0)
    drawn = gumbel_paths(policy, MANY, trie, 2, 11, 0)
    found = [tuple(map(tuple, paths)) for paths in drawn.codes.tolist()]
    common = [o for o in expected if expected[o] * NUM_DRAWS >= 5]
    counts = [found.count(o) for o in common]
    sizes = [expected[o] * NUM_DRAWS for o in common]
    rest = NUM_DRAWS - sum(counts)
    if NUM_DRAWS - sum(sizes) >= 1e-6:
        counts.append(rest)
        sizes.append(NUM_DRAWS - sum(sizes))
    assert stats.chisquare(counts, sizes).pvalue > 1e-3


def estimates(small: tuple, threshold: int) -> torch.Tensor:
    """Return an importance-weighted estimate of the mean reward per draw, by hand from the paper.

    `threshold` 2 takes kappa from the (K+1)-th path, 1 from the K-th, K = 2.
    """
    trie, policy, exact, _ = small
    reward = {path: 1.0 + 2.0 * i for i, path in enumerate(exact)}
    two = gumbel_paths(policy, MANY, trie, 2, 11, 0)
    one = gumbel_paths(policy, MANY, trie, 1, 11, 0)
    found = []
    for draw in range(NUM_DRAWS):
        weights = two.log_weight[draw].exp().tolist()
        paths = [tuple(path) for path in two.codes[draw].tolist()]
        if threshold == 1:
            # P(G > kappa) with kappa too high by one place: invert the weight of K = 1.
            p = exact[paths[0]]
            inclusion = p / float(one.log_weight[draw, 0].exp())
            kappa = math.log(p) - math.log(-math.log1p(-inclusion))
            weights = [exact[x] / -math.expm1(-math.exp(math.log(exact[x]) - kappa)) for x in paths]
        found.append(sum(w * reward[path] for w, path in zip(weights, paths, strict=True)))
    return torch.tensor(found, dtype=torch.float64)


def test_weights_are_unbiased_with_the_next_score_and_biased_with_the_last(small: tuple) -> None:
    exact = small[2]
    truth = sum(p * (1.0 + 2.0 * i) for i, p in enumerate(exact.values()))

    def z_score(sample: torch.Tensor) -> float:
        return float((sample.mean() - truth) / (sample.std() / len(sample) ** 0.5))

    assert abs(z_score(estimates(small, 2))) < 3.5
    assert abs(z_score(estimates(small, 1))) > 10.0


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_paths_are_legal_distinct_and_scored_by_the_distribution(temperature: float) -> None:
    codes, eligible = catalogue(2, 30, 3, 4, 3)
    policy = StepPolicy(2, 3, 3, 4)
    trie = CodeTrie(codes, num_codes=4)
    found = gumbel_paths(policy, requests(0, 1, 2), trie, 5, 7, 0, eligible, temperature)
    for b in range(3):
        exact = path_probabilities(policy, b, codes, eligible[b], temperature)
        paths = [
            tuple(path)
            for path, valid in zip(found.codes[b].tolist(), found.valid[b].tolist(), strict=True)
            if valid
        ]
        assert len(set(paths)) == len(paths) == min(5, len(exact))
        for k, path in enumerate(paths):
            assert float(found.log_prob[b, k].sum().exp()) == pytest.approx(exact[path])
            assert bool(eligible[b, found.ad_id[b, k]])
            for level in range(3):
                assert float(found.value[b, k, level]) == policy.value_of(b, path[:level])


def test_few_legal_paths_are_all_returned_with_their_own_probability(small: tuple) -> None:
    trie, policy, exact, eligible = small
    found = gumbel_paths(policy, requests(0), trie, 9, 0, 0, eligible)
    count = len(exact)
    assert found.valid[0].tolist() == [True] * count + [False] * (9 - count)
    for k in range(count):
        path = tuple(found.codes[0, k].tolist())
        assert float(found.log_weight[0, k].exp()) == pytest.approx(exact[path])
    assert found.ad_id[0, count:].eq(-1).all()
    assert found.codes[0, count:].eq(0).all()
    assert found.log_prob[0, count:].eq(-torch.inf).all()
    assert found.log_weight[0, count:].eq(-torch.inf).all()


def test_results_depend_on_neither_batch_nor_k() -> None:
    codes, eligible = catalogue(2, 30, 3, 4, 3)
    policy = StepPolicy(2, 3, 3, 4)
    trie = CodeTrie(codes, num_codes=4)
    whole = gumbel_paths(policy, requests(0, 1, 2), trie, 4, 7, 0, eligible)
    alone = gumbel_paths(policy, requests(2), trie, 4, 7, 0, eligible[2:])
    fewer = gumbel_paths(policy, requests(0, 1, 2), trie, 2, 7, 0, eligible)
    for name in FIELDS:
        assert torch.equal(getattr(whole, name)[2:], getattr(alone, name)), name
    for name in FIELDS[:-1]:
        assert torch.equal(getattr(whole, name)[:, :2], getattr(fewer, name)), name
    other = gumbel_paths(policy, requests(0, 1, 2), trie, 4, 7, 1, eligible)
    assert not torch.equal(whole.codes, other.codes)


def test_unlikely_paths_and_requests_without_an_ad_stay_finite() -> None:
    codes, eligible = catalogue(2, 30, 3, 4, 3)
    policy = StepPolicy(2, 3, 3, 4)
    policy.tables[0][:, :, 0] = 0.0
    policy.tables[0][:, :, 1:] -= 200.0
    policy.tables = [x.float() for x in policy.tables]
    eligible[1] = False
    found = gumbel_paths(
        policy, requests(0, 1, 2), CodeTrie(codes, num_codes=4), 12, 7, 0, eligible
    )
    assert not found.valid[1].any()
    weights = found.log_weight[found.valid]
    assert weights.isfinite().all()
    assert weights.max() <= 1e-5
    assert found.log_prob[found.valid].isfinite().all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_candidates": 0}, "num_candidates must be at least 1, got 0"),
        ({"num_candidates": 1, "temperature": 0.0}, "temperature must be positive"),
    ],
)
def test_bad_arguments_are_named(small: tuple, kwargs: dict, message: str) -> None:
    trie, policy, _, eligible = small
    with pytest.raises(ValueError, match=message):
        gumbel_paths(policy, requests(0), trie, seed=0, draw=0, eligible=eligible, **kwargs)
