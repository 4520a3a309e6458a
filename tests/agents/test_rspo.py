import math
from inspect import unwrap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.objectives import rspo_loss

F64 = torch.float64
LOG2_3 = math.log2(3.0)


def tensor(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


def by_loops(
    log_prob: list[float], ref: list[float] | None, reward: list[float], beta: float, delta: float
) -> float:
    """The loss in `docs/decisions.md` (RSPO), written out for one request of valid candidates."""
    n = len(reward)
    shift = min(0.0, min(reward))
    gain = [v - shift for v in reward]
    ideal = sum(g / math.log2(2 + k) for k, g in enumerate(sorted(gain, reverse=True)))
    rank = [sum(other > mine for other in log_prob) for mine in log_prob]
    total = 0.0
    for i in range(n):
        worse = [j for j in range(n) if reward[j] < reward[i]]
        anchor = 0.0
        if ref is not None:
            ratios = [log_prob[j] - ref[j] for j in [i, *worse]]
            anchor = 1.0 if sum(ratios) / len(ratios) < delta else 0.0
        lr = [log_prob[j] - (anchor * ref[j] if ref is not None else 0.0) for j in range(n)]
        inner = 0.0
        for j in worse:
            distance = abs(rank[i] - rank[j])
            if distance == 0:
                continue
            weight = abs(1 / math.log2(1 + distance) - 1 / math.log2(2 + distance))
            inner += weight * abs(gain[i] - gain[j]) / ideal * math.exp(beta * (lr[j] - lr[i]))
        total += math.log2(1 + inner)
    return total / n


def test_two_candidates_hand_worked() -> None:
    # Rewards 3, 1; log-probabilities log .2, log .4: ranked the wrong way round, one place apart.
    # maxDCG = 3 + 1/log2(3); M = (1 - 1/log2(3)) * 2 / maxDCG; exp(lr_j - lr_i) = 2.
    # Only the better one has a worse one: loss = log2(1 + 2 M) / 2.
    ideal = 3.0 + 1.0 / LOG2_3
    weight = (1.0 - 1.0 / LOG2_3) * 2.0 / ideal
    expected = math.log2(1.0 + 2.0 * weight) / 2.0
    log_prob = tensor([[0.2, 0.4]]).log()
    got = rspo_loss(log_prob, None, tensor([[3.0, 1.0]]), 1.0, 0.0)
    torch.testing.assert_close(got, tensor(expected))
    # A reference with the same ratio: lr is equal for both where C = 1 (mean log-ratio 0 < 1).
    expected = math.log2(1.0 + weight) / 2.0
    got = rspo_loss(log_prob, log_prob, tensor([[3.0, 1.0]]), 1.0, 1.0)
    torch.testing.assert_close(got, tensor(expected))
    # With delta 0 the mean log-ratio 0 is not below it: C = 0.
    got = rspo_loss(log_prob, log_prob, tensor([[3.0, 1.0]]), 1.0, 0.0)
    torch.testing.assert_close(got, tensor(math.log2(1.0 + 2.0 * weight) / 2.0))


@pytest.mark.parametrize("with_reference", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_equals_the_loops(seed: int, with_reference: bool) -> None:
    g = torch.Generator().manual_seed(seed)
    log_prob = -5 * torch.rand(3, 6, dtype=F64, generator=g)
    ref = -5 * torch.rand(3, 6, dtype=F64, generator=g) if with_reference else None
    reward = torch.randint(-3, 9, (3, 6), generator=g).double()  # with ties
    log_prob[0, 1] = log_prob[0, 4]
    expected = [
        by_loops(
            log_prob[b].tolist(), None if ref is None else ref[b].tolist(), reward[b].tolist(),
            0.7, 0.2,
        )
        for b in range(3)
    ]  # fmt: skip
    got = rspo_loss(log_prob, ref, reward, 0.7, 0.2)
    torch.testing.assert_close(got, tensor(expected).mean())


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.floats(-20, -0.01), st.floats(0, 1000)), min_size=2, max_size=12,
        unique_by=lambda pair: pair[0],
    )
)  # fmt: skip
def test_bounds_one_minus_ndcg(pairs: list[tuple[float, float]]) -> None:
    log_prob, reward = tensor([[p for p, _ in pairs]]), tensor([[v for _, v in pairs]])
    loss = rspo_loss(log_prob, None, reward, 1.0, 0.0) * len(pairs)
    place = torch.arange(2, len(pairs) + 2).double().log2()
    ideal = (reward[0].sort(descending=True).values / place).sum()
    if ideal == 0:
        assert loss == 0
        return
    dcg = (reward[0][log_prob[0].argsort(descending=True)] / place).sum()
    assert loss >= 1 - dcg / ideal - 1e-9


