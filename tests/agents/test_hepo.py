import math
from inspect import unwrap

import pytest
import torch
from tensordict import TensorDict
from torchrl.objectives.value.functional import generalized_advantage_estimate

from agents.actor_critic import make_policy_head
from agents.objectives import (
    HEPOAdvantage,
    HEPOLoss,
    clipped_surrogate,
    hepo_advantages,
    process_rewards,
    value_loss,
)

F64 = torch.float64


def tensor(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_process_rewards_hand_worked() -> None:
    # L = 3, V = 4, one request, three candidates.
    # Level 1, legal {0, 1, 3}: mean (.6 + .0 + .3) / 3 = .3; code 0: .6 - .3; code 1: 0 - .3 -> 0.
    # Level 2 after code 0, legal {1, 2}: mean (.5 + .1) / 2 = .3; code 1: .2.
    # Level 2 after code 1, legal {3} only: P - P = 0. Third candidate: empty row -> 0 at level 2.
    popularity = tensor([[[0.6, 0.0, 0.9, 0.3], [0.9, 0.5, 0.1, 0.7], [1.0, 1.0, 1.0, 1.0]]])
    codes = torch.tensor([[[0, 1, 0], [1, 3, 2], [0, 0, 0]]])
    legal = torch.zeros(1, 3, 3, 4, dtype=torch.bool)
    legal[:, :, 0, [0, 1, 3]] = True
    legal[0, 0, 1, [1, 2]] = True
    legal[0, 1, 1, 3] = True
    legal[:, :, 2, :] = True
    got = process_rewards(popularity, codes, legal, tensor([2.0, 10.0]))
    torch.testing.assert_close(got, tensor([[[0.6, 2.0], [0.0, 0.0], [0.6, 0.0]]]))


def test_process_rewards_take_popularity_per_candidate() -> None:
    # The second candidate's own table makes its code 1 popular: .8 - (.2 + .8) / 2 = .3.
    popularity = tensor([[[[0.5, 0.1], [0, 0]], [[0.2, 0.8], [0, 0]]]])
    codes = torch.tensor([[[1, 0], [1, 0]]])
    legal = torch.ones(1, 2, 2, 2, dtype=torch.bool)
    got = process_rewards(popularity, codes, legal, tensor([1.0]))
    torch.testing.assert_close(got, tensor([[[0.0], [0.3]]]))


def test_process_rewards_ignore_what_illegal_codes_hold() -> None:
    popularity = tensor([[[0.4, math.nan], [0.0, 0.0]]])
    legal = torch.tensor([[[[True, False], [True, True]], [[False, False], [True, True]]]])
    got = process_rewards(popularity, torch.zeros(1, 2, 2, dtype=torch.long), legal, tensor([1.0]))
    assert got.eq(0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"popularity": torch.zeros(2, 3, 5)}, "popularity must have shape"),
        ({"codes": torch.full((2, 4, 3), 6)}, r"codes must lie in \[0, 6\)"),
        ({"codes": torch.full((2, 4, 3), -1)}, "codes must lie in"),
        ({"legal_mask": torch.ones(2, 4, 3, 6)}, "legal_mask must be bool"),
        ({"scale": torch.ones(3)}, r"scale must have shape \[L-1\] = \(2,\), got \(3,\)"),
        ({"scale": torch.tensor([1.0, -1.0])}, "scale must not be negative"),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_process_rewards_name_what_is_wrong(change: dict, message: str) -> None:
    arguments = {
        "popularity": torch.zeros(2, 3, 6),
        "codes": torch.zeros(2, 4, 3, dtype=torch.long),
        "legal_mask": torch.ones(2, 4, 3, 6, dtype=torch.bool),
        "scale": torch.ones(2),
    }
    with pytest.raises(ValueError, match=message):
        unwrap(process_rewards)(**{**arguments, **change})


# One request, two candidates, L = 3, gamma = .5, lambda = .5 (product .25).
PROCESS = tensor([[[0.2, 0.4], [0.0, 0.6]]])
REWARD = tensor([[1.0, 3.0]])
VALUE = tensor([[[1.0, 2.0, 4.0], [1.0, 0.0, 2.0]]])


