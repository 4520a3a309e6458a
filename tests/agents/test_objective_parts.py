"""Parts of the objectives that whole losses hide, worked out by hand."""

import math

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from agents.actor_critic import make_policy_head
from agents.candidates import AdBaseline
from agents.objectives import (
    HEPOAdvantage,
    HEPOLoss,
    reinforce_surrogate,
    unified_loss,
    unified_weights,
    value_loss,
)
from agents.objectives.rspo import rspo_losses
from agents.objectives.surrogate import surrogate_inputs
from agents.objectives.terminal import candidate_zscore, terminal_advantage


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


ALL = torch.ones(1, 2, dtype=torch.bool)


def test_the_constant_of_the_zscore_is_added_to_the_deviation() -> None:
    # Mean 2, population deviation 1: (1 - 2) / (1 + 1) and (3 - 2) / (1 + 1).
    assert candidate_zscore(tensor([[1.0, 3.0]]), 1.0, ALL).tolist() == [[-0.5, 0.5]]
    assert terminal_advantage("mean", tensor([[1.0, 5.0]]), 1.0, ALL).tolist() == [[-2.0, 2.0]]


def test_whole_paths_add_log_probabilities_and_average_advantages() -> None:
    two = tensor([[[1.0, 2.0], [3.0, 4.0]]])
    log_prob, behavior, advantage, _ = surrogate_inputs(two, 10 * two, two, None, True)
    assert log_prob.tolist() == [[[3.0], [7.0]]]
    assert behavior.tolist() == [[[30.0], [70.0]]]
    assert advantage.tolist() == [[[1.5], [3.5]]]


def test_at_all_levels_the_process_rewards_to_come_are_added() -> None:
    """Popularity .8 and .2: delta is .3 for code 0 and -.3 for code 1, twice that with the scale.

    Paths (0, 1, 0) and (1, 1, 0) get process rewards (.6, -.6) and (-.6, -.6). At a discount of .5
    there are (.3, -.6, 0) and (-.9, -.6, 0) to come; the z-scores of 1 and 3 are -1 and 1.
    """
    data = TensorDict(
        {
            "popularity": tensor([[[0.8, 0.2]] * 3]),
            "codes": torch.tensor([[[0, 1, 0], [1, 1, 0]]]),
            "legal_mask": torch.ones(1, 2, 3, 2, dtype=torch.bool),
            "terminal_reward": tensor([[1.0, 3.0]]),
            "state_value": torch.zeros(1, 2, 3, 1, dtype=torch.float64),
            "valid": ALL,
        },
        batch_size=[1],
    )
    module = HEPOAdvantage(
        discount=0.5, process_reward_scale=2.0, process_reward="uncapped", eps=0.0, all_levels=True
    )
    found = module(data)["advantage"][0, ..., 0]
    torch.testing.assert_close(found, tensor([[-0.7, -1.6, -1.0], [0.1, 0.4, 1.0]]))


def test_the_batch_zscore_pools_requests() -> None:
    """Rewards 1, 3 and 3, 5: mean 3, squared deviations 4, 0, 0, 4, root mean sqrt 2."""
    valid = torch.ones(2, 2, dtype=torch.bool)
    found = terminal_advantage("batch", tensor([[1.0, 3.0], [3.0, 5.0]]), 0.0, valid)
    root = math.sqrt(2.0)
    torch.testing.assert_close(found, tensor([[-root, 0.0], [0.0, root]]))


def test_potentials_are_taken_back_from_the_last_reward() -> None:
    """One coarse level, discount 1: Phi = .3 and -.3, which the last level's return gives back."""
    data = TensorDict(
        {
            "popularity": tensor([[[0.8, 0.2]] * 2]),
            "codes": torch.tensor([[[0, 0], [1, 0]]]),
            "legal_mask": torch.ones(1, 2, 2, 2, dtype=torch.bool),
            "terminal_reward": tensor([[1.0, 3.0]]),
            "state_value": torch.zeros(1, 2, 2, 1, dtype=torch.float64),
            "valid": ALL,
        },
        batch_size=[1],
    )
    target = HEPOAdvantage(process_reward="potential")(data)["value_target"][0, ..., 0]
    torch.testing.assert_close(target, tensor([[1.0, 0.7], [3.0, 3.3]]))


