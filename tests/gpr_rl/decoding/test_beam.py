import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpr_rl.decoding import CodeTrie, beam_search, greedy
from gpr_rl.decoding.beam import _top, _topk
from gpr_rl.schema import Candidates
from tests.references.decoding_fakes import (
    FinalValuePolicy,
    IncrementalPolicy,
    Path,
    StepPolicy,
    catalogue,
    legal_prefixes,
    requests,
)


def log_probs_of_children(
    policy: StepPolicy, request: int, prefix: Path, legal: set[Path], renormalize: bool
) -> dict[int, float]:
    row = policy.log_prob_of(request, prefix)
    row_of = {code: row[code] for code in range(len(row)) if (*prefix, code) in legal}
    if renormalize and row_of:
        norm = math.log(sum(math.exp(x) for x in row_of.values()))
        row_of = {code: x - norm for code, x in row_of.items()}
    return row_of


def reference_beam(
    policy: StepPolicy,
    request: int,
    codes: Tensor,
    eligible: Tensor,
    width: int,
    value_weight: float = 0.0,
    renormalize: bool = False,
    num_valued: int | None = None,
) -> list[tuple[Path, list[float], float]]:
    """Beam search in plain Python: (path, log-probabilities, score), best first."""
    num_levels = codes.shape[1]
    beams: list[tuple[Path, list[float], float]] = [((), [], 0.0)]
    for level in range(num_levels):
        legal = legal_prefixes(codes, eligible, level + 1)
        children = []
        for prefix, so_far, _ in beams:
            options = log_probs_of_children(policy, request, prefix, legal, renormalize)
            likely = sorted(options.items(), key=lambda item: (-item[1], item[0]))
            num_likely = num_valued or (width if prefix else None)
            for code, log_prob in likely[: num_likely if value_weight else None]:
                path, log_probs = (*prefix, code), [*so_far, log_prob]
                score = sum(log_probs)
                if level < num_levels - 1 or hasattr(policy, "final_value"):
                    score += value_weight * policy.value_of(request, path)
                children.append((path, log_probs, score))
        beams = sorted(children, key=lambda child: (-child[2], child[0]))[:width]
    return beams


def check_against(
    found: Candidates,
    expected: list[list[tuple[Path, list[float], float]]],
    policy: StepPolicy,
    codes: Tensor,
    eligible: Tensor,
) -> None:
    for b, rows in enumerate(expected):
        assert int(found.valid[b].sum()) == len(rows)
        for k, (path, log_prob, _) in enumerate(rows):
            assert tuple(found.codes[b, k].tolist()) == path
            assert found.log_prob[b, k].tolist() == pytest.approx(log_prob, rel=1e-12, abs=1e-12)
            values = [policy.value_of(b, path[:level]) for level in range(len(path))]
            assert found.value[b, k].tolist() == values
            rivals = [a for a in range(len(codes)) if codes[a].tolist() == list(path)]
            assert int(found.ad_id[b, k]) == min(a for a in rivals if eligible[b, a])
        assert found.codes[b, len(rows) :].eq(0).all()
        assert found.log_prob[b, len(rows) :].eq(-torch.inf).all()
        assert found.value[b, len(rows) :].eq(0).all()
        assert found.ad_id[b, len(rows) :].eq(-1).all()
        assert not found.valid[b, len(rows) :].any()
    assert not found.value.isnan().any()


SIZES = {
    "seed": st.integers(0, 10_000),
    "num_levels": st.integers(1, 4),
    "num_codes": st.integers(1, 4),
    "num_ads": st.integers(1, 40),
}


@settings(max_examples=25, deadline=None)
@given(**SIZES, renormalize=st.booleans(), whole=st.booleans())
def test_a_wide_beam_is_brute_force(
    seed: int, num_levels: int, num_codes: int, num_ads: int, renormalize: bool, whole: bool
) -> None:
    codes, eligible = catalogue(seed, num_ads, num_levels, num_codes, 4)
    policy = StepPolicy(seed, 4, num_levels, num_codes, whole)
    expected = []
    for b in range(4):
        rows = []
        for path in legal_prefixes(codes, eligible[b], num_levels):
            log_prob = [
                log_probs_of_children(
                    policy,
                    b,
                    path[:level],
                    legal_prefixes(codes, eligible[b], level + 1),
                    renormalize,
                )[path[level]]
                for level in range(num_levels)
            ]
            rows.append((path, log_prob, sum(log_prob)))
        expected.append(sorted(rows, key=lambda row: (-round(row[2], 12), row[0])))
    width = num_codes**num_levels
    found = beam_search(
        policy,
        requests(0, 1, 2, 3),
        CodeTrie(codes, num_codes=num_codes),
        width,
        eligible,
        renormalize=renormalize,
    )
    assert found.codes.shape == (4, width, num_levels)
    if whole and renormalize:  # near-ties of rounded sums may swap, so compare as sets
        got = [
            [tuple(p) for p in row[ok].tolist()]
            for row, ok in zip(found.codes, found.valid, strict=True)
        ]
        assert [sorted(row) for row in got] == [sorted(r[0] for r in row) for row in expected]
    else:
        check_against(found, expected, policy, codes, eligible)


