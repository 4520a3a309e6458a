import math
from inspect import unwrap

import pytest
import torch

from agents.objectives import clipped_surrogate, ecpo_surrogate, gbpo_surrogate
from agents.objectives.gbpo import log1mexp

F64 = torch.float64


def tensor(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


def test_ecpo_hand_worked() -> None:
    # clip .2, delta .1: for A < 0 a ratio stops at 1.3. One level, four candidates.
    # ratio 2, A = -1: pi_old' = pi / 1.3 -> -1.3. ratio 1.25, A = -1: -1.25 (below 1.3).
    # ratio .5, A = -1: max(.5, .8) -> -.8. ratio 2, A = 1: min(2, 1.2) -> 1.2.
    ratio = tensor([[[2.0], [1.25], [0.5], [2.0]]])
    behavior = tensor([[[-3.0], [-2.0], [-1.0], [-4.0]]])
    log_prob = (behavior + ratio.log()).requires_grad_()
    advantage = tensor([[[-1.0], [-1.0], [-1.0], [1.0]]])
    loss = ecpo_surrogate(log_prob, behavior, advantage, 0.2, delta=0.1)
    torch.testing.assert_close(loss.detach(), tensor(-(-1.3 - 1.25 - 0.8 + 1.2) / 4))
    # The gradient by log pi is -A ratio' / 4 where no clip acts: the bound is on its size.
    loss.backward()
    expected = tensor([[[1.3 / 4], [1.25 / 4], [0.0], [0.0]]])
    torch.testing.assert_close(log_prob.grad, expected)


def test_ecpo_is_ppo_for_good_candidates() -> None:
    g = torch.Generator().manual_seed(0)
    log_prob, behavior = (-3 * torch.rand(2, 4, 3, dtype=F64, generator=g) for _ in range(2))
    advantage = torch.rand(2, 4, 3, dtype=F64, generator=g)
    torch.testing.assert_close(
        ecpo_surrogate(log_prob, behavior, advantage, 0.2),
        clipped_surrogate(log_prob, behavior, advantage, 0.2),
    )
    assert ecpo_surrogate(log_prob, behavior, -advantage, 0.2) < clipped_surrogate(
        log_prob, behavior, -advantage, 0.2
    )


def test_gbpo_hand_worked() -> None:
    # pi .5, pi_old .2, A = 2: pi_old' = max(.2, .5) -> ratio 1 -> 2.
    # pi .2, pi_old .5, A = 2: pi_old' = .5 -> .4 * 2 = .8.
    # pi .9, pi_old .3, A = -1: max(.3, .1) = .3 -> -3. pi .1, pi_old .3, A = -1: max(.3, .9)
    #   -> -1/9.
    p, old = tensor([[[0.5], [0.2], [0.9], [0.1]]]), tensor([[[0.2], [0.5], [0.3], [0.3]]])
    advantage = tensor([[[2.0], [2.0], [-1.0], [-1.0]]])
    log_prob = p.log().requires_grad_()
    loss = gbpo_surrogate(log_prob, old.log(), advantage)
    torch.testing.assert_close(loss.detach(), tensor(-(2.0 + 0.8 - 3.0 - 1 / 9) / 4))
    loss.backward()
    expected = -tensor([[[2.0], [0.8], [-3.0], [-1 / 9]]]) / 4
    torch.testing.assert_close(log_prob.grad, expected)


def test_gbpo_with_one_legal_code() -> None:
    # pi = pi_old = 1: 1 - pi = 0 loses against pi_old; a rounding above 1 changes nothing.
    for log_p in (0.0, 1e-12):
        log_prob = torch.full((1, 2, 1), log_p, dtype=F64, requires_grad=True)
        loss = gbpo_surrogate(log_prob, log_prob.detach(), tensor([[[1.0], [-2.0]]]))
        torch.testing.assert_close(loss.detach(), tensor(0.5))
        loss.backward()
        assert log_prob.grad.isfinite().all()


def test_log1mexp_at_both_ends() -> None:
    x = tensor([-1e-20, -math.log(2.0), -50.0, 0.0])
    expected = tensor([math.log(1e-20), -math.log(2.0), -math.exp(-50.0), -math.inf])
    torch.testing.assert_close(log1mexp(x), expected)


@pytest.mark.parametrize(
    "surrogate", [gbpo_surrogate, lambda *a, **k: ecpo_surrogate(*a, 0.2, **k)]
)
def test_invalid_candidates_may_hold_anything(surrogate: object) -> None:
    g = torch.Generator().manual_seed(1)
    inputs = [-torch.rand(2, 3, 2, dtype=F64, generator=g) for _ in range(3)]
    valid = torch.tensor([[True, False, True], [False, False, False]])
    for sequence_level in (False, True):
        alone = surrogate(*[x[:1, [0, 2]] for x in inputs], sequence_level=sequence_level)
        for junk in (-math.inf, math.inf, math.nan):
            spoiled = [x.clone() for x in inputs]
            for x in spoiled:
                x[~valid] = junk
            spoiled[0].requires_grad_()
            loss = surrogate(*spoiled, valid=valid, sequence_level=sequence_level)
            torch.testing.assert_close(loss, alone)
            loss.backward()
            assert spoiled[0].grad[~valid].eq(0).all()
            assert spoiled[0].grad.isfinite().all()
        none = surrogate(*spoiled, valid=torch.zeros_like(valid), sequence_level=sequence_level)
        assert none.item() == 0.0
        none.backward()


def test_sequence_level_uses_one_ratio_per_path() -> None:
    # Ratios 2 and .6 make 1.2 for the path; advantages of GRPO are alike at all levels.
    behavior = tensor([[[-1.0, -1.0]]])
    log_prob = behavior + tensor([[[2.0, 0.6]]]).log()
    advantage = tensor([[[3.0, 3.0]]])
    got = ecpo_surrogate(log_prob, behavior, advantage, 0.5, sequence_level=True)
    torch.testing.assert_close(got, tensor(-3.6))
    got = ecpo_surrogate(log_prob, behavior, advantage, 0.5)
    torch.testing.assert_close(got, tensor(-(4.5 + 1.8)))


def test_name_what_is_wrong() -> None:
    x = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match="clip must lie"):
        unwrap(ecpo_surrogate)(x, x, x, 0.0)
    with pytest.raises(ValueError, match="delta must lie"):
        unwrap(ecpo_surrogate)(x, x, x, 0.2, delta=-0.1)
    with pytest.raises(ValueError, match="advantage must have shape"):
        unwrap(gbpo_surrogate)(x, x, x[..., 0])
    with pytest.raises(ValueError, match="behavior_log_prob must have shape"):
        unwrap(gbpo_surrogate)(x, x[:1], x, sequence_level=True)
