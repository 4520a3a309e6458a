"""Estimators against sums over everything that could have been logged, and numbers by hand."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from agents.off_policy import (
    Estimate,
    PropensityError,
    cascade_doubly_robust,
    direct_method,
    doubly_robust,
    ips,
    slate_direct_method,
    slate_independent_ips,
    slate_reward_ips,
    slate_standard_ips,
    snips,
)
from agents.off_policy.plackett_luce import (
    conditional_probability,
    draw_slates,
    marginal_probability,
    reach_probability,
)


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, dtype=torch.float64, generator=generator)


def distribution(*shape: int, seed: int) -> Tensor:
    x = random(*shape, seed=seed) + 0.05
    return x / x.sum(-1, keepdim=True)


def same(found: Estimate, wanted: Estimate) -> None:
    torch.testing.assert_close(vars(found), vars(wanted))


# Three rows worked by hand: weights 2, 1/2, 1 and rewards 1, 4, 3.
REWARD, PROPENSITY, TARGET = f64(1, 4, 3), f64(0.25, 0.5, 0.5), f64(0.5, 0.25, 0.5)


def test_ips_by_hand():
    # terms 2, 2, 3: mean 7/3, variance ((1/3)^2 * 2 + (2/3)^2) / 2 = 1/3, standard error 1/3
    found = ips(REWARD, PROPENSITY, TARGET)
    assert float(found.value) == pytest.approx(7 / 3)
    assert float(found.std_error) == pytest.approx(1 / 3)
    assert float(found.low) == pytest.approx(7 / 3 - 1.959964 / 3, rel=1e-6)
    assert float(found.high) == pytest.approx(7 / 3 + 1.959964 / 3, rel=1e-6)
    # (3.5)^2 / (4 + 1/4 + 1)
    assert float(found.effective_sample_size) == pytest.approx(12.25 / 5.25)
    assert bool(found.supported)
    clipped = ips(REWARD, PROPENSITY, TARGET, max_weight=1.0)
    assert float(clipped.value) == pytest.approx((1 + 2 + 3) / 3)


def test_snips_by_hand():
    # 7 / 3.5 = 2; residuals w (r - 2): -2, 1, 1; squares 6; error sqrt(6 * 3 / 2) / 3.5 = 6/7
    found = snips(REWARD, PROPENSITY, TARGET)
    assert float(found.value) == pytest.approx(2.0)
    assert float(found.std_error) == pytest.approx(6 / 7)


def test_dm_and_dr_by_hand():
    # DR terms: 1 + 2 (1 - 2) = -1, 2 + (4 - 4) / 2 = 2, 5 + (3 - 1) = 7: mean 8/3
    expected, prediction = f64(1, 2, 5), f64(2, 4, 1)
    assert float(direct_method(expected).value) == pytest.approx(8 / 3)
    assert float(direct_method(expected).effective_sample_size) == 3.0
    found = doubly_robust(REWARD, PROPENSITY, TARGET, prediction, expected)
    assert float(found.value) == pytest.approx(8 / 3)
    assert float(found.std_error) == pytest.approx(math.sqrt((121 + 4 + 169) / 9 / 2 / 3))
    zero = torch.zeros(3, dtype=torch.float64)
    plain = doubly_robust(REWARD, PROPENSITY, TARGET, zero, zero)
    same(plain, ips(REWARD, PROPENSITY, TARGET))


class World:
    """Two requests, three ads, clicks; a log row is one of the 2 x 3 x 2 things that can happen."""

    def __init__(self, seed: int) -> None:
        self.logging, self.target = (distribution(2, 3, seed=seed + i) for i in (0, 1))
        self.click = random(2, 3, seed=seed + 2)
        self.truth = float((self.target * self.click).sum(-1).mean())
        rows = list(itertools.product(range(2), range(3), range(2)))
        self.request, self.ad, self.reward = torch.tensor(rows).T
        self.chance = 0.5 * self.at(self.logging) * self._of(self.at(self.click))

    def at(self, table: Tensor) -> Tensor:
        return table[self.request, self.ad]

    def _of(self, click: Tensor) -> Tensor:
        return torch.where(self.reward == 1, click, 1 - click)

    def expectation(self, estimate: Tensor) -> float:
        return float((self.chance * estimate).sum())


@pytest.mark.parametrize("seed", range(3))
def test_ips_and_dr_are_unbiased_over_all_logs_of_one_row(seed: int):
    world = World(seed)
    assert float(world.chance.sum()) == pytest.approx(1.0)
    one = [x[:, None] for x in (world.reward, world.at(world.logging), world.at(world.target))]
    assert world.expectation(ips(*one).value) == pytest.approx(world.truth, abs=1e-12)
    wrong = 5 * random(2, 3, seed=seed + 9)  # any model will do
    expected = (world.target * wrong).sum(-1)[world.request]
    found = doubly_robust(*one, world.at(wrong)[:, None], expected[:, None])
    assert world.expectation(found.value) == pytest.approx(world.truth, abs=1e-12)
    # a right model makes up for wrong propensities, and IPS has no such second chance
    propensity = world.at(random(2, 3, seed=seed + 7))[:, None]
    expected = (world.target * world.click).sum(-1)[world.request]
    model = world.at(world.click)[:, None], expected[:, None]
    found = doubly_robust(one[0], propensity, one[2], *model)
    assert world.expectation(found.value) == pytest.approx(world.truth, abs=1e-12)
    assert world.expectation(ips(one[0], propensity, one[2]).value) != pytest.approx(world.truth)


def test_the_standard_error_is_that_of_the_estimate():
    """Over all logs of three rows the mean of the squared error estimate is the true variance."""
    world = World(4)
    index = torch.tensor(list(itertools.product(range(12), repeat=3)))
    chance = world.chance[index].prod(-1)
    rows = (x[index] for x in (world.reward, world.at(world.logging), world.at(world.target)))
    found = ips(*rows)
    mean = (chance * found.value).sum()
    variance = (chance * (found.value - mean) ** 2).sum()
    assert float((chance * found.std_error**2).sum()) == pytest.approx(float(variance))


@given(st.floats(-100, 100), st.integers(0, 50))
def test_snips_moves_with_the_rewards_and_stays_among_them(shift: float, seed: int):
    reward, target = random(6, seed=seed), random(6, seed=seed + 1)
    propensity = random(6, seed=seed + 2).clamp_min(0.01)
    found = snips(reward, propensity, target)
    moved = snips(reward + shift, propensity, target)
    assert float(moved.value) == pytest.approx(float(found.value) + shift, abs=1e-9)
    assert float(reward.min()) - 1e-9 <= float(found.value) <= float(reward.max()) + 1e-9
    assert 0 < float(found.effective_sample_size) <= 6 + 1e-9
    assert float(moved.std_error) == pytest.approx(float(found.std_error), abs=1e-7)


def test_many_logs_and_policies_at_once_are_the_same_as_one_by_one():
    reward, propensity = random(4, 9), random(4, 9, seed=1).clamp_min(0.1)
    target = random(3, 4, 9, seed=2)
    whole = snips(reward, propensity, target)
    assert whole.value.shape == (3, 4)
    for p, r in itertools.product(range(3), range(4)):
        one = snips(reward[r], propensity[r], target[p, r])
        for name in ("value", "std_error", "low", "high", "effective_sample_size"):
            torch.testing.assert_close(getattr(whole, name)[p, r], getattr(one, name))


@pytest.mark.parametrize("value", [0.0, -0.1, 1.5, math.nan])
def test_an_impossible_propensity_names_its_row(value: float):
    propensity = f64(0.5, 0.5, value)
    for estimator in (ips, snips):
        with pytest.raises(PropensityError, match=r"propensity of row 2 must lie in \(0, 1\], got"):
            estimator(REWARD, propensity, TARGET)
    with pytest.raises(PropensityError, match=r"row \(1, 0\)"):
        slate_reward_ips(REWARD[:2, None], propensity[1:, None].flip(0).flip(0), TARGET[:2, None])


def test_other_bad_input_is_named():
    with pytest.raises(PropensityError, match=r"target probability of row 0 must lie in \[0, 1\]"):
        ips(REWARD, PROPENSITY, f64(-0.1, 0, 0))
    with pytest.raises(ValueError, match="reward of row 1 must be finite, got nan"):
        ips(f64(1, math.nan, 0), PROPENSITY, TARGET)
    with pytest.raises(ValueError, match="max_weight must be positive, got 0"):
        ips(REWARD, PROPENSITY, TARGET, max_weight=0.0)
    with pytest.raises(ValueError, match="must have at least one row"):
        ips(f64(), f64(), f64())


def test_without_support_nothing_is_claimed():
    nothing = torch.zeros(3, dtype=torch.float64)
    for found in (
        ips(REWARD, PROPENSITY, nothing),
        snips(REWARD, PROPENSITY, nothing),
        slate_standard_ips(REWARD[:, None], PROPENSITY[:, None], nothing[:, None]),
        slate_reward_ips(
            REWARD[:, None], PROPENSITY[:, None], nothing[:, None], self_normalized=True
        ),
    ):
        assert not bool(found.supported)
        assert float(found.value) == 0.0
        assert float(found.low) == -math.inf
        assert float(found.high) == float(found.std_error) == math.inf
        assert float(found.effective_sample_size) == 0.0
    model = doubly_robust(REWARD, PROPENSITY, nothing, REWARD, f64(1, 2, 3))
    assert float(model.value) == 2.0
    assert not bool(model.supported)


def test_one_row_has_no_error_estimate():
    for found in (ips(f64(1), f64(0.5), f64(0.5)), snips(f64(1), f64(0.5), f64(0.5))):
        assert float(found.value) == 1.0
        assert float(found.std_error) == math.inf


# --- slates -----------------------------------------------------------------------------------


class Slates:
    """One request, four ads, slates of three: all 24 of them with every probability."""

    def __init__(self, seed: int) -> None:
        self.logging, self.target = (distribution(1, 4, seed=seed + i) for i in (0, 1))
        self.ads = torch.tensor(list(itertools.permutations(range(4), 3)))
        self.row = torch.zeros(24, dtype=torch.int64)
        self.propensity = conditional_probability(self.logging, self.row, self.ads)
        self.probability = conditional_probability(self.target, self.row, self.ads)
        self.chance = self.propensity.prod(-1)

    def marginal(self, chance: Tensor) -> Tensor:
        """Return the probability of the slates' ads at their positions, by counting."""
        same = self.ads[:, None] == self.ads[None]
        return (same * chance[None, :, None]).sum(1)

    def truth(self, reward: Tensor) -> float:
        return float((self.probability.prod(-1) * reward.sum(-1)).sum())

    def expectation(self, estimate: Tensor) -> float:
        return float((self.chance * estimate).sum())

    def prefix(self, table: Tensor) -> Tensor:
        """Return numbers [24, 3] that depend on the ads down to each position only."""
        key = self.ads * torch.tensor([16, 4, 1])
        return table[key.cumsum(-1) + torch.tensor([0, 64, 128])]