@settings(max_examples=40, deadline=None)
@given(
    **SIZES,
    width=st.integers(1, 7),
    value_weight=st.sampled_from([0.0, 0.5, -1.0]),
    whole=st.booleans(),
    kind=st.sampled_from([StepPolicy, IncrementalPolicy, FinalValuePolicy]),
    more_valued=st.integers(0, 2),
)
def test_narrow_and_guided_beams_agree_with_plain_python(
    seed: int,
    num_levels: int,
    num_codes: int,
    num_ads: int,
    width: int,
    value_weight: float,
    whole: bool,
    kind: type[StepPolicy],
    more_valued: int,
) -> None:
    codes, eligible = catalogue(seed, num_ads, num_levels, num_codes, 4)
    policy = kind(seed, 4, num_levels, num_codes, whole)
    trie = CodeTrie(codes, num_codes=num_codes)
    num_valued = width + more_valued if more_valued else None
    expected = [
        reference_beam(policy, b, codes, shown, width, value_weight, num_valued=num_valued)
        for b, shown in enumerate(eligible)
    ]
    found = beam_search(
        policy,
        requests(0, 1, 2, 3),
        trie,
        width,
        eligible,
        value_weight,
        num_valued=num_valued,
    )
    check_against(found, expected, policy, codes, eligible)


@pytest.mark.parametrize("value_weight", [0.0, 0.5])
def test_a_request_does_not_see_the_rest_of_the_batch(value_weight: float) -> None:
    codes, eligible = catalogue(0, 60, 3, 6, 8)
    policy = FinalValuePolicy(0, 8, 3, 6)
    trie = CodeTrie(codes, num_codes=6)
    together = beam_search(policy, requests(*range(8)), trie, 5, eligible, value_weight)
    for b in range(8):
        alone = beam_search(policy, requests(b), trie, 5, eligible[b : b + 1], value_weight)
        for name in ("codes", "log_prob", "value", "ad_id", "valid"):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[b]), name


def test_equal_scores_go_to_the_lower_path() -> None:
    codes = torch.cartesian_prod(*[torch.arange(8)] * 3).flip(0)
    policy = StepPolicy(0, 1, 3, 8)
    for table in policy.tables:
        table.fill_(-1.0)
    found = beam_search(policy, requests(0), CodeTrie(codes, num_codes=8), 20)
    assert found.codes[0].tolist() == sorted(codes.tolist())[:20]


def test_a_hand_worked_value_changes_the_choice() -> None:
    # Codes 0 and 1 have log-probabilities -1 and -2; V of prefix (1) is 3, V of (0) is 1.
    # With weight 1 the beam of one keeps -2 + 3 = 1 over -1 + 1 = 0; with weight 0 it keeps -1,
    # and so it does when the value judges the likeliest child only.
    policy = StepPolicy(0, 1, 2, 2)
    policy.tables[0][0, 0] = torch.tensor([-1.0, -2.0])
    policy.values[1][0] = torch.tensor([1.0, 3.0])
    trie = CodeTrie(torch.tensor([[0, 0], [1, 1]]), num_codes=2)

    def chosen(value_weight: float, num_valued: int, reward_scale: float = 1.0) -> list[int]:
        found = beam_search(
            policy,
            requests(0),
            trie,
            1,
            value_weight=value_weight,
            reward_scale=reward_scale,
            num_valued=num_valued,
        )
        return found.codes[0, 0].tolist()

    assert chosen(0.0, 2) == [0, 0]
    assert chosen(1.0, 2) == [1, 1]
    assert chosen(1.0, 1) == [0, 0]
    assert chosen(1.0, 2, reward_scale=4.0) == [0, 0]  # -2 + 3/4 < -1 + 1/4


def test_a_value_prunes_the_first_level() -> None:
    # Of eight first codes a beam of two would keep 0 and 1; prefix 7 is worth 1e6.
    policy = FinalValuePolicy(0, 1, 2, 8)
    policy.tables[0][0, 0] = torch.arange(8).double().neg().log_softmax(-1)
    policy.values[1][0] = torch.zeros(8).index_fill(0, torch.tensor([7]), 1e6)
    policy.values[2] = policy.values[1][:, :, None].expand(-1, -1, 8).flatten(1)
    codes = torch.cartesian_prod(torch.arange(8), torch.arange(2))
    found = beam_search(policy, requests(0), CodeTrie(codes, num_codes=8), 2, value_weight=1.0)
    assert sorted(found.codes[0].tolist()) == [[7, 0], [7, 1]]


