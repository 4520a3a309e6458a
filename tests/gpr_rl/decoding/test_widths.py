"""Widths per level, and beams that are wider where the value is higher (GPR 2.3)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpr_rl.decoding import CodeTrie, WidthRule, beam_search
from tests.references.decoding_fakes import Path, StepPolicy, catalogue, legal_prefixes, requests


def allotted(values: list[float], width: int, rule: WidthRule) -> list[int]:
    """c_i in plain Python."""
    if rule.budget == math.inf:
        return [rule.most] * len(values)
    room = math.floor(rule.budget * width)
    weight = [math.exp((v - max(values)) / rule.temperature) for v in values]
    share = [room * w / sum(weight) for w in weight]
    count = [math.floor(s) for s in share]
    left = room - sum(count)
    for i in sorted(range(len(values)), key=lambda i: (count[i] - share[i], i))[:left]:
        count[i] += 1
    count = [min(max(c, rule.least), rule.most) for c in count]
    for i in sorted(range(len(values)), key=lambda i: (values[i], i)):
        while count[i] > rule.least and sum(count) > room:
            count[i] -= 1
    return count


def test_higher_values_put_forward_more_by_hand() -> None:
    rule = WidthRule(least=1, most=6, budget=2.0, temperature=1.0)
    value = torch.tensor([[math.log(4.0), math.log(2.0), 0.0, 0.0]])
    alive = torch.ones(1, 4, dtype=torch.bool)
    # C = 8 in shares 4 : 2 : 1 : 1
    assert rule.allot(value, alive, 4).tolist() == [[4, 2, 1, 1]]
    # C = 10: 5, 2.5, 1.25, 1.25; the one that is left goes to the largest remainder
    assert rule.allot(value, alive, 5).tolist() == [[5, 3, 1, 1]]
    assert WidthRule(least=1, most=3, budget=2.0).allot(value, alive, 4).tolist() == [[3, 2, 1, 1]]
    # at least 2 each asks for 4 + 2 + 2 + 2 = 10 of 8: the least valued give up what they can
    assert WidthRule(least=2, most=6, budget=2.0).allot(value, alive, 4).tolist() == [[2, 2, 2, 2]]
    alive[0, 0] = False
    assert rule.allot(value, alive, 4).tolist() == [[0, 4, 2, 2]]


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.integers(-8, 8), min_size=1, max_size=7),
    width=st.integers(1, 9),
    least=st.integers(1, 3),
    more=st.integers(0, 5),
    budget=st.sampled_from([1.0, 2.0, 3.5, math.inf]),
    temperature=st.sampled_from([0.5, 2.0]),
)
def test_the_allotment_is_that_of_plain_python(
    values: list[int], width: int, least: int, more: int, budget: float, temperature: float
) -> None:
    rule = WidthRule(least=least, most=least + more, budget=budget, temperature=temperature)
    value = torch.tensor([[v / 3 for v in values]], dtype=torch.float64)
    found = rule.allot(value, torch.ones(1, len(values), dtype=torch.bool), width)
    assert found.tolist() == [allotted(value[0].tolist(), width, rule)]


def reference(
    policy: StepPolicy,
    request: int,
    codes: torch.Tensor,
    widths: list[int],
    rule: WidthRule | None,
) -> list[tuple[Path, float]]:
    """The beam in plain Python."""
    beams: list[tuple[Path, float]] = [((), 0.0)]
    every = torch.ones(len(codes), dtype=torch.bool)
    for level, width in enumerate(widths):
        legal = legal_prefixes(codes, every, level + 1)
        count = [math.inf] * len(beams)
        if rule is not None and level:
            count = allotted([policy.value_of(request, p) for p, _ in beams], width, rule)
        children = []
        for (prefix, total), most in zip(beams, count, strict=True):
            row = policy.log_prob_of(request, prefix)
            own = [((*prefix, c), total + x) for c, x in enumerate(row) if (*prefix, c) in legal]
            children += sorted(own, key=lambda child: (-child[1], child[0]))[: min(most, 10**9)]
        beams = sorted(children, key=lambda child: (-child[1], child[0]))[:width]
        beams.sort()
    return sorted(beams, key=lambda child: (-child[1], child[0]))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    widths=st.lists(st.integers(1, 6), min_size=3, max_size=3),
    limits=st.sampled_from([None, (1, 1), (1, 2), (2, 3)]),
    budget=st.sampled_from([1.0, 2.0]),
)
def test_a_beam_of_several_widths_is_that_of_plain_python(
    seed: int, widths: list[int], limits: tuple[int, int] | None, budget: float
) -> None:
    codes, _ = catalogue(seed, 40, 3, 4, 1)
    policy = StepPolicy(seed, 3, 3, 4)
    rule = limits and WidthRule(least=limits[0], most=limits[1], budget=budget)
    kept = min(widths[-1], 4)
    found = beam_search(
        policy, requests(0, 1, 2), CodeTrie(codes, 4), kept, widths=widths, width_range=rule
    )
    for b in range(3):
        wanted = reference(policy, b, codes, widths, rule or None)[:kept]
        assert found.codes[b, found.valid[b]].tolist() == [list(path) for path, _ in wanted]
        totals = found.log_prob[b, found.valid[b]].sum(-1).tolist()
        assert totals == pytest.approx([total for _, total in wanted])


def test_without_limits_it_is_the_plain_beam() -> None:
    codes, eligible = catalogue(1, 60, 3, 5, 4)
    policy, trie = StepPolicy(1, 4, 3, 5), CodeTrie(codes, 5)
    asked = requests(0, 1, 2, 3)
    plain = beam_search(policy, asked, trie, 6, eligible)
    every = WidthRule(least=1, most=5, budget=math.inf, temperature=math.inf)
    for more in ({"widths": (6, 6, 6)}, {"width_range": every}):
        found = beam_search(policy, asked, trie, 6, eligible, **more)
        assert torch.equal(found.codes, plain.codes)
        assert torch.equal(found.log_prob, plain.log_prob)


def test_the_pair_is_the_rule_of_its_bounds() -> None:
    codes, eligible = catalogue(2, 60, 3, 5, 4)
    policy, trie = StepPolicy(2, 4, 3, 5), CodeTrie(codes, 5)
    one, other = (
        beam_search(policy, requests(0, 1, 2, 3), trie, 6, eligible, width_range=limits)
        for limits in ((1, 2), WidthRule(least=1, most=2))
    )
    assert torch.equal(one.codes, other.codes)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"widths": (4, 4)}, "widths must be 3 numbers"),
        ({"widths": (4, 0, 4)}, "of at least 1"),
        ({"widths": (4, 4, 3)}, "the last at least num_candidates = 4"),
        ({"widths": (9, 4, 4), "num_valued": 8}, "num_valued must be at least the widest level"),
        ({"width_range": (0, 3)}, "least must be at least 1"),
        ({"width_range": (4, 3)}, "got 4 and 3"),
    ],
)
def test_says_what_is_wrong(more: dict, message: str) -> None:
    codes, _ = catalogue(0, 20, 3, 4, 1)
    with pytest.raises(ValueError, match=message):
        beam_search(StepPolicy(0, 1, 3, 4), requests(0), CodeTrie(codes, 4), 4, **more)


def test_a_rule_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        WidthRule(least=1, most=2, temperature=0.0)
    with pytest.raises(ValueError, match=r"budget must be at least 1, got 0\.5"):
        WidthRule(least=1, most=2, budget=0.5)