@pytest.mark.parametrize("seed", range(3))
def test_slate_forms_are_unbiased_over_all_slates(seed: int):
    s = Slates(seed)
    assert float(s.chance.sum()) == pytest.approx(1.0)
    pair = s.propensity[:, None], s.probability[:, None]
    marginals = s.marginal(s.chance)[:, None], s.marginal(s.probability.prod(-1))[:, None]
    of_slate = random(24, 3, seed=seed)  # depends on the whole slate
    of_prefix = s.prefix(random(192, seed=seed))  # on the ads down to the position
    of_ad = random(3, 4, seed=seed)[torch.arange(3), s.ads]  # on ad and position
    for reward in (of_slate, of_prefix, of_ad):
        found = slate_standard_ips(reward[:, None], *pair)
        assert s.expectation(found.value) == pytest.approx(s.truth(reward), abs=1e-12)
    for reward in (of_prefix, of_ad):
        found = slate_reward_ips(reward[:, None], *pair)
        assert s.expectation(found.value) == pytest.approx(s.truth(reward), abs=1e-12)
    found = slate_independent_ips(of_ad[:, None], *marginals)
    assert s.expectation(found.value) == pytest.approx(s.truth(of_ad), abs=1e-12)
    # each form is wrong where the user does not behave as it believes
    found = slate_reward_ips(of_slate[:, None], *pair)
    assert abs(s.expectation(found.value) - s.truth(of_slate)) > 1e-3
    found = slate_independent_ips(of_prefix[:, None], *marginals)
    assert abs(s.expectation(found.value) - s.truth(of_prefix)) > 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_cascade_dr_is_unbiased_for_any_model(seed: int):
    s = Slates(seed)
    reward = s.prefix(random(192, seed=seed))
    prediction = s.prefix(3 * random(192, seed=seed + 5))
    # expectation over the next ad, by summing over the slates that share the ads above it
    joint = s.probability.cumprod(-1)
    expected = torch.zeros_like(prediction)
    for level in range(3):
        above = (s.ads[:, None, :level] == s.ads[None, :, :level]).all(-1)
        chance = s.probability.prod(-1)
        total = (above * chance).sum(-1)
        expected[:, level] = (above * chance * prediction[:, level]).sum(-1) / total
    pair = s.propensity[:, None], s.probability[:, None]
    found = cascade_doubly_robust(reward[:, None], *pair, prediction[:, None], expected[:, None])
    assert s.expectation(found.value) == pytest.approx(s.truth(reward), abs=1e-12)
    zero = torch.zeros_like(prediction)[:, None]
    plain = cascade_doubly_robust(reward[:, None], *pair, zero, zero)
    torch.testing.assert_close(plain.value, slate_reward_ips(reward[:, None], *pair).value)
    # the true sum of what follows as the model: the variance falls
    follow = torch.zeros_like(reward)
    for level in range(3):
        below = (s.ads[:, None, : level + 1] == s.ads[None, :, : level + 1]).all(-1)
        chance = s.probability.prod(-1)
        follow[:, level] = (below * chance * reward[:, level:].sum(-1)).sum(-1) / joint[:, level]
    value = torch.zeros_like(reward)
    for level in range(3):
        above = (s.ads[:, None, :level] == s.ads[None, :, :level]).all(-1)
        chance = s.probability.prod(-1)
        value[:, level] = (above * chance * follow[:, level]).sum(-1) / (above * chance).sum(-1)
    exact = cascade_doubly_robust(reward[:, None], *pair, follow[:, None], value[:, None])
    torch.testing.assert_close(exact.value, torch.full((24,), s.truth(reward)).double())
    assert float(slate_direct_method(value).value) == pytest.approx(s.truth(reward))


