"""Budgeted tree search against one in plain Python, and what it promises."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpr_rl.decoding import CodeTrie, TreeSearchConfig, tree_search
from gpr_rl.random import Purpose, uniform
from tests.references.decoding_fakes import (
    FinalValuePolicy,
    Path,
    StepPolicy,
    catalogue,
    legal_prefixes,
    requests,
)


class CountingPolicy(FinalValuePolicy):
    """`step` and `final_value` through the tables; counts prefixes per request."""

    step = StepPolicy.step

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.asked: dict[int, int] = {}

    def count(self, context: Tensor, width: int) -> None:
        for request in context[:, 0].tolist():
            self.asked[request] = self.asked.get(request, 0) + width

    def final_value(self, context: Tensor, codes: Tensor) -> Tensor:
        self.count(context, codes.shape[1])
        return super().final_value(context, codes)


def _step(self: CountingPolicy, context: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor]:
    self.count(context, prefix.shape[1])
    return StepPolicy.step(self, context, prefix)


CountingPolicy.step = _step  # type: ignore[method-assign,assignment]


def search_one(
    policy: StepPolicy,
    request: int,
    codes: Tensor,
    eligible: Tensor,
    budget: int,
    config: TreeSearchConfig,
) -> list[tuple[Path, float]]:
    """The whole paths that a search finds with their values, best first."""
    num_levels, num_codes = codes.shape[1], policy.num_codes
    legal = [set(legal_prefixes(codes, eligible, n)) for n in range(num_levels + 1)]
    nodes: dict[Path, dict] = {}

    def add(path: Path) -> None:
        options: dict[int, float] = {}
        if len(path) < num_levels:
            row = policy.log_prob_of(request, path)
            allowed = [c for c in range(num_codes) if (*path, c) in legal[len(path) + 1]]
            norm = math.log(sum(math.exp(row[c]) for c in allowed)) if allowed else 0.0
            options = {c: row[c] - norm for c in allowed}
        entropy = -sum(math.exp(x) * x for x in options.values())
        value = policy.value_of(request, path)
        nodes[path] = {
            "value": value,
            "goal": value / config.reward_scale + config.entropy_weight * entropy,
            "left": options,
            "visits": 0,
            "total": 0.0,
        }
        if path:
            above = nodes[path[:-1]]
            nodes[path]["total"] = above["total"] + above["left"].pop(path[-1])
        for n in range(len(path) + 1):
            nodes[path[:n]]["visits"] += 1

    add(())
    for level in range(num_levels):
        children = [
            (-nodes[path]["total"] - x, (*path, c))
            for path in nodes
            if len(path) == level
            for c, x in nodes[path]["left"].items()
        ]
        for _, path in sorted(children)[: config.width]:
            add(path)
    every = torch.arange(num_codes)
    for turn in range(budget - 1 - config.width * num_levels):
        inner = [path for path in nodes if len(path) < num_levels]
        mean = {
            n: sum(nodes[p]["goal"] for p in inner if len(p) == n)
            / max(1, sum(len(p) == n for p in inner))
            for n in range(num_levels)
        }
        grows = {
            p
            for p in inner
            if nodes[p]["left"] and nodes[p]["goal"] >= mean[len(p)] - 1e-6 * abs(mean[len(p)])
        }
        live = {p for p in inner if any(q[: len(p)] == p for q in grows)}
        if () not in live:
            break

        def upper(path: Path) -> float:
            bonus = math.log(nodes[()]["visits"] + 1) / (nodes[path]["visits"] + 1)
            return nodes[path]["goal"] + config.exploration * math.sqrt(bonus)

        here: Path = ()
        while True:
            below = [p for p in live if len(p) == len(here) + 1 and p[:-1] == here]
            best = max(below, key=upper, default=None)
            if best is None or (here in grows and upper(here) >= upper(best)):
                break
            here = best
        noise = uniform(
            7,
            Purpose.TREE_SEARCH,
            torch.tensor(request),
            torch.tensor(3),
            torch.tensor(turn),
            every,
        ).tolist()
        left = nodes[here]["left"]
        code = max(left, key=lambda c: left[c] - math.log(-math.log(noise[c])))
        add((*here, code))
    whole = [(p, nodes[p]["value"]) for p in nodes if len(p) == num_levels]
    return sorted(whole, key=lambda item: -item[1])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_levels=st.integers(1, 4),
    num_codes=st.integers(1, 4),
    num_ads=st.integers(1, 40),
    width=st.integers(1, 3),
    more=st.integers(0, 25),
    exploration=st.sampled_from([0.0, 0.3, 2.0]),
)
def test_it_is_the_search_in_plain_python(
    seed: int,
    num_levels: int,
    num_codes: int,
    num_ads: int,
    width: int,
    more: int,
    exploration: float,
) -> None:
    codes, eligible = catalogue(seed, num_ads, num_levels, num_codes, 4)
    eligible[1] = False
    policy = CountingPolicy(seed, 4, num_levels, num_codes)
    config = TreeSearchConfig(width=width, exploration=exploration, reward_scale=2.0)
    budget = 1 + width * num_levels + more
    found = tree_search(
        policy, requests(0, 1, 2, 3), CodeTrie(codes, num_codes), 5, budget, 7, 3, eligible,
        config=config,
    )  # fmt: skip
    assert all(count <= budget for count in policy.asked.values())
    for b in range(4):
        wanted = search_one(policy, b, codes, eligible[b], budget, config)[:5]
        assert found.codes[b, found.valid[b]].tolist() == [list(path) for path, _ in wanted]
        for k, (path, _) in enumerate(wanted):
            assert codes[found.ad_id[b, k]].tolist() == list(path)
            assert eligible[b, found.ad_id[b, k]]
            before = [policy.value_of(b, path[:n]) for n in range(num_levels)]
            assert found.value[b, k].tolist() == before
        assert found.ad_id[b, len(wanted) :].eq(-1).all()
        assert found.log_prob[b, len(wanted) :].eq(-torch.inf).all()


def test_a_large_budget_finds_every_path() -> None:
    codes, eligible = catalogue(5, 30, 3, 3, 3)
    policy = CountingPolicy(5, 3, 3, 3)
    asked = requests(0, 1, 2)
    config = TreeSearchConfig(width=1, exploration=100.0)
    found = tree_search(policy, asked, CodeTrie(codes, 3), 27, 400, 0, 0, eligible, config=config)
    for b in range(3):
        every = legal_prefixes(codes, eligible[b], 3)
        paths = {tuple(path) for path in found.codes[b, found.valid[b]].tolist()}
        assert paths <= set(every)
        assert len(paths) >= len(every) / 2  # what is below the mean of its depth stays closed


def test_a_request_is_alone() -> None:
    codes, eligible = catalogue(1, 40, 3, 4, 5)
    policy, trie = CountingPolicy(1, 5, 3, 4), CodeTrie(codes, 4)
    whole = tree_search(policy, requests(0, 1, 2, 3, 4), trie, 6, 40, 0, 2, eligible)
    for b in (0, 3):
        alone = tree_search(policy, requests(b), trie, 6, 40, 0, 2, eligible[b : b + 1])
        assert torch.equal(alone.codes[0], whole.codes[b])
        assert torch.equal(alone.log_prob[0], whole.log_prob[b])


def test_without_a_final_value_that_of_the_last_prefix_stands_in() -> None:
    codes, _ = catalogue(1, 40, 2, 4, 1)
    policy = StepPolicy(1, 1, 2, 4)
    found = tree_search(policy, requests(0), CodeTrie(codes, 4), 4, 20, 0, 0)
    paths = [tuple(path) for path in found.codes[0].tolist()]
    values = [policy.value_of(0, path[:1]) for path in paths]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"budget": 24}, r"budget must be at least 1 \+ width L = 25, got 24"),
        ({"num_candidates": 0}, "num_candidates must be at least 1"),
    ],
)
def test_says_what_is_wrong(more: dict, message: str) -> None:
    codes, _ = catalogue(0, 20, 3, 4, 1)
    given_ = {"num_candidates": 4, "budget": 40, "seed": 0, "draw": 0, **more}
    with pytest.raises(ValueError, match=message):
        tree_search(StepPolicy(0, 1, 3, 4), requests(0), CodeTrie(codes, 4), **given_)
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        TreeSearchConfig(width=0)