def test_equal_rewards_and_equal_log_probs_teach_nothing() -> None:
    log_prob = tensor([[-1.0, -2.0, -3.0]]).requires_grad_()
    for lp, reward in (
        (log_prob, tensor([[5.0, 5.0, 5.0]])),
        (log_prob, tensor([[0.0, 0.0, 0.0]])),
        (log_prob - log_prob.detach(), tensor([[1.0, 2.0, 3.0]])),
    ):
        loss = rspo_loss(lp, None, reward, 1.0, 0.0)
        assert loss.item() == 0.0
        (gradient,) = torch.autograd.grad(loss, log_prob)
        assert gradient.eq(0).all()


def test_scale_of_the_reward_cancels_and_the_better_gets_more_likely() -> None:
    log_prob = tensor([[-1.0, -2.0, -3.0]]).requires_grad_()
    reward = tensor([[1.0, 2.0, 30.0]])
    loss = rspo_loss(log_prob, None, reward, 0.5, 0.0)
    torch.testing.assert_close(loss, rspo_loss(log_prob, None, reward * 40, 0.5, 0.0))
    loss.backward()
    assert log_prob.grad[0, 2] < 0 < log_prob.grad[0, 0]


def test_invalid_candidates_may_hold_anything() -> None:
    log_prob = tensor([[-1.0, -2.0, -math.inf, -3.0], [math.nan] * 4]).requires_grad_()
    reward = tensor([[1.0, -2.0, math.nan, 4.0], [math.inf] * 4])
    reference = tensor([[-2.0, -1.0, -math.inf, -1.0], [math.nan] * 4])
    valid = torch.tensor([[True, True, False, True], [False] * 4])
    got = rspo_loss(log_prob, reference, reward, 1.0, 0.5, valid)
    keep = [0, 1, 3]
    alone = rspo_loss(log_prob[:1, keep], reference[:1, keep], reward[:1, keep], 1.0, 0.5)
    torch.testing.assert_close(got, alone)
    got.backward()
    assert log_prob.grad[~valid].eq(0).all()
    assert log_prob.grad.isfinite().all()
    none = rspo_loss(log_prob, reference, reward, 1.0, 0.5, torch.zeros(2, 4, dtype=torch.bool))
    assert none.item() == 0.0
    none.backward()


def test_extreme_log_ratios_stay_finite() -> None:
    log_prob = tensor([[-1.0, -2000.0]]).requires_grad_()
    loss = rspo_loss(log_prob, None, tensor([[1.0, 9.0]]), 1.0, 0.0)
    assert 1000 < loss.item() < 2000
    loss.backward()
    assert log_prob.grad.isfinite().all()


@pytest.mark.usefixtures("unchecked_shapes")
def test_names_what_is_wrong() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="beta must be above 0"):
        unwrap(rspo_loss)(x, None, x, 0.0, 0.0)
    with pytest.raises(ValueError, match="ref_log_prob must have shape"):
        unwrap(rspo_loss)(x, x[:1], x, 1.0, 0.0)
    with pytest.raises(ValueError, match="reward must have shape"):
        unwrap(rspo_loss)(x, None, x[:, :2], 1.0, 0.0)