def test_slates_of_one_ad_are_single_ads():
    column = REWARD[:, None], PROPENSITY[:, None], TARGET[:, None]
    expected, prediction = f64(1, 2, 5), f64(2, 4, 1)
    for form in (slate_standard_ips, slate_reward_ips, slate_independent_ips):
        for limit in (None, 1.0):
            plain = ips(REWARD, PROPENSITY, TARGET, max_weight=limit)
            same(form(*column, max_weight=limit), plain)
            normal = snips(REWARD, PROPENSITY, TARGET, max_weight=limit)
            found = form(*column, self_normalized=True, max_weight=limit)
            same(found, normal)
    found = cascade_doubly_robust(*column, prediction[:, None], expected[:, None])
    single = doubly_robust(REWARD, PROPENSITY, TARGET, prediction, expected)
    same(found, single)
    same(slate_direct_method(expected[:, None]), direct_method(expected))


def test_slate_forms_by_hand():
    # two slates of two; ratios (2, 1/2) and (1/2, 3); rewards (1, 4) and (2, 1)
    reward = torch.tensor([[1.0, 4.0], [2.0, 1.0]]).double()
    propensity = torch.tensor([[0.25, 0.5], [0.5, 0.25]]).double()
    target = torch.tensor([[0.5, 0.25], [0.25, 0.75]]).double()
    # SIPS: weights 1 and 3/2: (1 * 5 + 1.5 * 3) / 2
    assert float(slate_standard_ips(reward, propensity, target).value) == pytest.approx(4.75)
    # IIPS: (2 * 1 + 0.5 * 4 + 0.5 * 2 + 3 * 1) / 2
    assert float(slate_independent_ips(reward, propensity, target).value) == pytest.approx(4.0)
    # RIPS: weights (2, 1), (1/2, 3/2): (2 + 4 + 1 + 1.5) / 2
    assert float(slate_reward_ips(reward, propensity, target).value) == pytest.approx(4.25)
    # SNRIPS: (2 + 1) / 2.5 + (4 + 1.5) / 2.5
    found = slate_reward_ips(reward, propensity, target, self_normalized=True)
    assert float(found.value) == pytest.approx(3.4)
    # the position with the fewest effective rows: 2.5^2 / 4.25 against 2.5^2 / 3.25
    assert float(found.effective_sample_size) == pytest.approx(6.25 / 4.25)