def test_advantages_and_returns_hand_worked() -> None:
    # Candidate 1: delta_1 = .2 + .5 * 2 - 1 = .2, delta_2 = .4 + .5 * 4 - 2 = .4.
    #   A_1 = .2 + .25 * .4 = .3, A_2 = .4 (the sum ends at L - 1).
    # Candidate 2: delta_1 = 0 + 0 - 1 = -1, delta_2 = .6 + .5 * 2 - 0 = 1.6; A_1 = -.6, A_2 = 1.6.
    # Level 3: rewards 1, 3: mean 2, std 1 -> -1, 1.
    # G_3 = R; G_2 = r_2 + .5 R = .9, 2.1; G_1 = r_1 + .5 r_2 + .25 R = .2 + .2 + .25 = .65;
    #   0 + .3 + .75 = 1.05.
    advantage, returns = hepo_advantages(PROCESS, REWARD, VALUE, 0.5, 0.5, eps=0.0)
    torch.testing.assert_close(advantage, tensor([[[0.3, 0.4, -1.0], [-0.6, 1.6, 1.0]]]))
    torch.testing.assert_close(returns, tensor([[[0.65, 0.9, 1.0], [1.05, 2.1, 3.0]]]))


def test_through_terminal_hand_worked() -> None:
    # delta_3 = R - V_3 = 1 - 4 = -3 and 3 - 2 = 1. A_2 = .4 - .75 = -.35, 1.6 + .25 = 1.85;
    # A_1 = .2 + .25 * -.35 = .1125, -1 + .25 * 1.85 = -.5375. Level 3 stays the z-score.
    advantage, returns = hepo_advantages(
        PROCESS, REWARD, VALUE, 0.5, 0.5, eps=0.0, through_terminal=True
    )
    expected = tensor([[[0.1125, -0.35, -1.0], [-0.5375, 1.85, 1.0]]])
    torch.testing.assert_close(advantage, expected)
    torch.testing.assert_close(returns, tensor([[[0.65, 0.9, 1.0], [1.05, 2.1, 3.0]]]))


def test_as_printed_the_terminal_reward_does_not_reach_coarse_levels() -> None:
    other, _ = hepo_advantages(PROCESS, REWARD * 7, VALUE, 0.5, 0.5)
    advantage, _ = hepo_advantages(PROCESS, REWARD, VALUE, 0.5, 0.5)
    assert torch.equal(other[..., :2], advantage[..., :2])


@pytest.mark.parametrize(("discount", "gae_lambda"), [(1.0, 0.95), (0.9, 1.0), (0.7, 0.0)])
def test_through_terminal_is_torchrl_gae_at_coarse_levels(
    discount: float, gae_lambda: float
) -> None:
    g = generator()
    process = torch.rand(5, 7, 3, dtype=F64, generator=g)
    reward = torch.randn(5, 7, dtype=F64, generator=g)
    value = torch.randn(5, 7, 4, dtype=F64, generator=g)
    got, returns = hepo_advantages(
        process, reward, value, discount, gae_lambda, through_terminal=True
    )
    done = torch.zeros(5, 7, 4, 1, dtype=torch.bool)
    done[:, :, -1] = True
    steps = torch.cat([process, reward[..., None]], -1)[..., None]
    next_value = torch.cat([value[..., 1:], torch.full((5, 7, 1), 99.0)], -1)[..., None]
    expected, _ = generalized_advantage_estimate(
        discount, gae_lambda, value[..., None], next_value, steps, done
    )
    torch.testing.assert_close(got[..., :-1], expected[..., :-1, 0])
    # With lambda 1 and a value of 0, GAE's advantage is the discounted sum of rewards: G.
    zero = torch.zeros_like(next_value)
    sums, _ = generalized_advantage_estimate(discount, 1.0, zero, zero, steps, done)
    torch.testing.assert_close(returns, sums[..., 0])


def test_equal_rewards_and_single_candidates_have_zero_final_advantage() -> None:
    for reward in (torch.full((1, 3), 0.1, dtype=F64), tensor([[5.0]])):
        process, value = reward.new_zeros(*reward.shape, 1), reward.new_zeros(*reward.shape, 2)
        for eps in (0.0, 1e-6):
            advantage, _ = hepo_advantages(process, reward, value, 1.0, 1.0, eps)
            assert advantage[..., -1].eq(0).all()


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, 1e30])
def test_invalid_candidates_may_hold_anything(junk: float) -> None:
    g = generator(1)
    valid = torch.rand(4, 6, generator=g) < 0.7
    valid[0] = False
    valid[1] = torch.arange(6) == 2  # a single one
    inputs = [
        torch.rand(4, 6, 2, dtype=F64, generator=g),
        torch.randn(4, 6, dtype=F64, generator=g),
        torch.randn(4, 6, 3, dtype=F64, generator=g),
    ]
    spoiled = [x.clone() for x in inputs]
    for x in spoiled:
        x[~valid] = junk
    got = hepo_advantages(*spoiled, 0.9, 0.8, through_terminal=True, valid=valid)
    for result in got:
        assert result[~valid].eq(0).all()
    for row in range(1, 4):  # the same as if the invalid ones were not there
        alone = hepo_advantages(
            *[x[row : row + 1, valid[row]] for x in inputs], 0.9, 0.8, through_terminal=True
        )
        for result, expected in zip(got, alone, strict=True):
            torch.testing.assert_close(result[row : row + 1, valid[row]], expected)


