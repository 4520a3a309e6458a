import pytest
import torch
from scipy import stats

from gpr_rl.decoding import CodeTrie, beam_search, sample_paths
from gpr_rl.decoding.sample import _inverse_cdf
from tests.references.decoding_fakes import (
    IncrementalPolicy,
    StepPolicy,
    catalogue,
    legal_prefixes,
    requests,
)

FIELDS = ("codes", "log_prob", "value", "ad_id", "valid")


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_frequencies_follow_the_distribution_over_legal_paths(temperature: float) -> None:
    codes, eligible = catalogue(2, 30, 3, 4, 3)
    policy = StepPolicy(2, 3, 3, 4)
    trie = CodeTrie(codes, num_codes=4)
    found = sample_paths(policy, requests(0, 1, 2), trie, 20_000, 7, 0, eligible, temperature)
    for b in (1, 2):
        # Exact: product over levels of p^(1/T) over its sum across the legal children.
        exact = {}
        for path in sorted(legal_prefixes(codes, eligible[b], 3)):
            exact[path] = 1.0
            for level in range(3):
                legal = legal_prefixes(codes, eligible[b], level + 1)
                row = policy.log_prob_of(b, path[:level])
                weight = {
                    code: 2.718281828459045 ** (row[code] / temperature)
                    for code in range(4)
                    if (*path[:level], code) in legal
                }
                exact[path] *= weight[path[level]] / sum(weight.values())
        assert sum(exact.values()) == pytest.approx(1.0)
        drawn = [tuple(path) for path in found.codes[b].tolist()]
        assert set(drawn) <= set(exact)
        for k in range(50):
            assert float(found.log_prob[b, k].sum().exp()) == pytest.approx(exact[drawn[k]])
        common = [path for path in exact if exact[path] * 20_000 >= 5]
        rest = [path for path in exact if path not in common]
        counts = [drawn.count(path) for path in common]
        expected = [exact[path] * 20_000 for path in common]
        if rest:
            counts.append(sum(drawn.count(path) for path in rest))
            expected.append(sum(exact[path] for path in rest) * 20_000)
        assert stats.chisquare(counts, expected).pvalue > 1e-3
        assert len(common) > 5


def test_the_ends_of_the_cdf_are_legal_codes() -> None:
    # Codes 1 and 2 with probability 1/2 each: the first for noise below 1/2. A uniform number may
    # round to 1, which lies beyond every sum.
    log_prob = torch.tensor([[[0.0, 0.5, 0.5, 0.0]]]).log()
    noise = torch.tensor([[1e-17, 0.49, 0.5, 1.0]], dtype=torch.float64)
    assert _inverse_cdf(log_prob, noise).tolist() == [[1, 1, 2, 2]]


def test_draws_of_a_request_are_independent_of_each_other() -> None:
    # Two equally likely codes at each of two levels: candidates, levels, draws and requests each
    # give all four joint outcomes equally often when they are independent.
    policy = StepPolicy(0, 2, 2, 2, whole=True)
    policy.tables = [x.zero_() for x in policy.tables]
    trie = CodeTrie(torch.cartesian_prod(torch.arange(2), torch.arange(2)), num_codes=2)
    first = sample_paths(policy, requests(0, 1), trie, 8_000, 3, 0).codes
    second = sample_paths(policy, requests(0, 1), trie, 8_000, 3, 1).codes
    pairs = {
        "levels": (first[0, :, 0], first[0, :, 1]),
        "neighbours": (first[0, ::2, 0], first[0, 1::2, 0]),
        "draws": (first[0, :, 0], second[0, :, 0]),
        "requests": (first[0, :, 0], first[1, :, 0]),
    }
    for name, (a, b) in pairs.items():
        counts = torch.bincount(2 * a + b, minlength=4)
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3, name