def test_a_slate_form_needs_support_at_every_position():
    # The target never shows what the log has at the second position; at the first it always does.
    reward, propensity = torch.tensor([[1.0, 4.0], [2.0, 1.0]]).double(), f64(1.0, 0.5).repeat(2, 1)
    target = f64(1.0, 0.0).repeat(2, 1)
    for self_normalized in (False, True):
        found = slate_independent_ips(reward, propensity, target, self_normalized=self_normalized)
        assert not bool(found.supported)
        assert float(found.value) == 1.5  # the first position's: (1 + 2) / 2
        assert float(found.high) == math.inf


# --- slates without replacement -----------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(1, 3), st.booleans())
def test_sums_over_slates_equal_enumeration(seed: int, num_positions: int, with_zeros: bool):
    p = distribution(2, 5, seed=seed)
    if with_zeros:
        p[0, seed % 5] = 0.0
        p = p / p.sum(-1, keepdim=True)
    stay = random(2, 5, seed=seed + 2)
    slates = torch.tensor(list(itertools.permutations(range(5), num_positions)))
    marginal = marginal_probability(p, num_positions)
    reach = reach_probability(p, stay, num_positions)
    for row in range(2):
        rows = torch.full((len(slates),), row)
        chance = conditional_probability(p, rows, slates).prod(-1)
        assert float(chance.sum()) == pytest.approx(1.0)
        for position in range(num_positions):
            counted = torch.zeros(5).double().index_add_(0, slates[:, position], chance)
            torch.testing.assert_close(marginal[row, position], counted)
            above = stay[row][slates[:, :position]].prod(-1)
            counted = torch.zeros(5).double().index_add_(0, slates[:, position], chance * above)
            torch.testing.assert_close(reach[row, position], counted)