def test_no_value_weight_evaluates_no_more_than_the_beams() -> None:
    codes = torch.cartesian_prod(*[torch.arange(6)] * 3)
    policy = IncrementalPolicy(0, 1, 3, 6)
    beam_search(policy, requests(0), CodeTrie(codes, num_codes=6), 4)
    assert policy.num_states == 1 + 4 + 4
    policy.num_states = 0
    beam_search(policy, requests(0), CodeTrie(codes, num_codes=6), 4, None, 1.0)
    assert policy.num_states == 1 + 6 + 4 * 4  # all first codes, then the likeliest of each beam


def test_an_illegal_beam_never_comes_back() -> None:
    # One legal path in a beam of four: three beams are empty from level one on, whatever the
    # policy says about their children.
    policy = FinalValuePolicy(0, 1, 3, 4)
    policy.tables = [x.fill_(-1e-9) for x in policy.tables]
    policy.values = [x.fill_(1e9) for x in policy.values]
    codes = torch.cartesian_prod(*[torch.arange(4)] * 3)
    eligible = (codes == torch.tensor([3, 2, 1])).all(-1)[None]
    for weight in (0.0, 1.0):
        found = beam_search(policy, requests(0), CodeTrie(codes, num_codes=4), 4, eligible, weight)
        assert found.valid.tolist() == [[True, False, False, False]]
        assert found.codes[0].tolist() == [[3, 2, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_greedy_takes_the_likeliest_legal_code_at_every_level() -> None:
    codes, eligible = catalogue(1, 40, 3, 5, 4)
    policy = StepPolicy(1, 4, 3, 5)
    found = greedy(policy, requests(0, 1, 2, 3), CodeTrie(codes, num_codes=5), eligible)
    assert found.valid[:, 0].tolist() == [False, True, True, True]
    for b in range(1, 4):
        [(path, log_prob, _)] = reference_beam(policy, b, codes, eligible[b], 1, renormalize=True)
        assert tuple(found.codes[b, 0].tolist()) == path
        assert found.log_prob[b, 0].tolist() == pytest.approx(log_prob)


def test_says_what_is_wrong() -> None:
    trie = CodeTrie(torch.tensor([[0, 0], [1, 1]]), num_codes=2)
    policy = StepPolicy(0, 1, 2, 2)
    with pytest.raises(ValueError, match="num_candidates must be at least 1, got 0"):
        beam_search(policy, requests(0), trie, 0)
    with pytest.raises(ValueError, match="num_valued must be at least num_candidates = 2, got 1"):
        beam_search(policy, requests(0), trie, 2, num_valued=1)
    with pytest.raises(ValueError, match=r"reward_scale must be positive and finite, got 0\.0"):
        beam_search(policy, requests(0), trie, 1, reward_scale=0.0)
    policy.values[1][0, 1] = torch.nan
    beam_search(policy, requests(0), trie, 2)
    with pytest.raises(ValueError, match="value of a legal prefix of request 0 is not finite"):
        beam_search(policy, requests(0), trie, 2, None, 1.0)
    policy.tables[1][0, 1] = torch.nan
    with pytest.raises(ValueError, match="log_prob of request 0, prefix 1 is NaN"):
        beam_search(policy, requests(0), trie, 2)
    with pytest.raises(ValueError, match=r"log_prob \[1, 1, 3\] .* got \[1, 1, 2\]"):
        beam_search(policy, requests(0), CodeTrie(trie.codes, num_codes=3), 2)


@pytest.mark.parametrize("num_scores", [160, 640, 641, 4096])
@pytest.mark.parametrize("num_values", [3, 50, 10**9])
def test_the_best_of_a_long_row_are_those_of_a_stable_sort(
    num_scores: int, num_values: int
) -> None:
    generator = torch.Generator().manual_seed(num_scores)
    draws = torch.randint(num_values, (6, num_scores), generator=generator).float()
    draws[0] = -torch.inf
    draws[1, 4:] = -torch.inf
    for k in (1, 4, 19, 40):
        order = draws.argsort(dim=1, descending=True, stable=True)[:, :k]
        assert torch.equal(_top(draws, k), order.sort(1).values)
        best, index = _topk(draws, k)
        assert torch.equal(best, draws.topk(k).values)
        assert torch.equal(draws.gather(1, index), best)