def test_depends_on_neither_the_batch_nor_the_number_of_candidates() -> None:
    codes, eligible = catalogue(4, 50, 3, 5, 6)
    policy = StepPolicy(4, 6, 3, 5)
    trie = CodeTrie(codes, num_codes=5)
    together = sample_paths(policy, requests(0, 1, 2, 3, 4, 5), trie, 9, 1, 2, eligible)
    again = sample_paths(policy, requests(5, 3), trie, 4, 1, 2, eligible[[5, 3]])
    for name in FIELDS:
        whole = getattr(together, name)[[5, 3], :4]
        assert torch.equal(getattr(again, name), whole), name
    other_draw = sample_paths(policy, requests(0, 1, 2, 3, 4, 5), trie, 9, 1, 3, eligible)
    other_seed = sample_paths(policy, requests(0, 1, 2, 3, 4, 5), trie, 9, 2, 2, eligible)
    assert not torch.equal(other_draw.codes, together.codes)
    assert not torch.equal(other_seed.codes, together.codes)


def test_both_protocols_give_the_same_paths_with_their_values() -> None:
    codes, eligible = catalogue(5, 50, 3, 5, 4)
    trie = CodeTrie(codes, num_codes=5)
    slow = StepPolicy(5, 4, 3, 5)
    found = sample_paths(slow, requests(0, 1, 2, 3), trie, 6, 0, 0, eligible)
    fast = sample_paths(
        IncrementalPolicy(5, 4, 3, 5), requests(0, 1, 2, 3), trie, 6, 0, 0, eligible
    )
    for name in FIELDS:
        assert torch.equal(getattr(found, name), getattr(fast, name)), name
    assert found.valid.tolist() == [[False] * 6] + [[True] * 6] * 3
    for b in range(1, 4):
        for k in range(6):
            path = tuple(found.codes[b, k].tolist())
            expected = [slow.value_of(b, path[:level]) for level in range(3)]
            assert found.value[b, k].tolist() == expected
            assert bool(eligible[b, found.ad_id[b, k]])
            assert tuple(codes[found.ad_id[b, k]].tolist()) == path


def test_log_prob_is_what_a_renormalised_beam_gives_the_same_path() -> None:
    codes, eligible = catalogue(6, 20, 2, 4, 2)
    policy = StepPolicy(6, 2, 2, 4)
    trie = CodeTrie(codes, num_codes=4)
    found = sample_paths(policy, requests(0, 1), trie, 30, 0, 0, eligible)
    beam = beam_search(policy, requests(0, 1), trie, 16, eligible, renormalize=True)
    of_path = {
        tuple(path): log_prob
        for path, log_prob in zip(beam.codes[1].tolist(), beam.log_prob[1].tolist(), strict=True)
    }
    for path, log_prob in zip(found.codes[1].tolist(), found.log_prob[1].tolist(), strict=True):
        assert log_prob == pytest.approx(of_path[tuple(path)], rel=1e-12, abs=1e-12)


def test_without_eligible_ads_all_candidates_are_padding() -> None:
    codes, eligible = catalogue(7, 20, 3, 4, 1)
    found = sample_paths(
        StepPolicy(7, 1, 3, 4), requests(0), CodeTrie(codes, num_codes=4), 3, 0, 0, eligible
    )
    assert not found.valid.any()
    assert found.codes.eq(0).all()
    assert found.log_prob.eq(-torch.inf).all()
    assert found.value.eq(0).all()
    assert found.ad_id.eq(-1).all()


def test_says_what_is_wrong() -> None:
    trie = CodeTrie(torch.tensor([[0, 0], [1, 1]]), num_codes=2)
    policy = StepPolicy(0, 1, 2, 2)
    with pytest.raises(ValueError, match="num_candidates must be at least 1, got 0"):
        sample_paths(policy, requests(0), trie, 0, 0, 0)
    with pytest.raises(ValueError, match="temperature must be positive and finite, got 0"):
        sample_paths(policy, requests(0), trie, 1, 0, 0, temperature=0.0)
    policy.tables[0].fill_(-torch.inf)
    with pytest.raises(ValueError, match="-inf at every legal code"):
        sample_paths(policy, requests(0), trie, 1, 0, 0)