def test_drawn_slates_follow_their_probabilities():
    p = distribution(2, 5, seed=3)
    p[0, 1] = 0.0
    p = p / p.sum(-1, keepdim=True)
    n = 60_000
    row = torch.arange(n) % 2
    drawn = draw_slates(p, row, random(n, 3, seed=8))
    slates = torch.tensor(list(itertools.permutations(range(5), 3)))
    weight = torch.tensor([25, 5, 1])
    for r in range(2):
        chance = conditional_probability(p, torch.full((60,), r), slates).prod(-1)
        count = torch.bincount((drawn[row == r] * weight).sum(-1), minlength=125)
        count = count[(slates * weight).sum(-1)]
        assert int(count.sum()) == n // 2  # distinct ads only
        possible = chance > 0
        assert int(count[~possible].sum()) == 0
        expected = chance[possible] * n / 2
        statistic = float(((count[possible] - expected) ** 2 / expected).sum())
        freedom = int(possible.sum()) - 1
        assert statistic < freedom + 4 * math.sqrt(2 * freedom)


def test_the_first_ad_of_a_slate_does_not_depend_on_its_length():
    p, noise = distribution(3, 7, seed=1), random(30, 3, seed=2)
    row = torch.arange(30) % 3
    torch.testing.assert_close(draw_slates(p, row, noise)[:, :1], draw_slates(p, row, noise[:, :1]))


def test_exact_sums_stop_at_three_positions():
    with pytest.raises(ValueError, match="take 1 to 3 positions, got 4"):
        marginal_probability(distribution(1, 5, seed=0), 4)
