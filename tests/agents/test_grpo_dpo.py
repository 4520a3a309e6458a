import math
from inspect import unwrap

import pytest
import torch
from tensordict import TensorDict

from agents.actor_critic import make_policy_head
from agents.objectives import (
    DPOLoss,
    PreferencePairs,
    dpo_loss,
    grpo_advantages,
    hepo_advantages,
    preference_pairs,
)

F64 = torch.float64


def test_grpo_hand_worked() -> None:
    # Rewards 1, 2, 6: mean 3, population variance (4 + 1 + 9) / 3 = 14/3.
    got = grpo_advantages(torch.tensor([[1.0, 2.0, 6.0]], dtype=F64), 2, eps=0.0)
    z = torch.tensor([-2.0, -1.0, 3.0], dtype=F64) / (14 / 3) ** 0.5
    torch.testing.assert_close(got, z[None, :, None].expand(1, 3, 2))
    # eps goes to the std: 1, 3 has std 1, so eps 1 halves the score.
    got = grpo_advantages(torch.tensor([[1.0, 3.0]], dtype=F64), 1, eps=1.0)
    torch.testing.assert_close(got, torch.tensor([[[-0.5], [0.5]]], dtype=F64))


def test_grpo_is_hepos_last_level() -> None:
    g = torch.Generator().manual_seed(0)
    reward = torch.randn(4, 6, dtype=F64, generator=g)
    valid = torch.rand(4, 6, generator=g) < 0.6
    reward[~valid] = -math.inf
    got = grpo_advantages(reward, 3, valid=valid)
    value = torch.zeros(4, 6, 3, dtype=F64)
    hepo, _ = hepo_advantages(value[..., 1:], reward, value, 1.0, 1.0, valid=valid)
    assert torch.equal(got, hepo[..., -1:].expand(4, 6, 3))
    assert got[~valid].eq(0).all()


@pytest.mark.parametrize(("scale", "shift"), [(10.0, 0.0), (1.0, 50.0), (1e-3, -2.0)])
def test_grpo_ignores_currency_scale_and_shift(scale: float, shift: float) -> None:
    reward = torch.randn(4, 40, dtype=F64, generator=torch.Generator().manual_seed(0))
    moved = grpo_advantages(reward * scale + shift, 2, eps=0.0)
    torch.testing.assert_close(moved, grpo_advantages(reward, 2, eps=0.0))


@pytest.mark.parametrize("reward", [[[0.1] * 7], [[1e8] * 3], [[4.2]]])
def test_equal_rewards_and_single_candidates_teach_nothing(reward: list) -> None:
    for dtype in (torch.float32, F64):
        assert grpo_advantages(torch.tensor(reward, dtype=dtype), 2, eps=0.0).eq(0).all()


def test_grpo_names_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="terminal_reward must have shape"):
        unwrap(grpo_advantages)(torch.zeros(3), 2)
    with pytest.raises(ValueError, match="num_levels must lie"):
        unwrap(grpo_advantages)(torch.zeros(3, 2), 0)
    with pytest.raises(ValueError, match="valid must have shape"):
        unwrap(grpo_advantages)(torch.zeros(3, 2), 2, valid=torch.ones(2, 2, dtype=torch.bool))


def test_dpo_hand_worked() -> None:
    # Pair 1: margins (-1 + 2) - (-3 + 2) = 2, beta .5 -> x = 1, log(1 + e^-1) = .31326169.
    # Pair 2: (-2 + 2) - (-1 + 3) = -2 -> x = -1, log(1 + e) = 1.31326169. Mean .81326169.
    arguments = [
        torch.tensor(x, dtype=F64) for x in ([-1.0, -2.0], [-3.0, -1.0], [-2.0, -2.0], [-2.0, -3.0])
    ]
    expected = torch.tensor(0.8132616875182228, dtype=F64)
    torch.testing.assert_close(dpo_loss(*arguments, 0.5), expected)


def test_dpo_gradient_prefers_the_chosen() -> None:
    # d loss / d chosen = -beta sigmoid(-x) = -.5 * .5 at x = 0.
    chosen = torch.zeros(1, dtype=F64, requires_grad=True)
    rejected = torch.zeros(1, dtype=F64, requires_grad=True)
    dpo_loss(chosen, rejected, chosen, rejected, 0.5).backward()
    torch.testing.assert_close(chosen.grad, torch.tensor([-0.25], dtype=F64))
    torch.testing.assert_close(rejected.grad, torch.tensor([0.25], dtype=F64))


def test_dpo_of_no_pairs_is_a_zero_with_a_graph() -> None:
    empty = torch.zeros(0, requires_grad=True)
    loss = dpo_loss(empty, empty, empty, empty, 0.1)
    assert loss.item() == 0.0
    loss.backward()


def test_dpo_names_what_is_wrong() -> None:
    x = torch.zeros(3)
    with pytest.raises(ValueError, match="beta must be above 0, got 0"):
        unwrap(dpo_loss)(x, x, x, x, 0.0)
    with pytest.raises(ValueError, match="ref_log_prob_rejected must have shape"):
        unwrap(dpo_loss)(x, x, x, x[:2], 0.1)


def test_pairs_are_best_against_worst() -> None:
    reward = torch.tensor([[3.0, 1.0, 5.0, 2.0], [1.0, 1.0, 1.0, 9.0], [4.0, 2.0, 0.0, 0.0]])
    valid = torch.ones(3, 4, dtype=torch.bool)
    valid[2, 1:] = False  # a single candidate has no partner
    chosen, rejected, counts = preference_pairs(reward, 2, valid)
    assert chosen[0].tolist() == [2, 0]
    assert rejected[0].tolist() == [1, 3]
    assert counts.tolist() == [[True, True], [True, False], [False, False]]
    assert (chosen[1, 0].item(), rejected[1, 0].item()) == (3, 0)
    with pytest.raises(ValueError, match="num_pairs must lie in"):
        unwrap(preference_pairs)(reward, 3)


def test_module_is_the_function_over_whole_paths() -> None:
    # Two levels, two codes. At both, code 0 has .6 under the reference and .8 under the policy.
    # Chosen (0, 0): 2 log .8 - 2 log .6; rejected (1, 1): 2 log .2 - 2 log .4.
    # Margin 2 log (4/3 * 2); beta 1 -> loss log(1 + (8/3)^-2) = log(73/64).
    p = torch.tensor([0.8, 0.2], dtype=F64).log()
    reference = torch.tensor([0.6, 0.4], dtype=F64).log()
    data = TensorDict(
        {
            "codes": torch.tensor([[[1, 1], [0, 0], [0, 1]]]),
            "legal_mask": torch.ones(1, 3, 2, 2, dtype=torch.bool),
            "logits": p.expand(1, 3, 2, 2).clone().requires_grad_(),
            "reference_log_probs": reference.expand(1, 3, 2, 2),
            "terminal_reward": torch.tensor([[1.0, 2.0, 7.0]], dtype=F64),
            "valid": torch.tensor([[True, True, False]]),
        },
        batch_size=[1],
    )
    PreferencePairs(num_pairs=1)(data)
    out = DPOLoss(make_policy_head(), beta=1.0)(data)
    torch.testing.assert_close(out["loss_objective"].item(), math.log(73 / 64))
    assert out["pair_accuracy"].item() == 1.0
    out["loss_objective"].backward()
    assert data["logits"].grad[0, 2].eq(0).all()