def test_value_targets_get_no_gradient() -> None:
    value, target = (torch.full((1, 2, 3), x).requires_grad_() for x in (1.0, 3.0))
    value_loss(value, target).backward()
    assert value.grad is not None
    assert value.grad.flatten().tolist() == [-2.0] * 6  # 2 (1 - 3) over two candidates
    assert target.grad is None


def test_the_clip_fraction_counts_both_sides_per_level() -> None:
    """One code of two is legal, so log pi = 0 and the ratios are e^-(behaviour's log)."""
    legal = torch.tensor([True, False]).expand(1, 2, 2, 2)
    behavior = tensor([[[math.log(2.0), 0.0], [-math.log(2.0), 0.05]]])  # ratios .5, 1, 2, .95
    data = TensorDict(
        {
            "logits": torch.zeros(1, 2, 2, 2, dtype=torch.float64),
            "legal_mask": legal,
            "valid": ALL,
            "codes": torch.zeros(1, 2, 2, dtype=torch.int64),
            "advantage": torch.ones(1, 2, 2, 1, dtype=torch.float64),
            "action_log_prob": behavior,
        },
        batch_size=[1],
    )
    assert HEPOLoss(make_policy_head(), clip=0.2)(data)["clip_fraction"].item() == 0.5


def test_reinforce_leaves_large_ratios_alone() -> None:
    log_prob, behavior = torch.zeros(1, 1, 1), torch.full((1, 1, 1), -2.0)
    loss = reinforce_surrogate(log_prob, behavior, torch.ones(1, 1, 1))
    assert loss.item() == pytest.approx(-math.exp(2.0))


def test_unified_weights_where_ranks_disagree() -> None:
    """By probability the order is 0 1 2, by value 2 0 1: A = 1/2, 1/2 and 1.

    exp(A log(1 + v)) is sqrt(2), 1 and 5, of which 5 is the largest.
    """
    log_prob, value = tensor([[-1.0, -2.0, -3.0]]), tensor([[1.0, 0.0, 4.0]])
    supervised, preferred = unified_weights(log_prob, value, 0.1)
    torch.testing.assert_close(supervised, tensor([[0.1 * math.sqrt(2.0), 0.1, 0.5]]))
    torch.testing.assert_close(preferred, tensor([[0.25, 0.25, 0.0]]))
    each = rspo_losses(log_prob, None, value, 1.0, 1.0)[0]
    assert each[0] > 0
    loss, imitation = unified_loss(log_prob, None, value, 1.0, 1.0, 0.1)
    torch.testing.assert_close(loss, (0.25 * each[0] + 0.25 * each[1]) / 3)
    torch.testing.assert_close(imitation, tensor(0.5 * 3.0 / 3))  # only 4 is above the mean, 5/3


def test_the_baseline_of_an_ad_by_hand() -> None:
    baseline = AdBaseline(3, decay=0.5)
    counts: list[float] = []

    def rollout(ad_id: list[int], reward: list[float], valid: list[bool]) -> TensorDict:
        data = TensorDict(
            {
                "ad_id": torch.tensor([ad_id]),
                "valid": torch.tensor([valid]),
                "terminal_reward": torch.tensor([reward]),
                "next": {"reward": torch.zeros(1, len(ad_id), 2, 1)},
            },
            batch_size=[1],
        )
        counts.append(baseline.subtract(data))
        assert torch.equal(data["next", "reward"][0, :, -1, 0], data["terminal_reward"][0])
        return data["terminal_reward"][0].tolist()

    assert rollout([0, 0, 1], [2.0, 4.0, 7.0], [True, True, False]) == [2.0, 4.0, 0.0]
    # ad 1 was not drawn: it has the mean of all, which is ad 0's 3
    assert rollout([0, 1, -1], [5.0, 1.0, 9.0], [True, True, False]) == [2.0, -2.0, 0.0]
    # ad 0 has (0.5 * 6 + 5) / (0.5 * 2 + 1) = 4
    assert rollout([0, 1], [4.0, 1.0], [True, True]) == [0.0, 0.0]
    assert counts == [0.0, 1.0, 1.5]  # draws before, halved a step: (2 + 0) / 2, (2 + 1) / 2