def test_value_is_a_constant() -> None:
    value = VALUE.clone().requires_grad_()
    advantage, returns = hepo_advantages(PROCESS, REWARD, value, 0.5, 0.5)
    assert not advantage.requires_grad
    assert not returns.requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((PROCESS[..., :1], REWARD, VALUE, 1.0, 1.0), "process_reward must have shape"),
        ((PROCESS, REWARD[0], VALUE, 1.0, 1.0), "terminal_reward must have shape"),
        ((PROCESS, REWARD, VALUE[0], 1.0, 1.0), "value must have shape"),
        ((PROCESS, REWARD, VALUE, 1.5, 1.0), r"discount must lie in \[0, 1\], got 1.5"),
        ((PROCESS, REWARD, VALUE, 1.0, -0.1), "gae_lambda must lie"),
        ((PROCESS, REWARD, VALUE, 1.0, 1.0, -1.0), "eps must lie"),
    ],
)
def test_advantages_name_what_is_wrong(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unwrap(hepo_advantages)(*arguments)


def test_surrogate_hand_worked() -> None:
    # clip .2. Ratios: 1.5 with A = 2 -> min(3, 2.4) = 2.4; .5 with A = -1 -> min(-.5, -.8) = -.8;
    # .5 with A = 4 -> min(2, 3.2) = 2; 2 with A = -3 -> min(-6, -3.6) = -6.
    # Sums over levels 1.6 and -4; loss = -(1.6 - 4) / 2 = 1.2. Weights (1, .5): 2.0 and -1 -> -.5.
    ratio = tensor([[[1.5, 0.5], [0.5, 2.0]]])
    behavior = tensor([[[-1.0, -2.0], [-3.0, -0.5]]])
    advantage = tensor([[[2.0, -1.0], [4.0, -3.0]]])
    log_prob = behavior + ratio.log()
    loss = clipped_surrogate(log_prob, behavior, advantage, 0.2)
    torch.testing.assert_close(loss, tensor(1.2))
    loss = clipped_surrogate(log_prob, behavior, advantage, 0.2, level_weight=tensor([1.0, 0.5]))
    torch.testing.assert_close(loss, tensor(-0.5))
    # Only the second: -(2 - 6) = 4.
    only = torch.tensor([[False, True]])
    loss = clipped_surrogate(log_prob, behavior, advantage, 0.2, valid=only)
    torch.testing.assert_close(loss, tensor(4.0))


def test_a_good_candidate_gets_more_likely() -> None:
    # At ratio 1 the gradient of the loss by log_prob is -A / (number of candidates).
    log_prob = torch.full((1, 2, 2), -1.0, dtype=F64, requires_grad=True)
    advantage = tensor([[[2.0, -1.0], [0.5, 0.0]]])
    clipped_surrogate(log_prob, log_prob.detach(), advantage, 0.2).backward()
    torch.testing.assert_close(log_prob.grad, -advantage / 2)


def test_beyond_the_bound_there_is_no_gradient_and_no_overflow() -> None:
    log_prob = tensor([[[1000.0, 0.5, -1000.0, 1000.0]]]).requires_grad_()
    advantage = tensor([[[1.0, 2.0, -1.0, 0.0]]])
    loss = clipped_surrogate(log_prob, torch.zeros(1, 1, 4, dtype=F64), advantage, 0.2)
    torch.testing.assert_close(loss.detach(), tensor(-(1.2 + 2.4 - 0.8 + 0.0)))
    loss.backward()
    assert log_prob.grad.eq(0).all()


def test_invalid_log_probs_give_finite_loss_and_gradient() -> None:
    log_prob = tensor([[[-1.0, -1.0], [-math.inf, math.nan]]]).requires_grad_()
    behavior = tensor([[[-1.0, -1.0], [-math.inf, -math.inf]]])
    advantage = tensor([[[1.0, 1.0], [math.nan, math.inf]]])
    valid = torch.tensor([[True, False]])
    loss = clipped_surrogate(log_prob, behavior, advantage, 0.2, valid=valid)
    torch.testing.assert_close(loss.detach(), tensor(-2.0))
    loss.backward()
    torch.testing.assert_close(log_prob.grad, tensor([[[-1.0, -1.0], [0.0, 0.0]]]))


def test_no_valid_candidate_is_a_zero_with_a_graph() -> None:
    log_prob = torch.full((2, 3, 2), -math.inf, dtype=F64, requires_grad=True)
    none = torch.zeros(2, 3, dtype=torch.bool)
    for loss in (
        clipped_surrogate(log_prob, log_prob, log_prob, 0.2, valid=none),
        value_loss(log_prob, log_prob, none),
    ):
        assert loss.item() == 0.0
        loss.backward()
    assert log_prob.grad.eq(0).all()


def test_surrogate_names_what_is_wrong() -> None:
    x = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match=r"clip must lie in \(0, 1\), got 1.0"):
        unwrap(clipped_surrogate)(x, x, x, 1.0)
    with pytest.raises(ValueError, match="advantage must have shape"):
        unwrap(clipped_surrogate)(x, x, x[..., :2], 0.2)
    with pytest.raises(ValueError, match="valid must have shape"):
        unwrap(clipped_surrogate)(x, x, x, 0.2, valid=torch.ones(3, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="valid must be bool"):
        unwrap(clipped_surrogate)(x, x, x, 0.2, valid=torch.ones(2, 3))
    with pytest.raises(ValueError, match="level_weight must have shape"):
        unwrap(clipped_surrogate)(x, x, x, 0.2, level_weight=torch.ones(3))


def test_value_loss_hand_worked() -> None:
    # Squared errors 1 + 4 and 0 + 9: sums 5 and 9, mean 7; the first alone 5.
    value, target = tensor([[[1.0, 2.0], [0.0, 3.0]]]), tensor([[[2.0, 0.0], [0.0, 0.0]]])
    torch.testing.assert_close(value_loss(value, target), tensor(7.0))
    first = torch.tensor([[True, False]])
    torch.testing.assert_close(value_loss(value, target, first), tensor(5.0))


class _Distribution:
    def __init__(self, data: TensorDict) -> None:
        self.logits = torch.log_softmax(data["logits"], -1)

    def log_prob(self, codes: torch.Tensor) -> torch.Tensor:
        return self.logits.gather(-1, codes[..., None]).squeeze(-1)

    def entropy(self) -> torch.Tensor:
        return -(self.logits.exp() * self.logits).sum(-1)


def test_modules_wrap_the_functions() -> None:
    g = generator(2)
    codes = torch.randint(5, (3, 4, 2), generator=g)
    logits = torch.randn(3, 4, 2, 5, dtype=F64, generator=g).requires_grad_()
    legal = torch.ones(3, 4, 2, 5, dtype=torch.bool)
    data = TensorDict(
        {
            "popularity": torch.rand(3, 2, 5, dtype=F64, generator=g),
            "codes": codes,
            "legal_mask": legal,
            "terminal_reward": torch.randn(3, 4, dtype=F64, generator=g),
            "state_value": torch.randn(3, 4, 2, 1, dtype=F64, generator=g),
            "valid": torch.rand(3, 4, generator=g) < 0.8,
            "logits": logits,
            "action_log_prob": torch.randn(3, 4, 2, dtype=F64, generator=g),
        },
        batch_size=[3],
    )
    HEPOAdvantage(discount=0.9, gae_lambda=0.8, process_reward_scale=2.0)(data)
    process = process_rewards(data["popularity"], codes, legal, tensor([2.0]))
    advantage, returns = hepo_advantages(
        process, data["terminal_reward"], data["state_value"][..., 0], 0.9, 0.8,
        valid=data["valid"],
    )  # fmt: skip
    torch.testing.assert_close(data["advantage"], advantage[..., None])
    torch.testing.assert_close(data["value_target"], returns[..., None])

    out = HEPOLoss(make_policy_head(), clip=0.3, entropy_coefficient=0.1)(data)
    distribution = _Distribution(data)
    expected = clipped_surrogate(
        distribution.log_prob(codes), data["action_log_prob"], advantage, 0.3, valid=data["valid"]
    )
    torch.testing.assert_close(out["loss_objective"], expected)
    entropy = distribution.entropy()[data["valid"]].sum(-1).mean()
    torch.testing.assert_close(out["loss_entropy"], -0.1 * entropy)
    (out["loss_objective"] + out["loss_entropy"]).backward()
    assert logits.grad.isfinite().all()
    with pytest.raises(ValueError, match="needs a critic_network"):
        HEPOLoss(make_policy_head()).loss_critic(data)
