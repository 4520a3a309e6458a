"""What the objectives have in common, and what each must be whatever its code looks like.

Dims: B requests, K candidates, L levels, V codes.
"""

import math
from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.objectives.value import GAE

from agents.objectives import (
    GRPOAdvantage,
    HEPOAdvantage,
    LeaveOneOutAdvantage,
    clipped_surrogate,
    dpo_loss,
    ecpo_surrogate,
    gbpo_surrogate,
    grpo_advantages,
    hepo_advantages,
    leave_one_out_advantages,
    potential_rewards,
    prefix_popularity,
    process_rewards,
    raft_loss,
    reinforce_surrogate,
    rspo_loss,
    sdpo_loss,
    shuffle_popularity,
    unified_loss,
    unified_weights,
)

B, K, L, V = 3, 5, 3, 4


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def rollout_data(seed: int = 0) -> TensorDict:
    """Return a rollout with random numbers in every key that an advantage reads."""
    g = generator(seed)
    codes = torch.randint(V, (B, K, L), generator=g)
    legal = torch.rand(B, K, L, V, generator=g) < 0.7
    legal = legal.scatter(-1, codes.unsqueeze(-1), True)
    valid = torch.rand(B, K, generator=g) < 0.8
    valid[:, :2] = True
    return TensorDict(
        {
            "popularity": torch.rand(B, L, V, dtype=torch.float64, generator=g),
            "codes": codes,
            "legal_mask": legal,
            "terminal_reward": randn(B, K, seed=seed + 1),
            "state_value": randn(B, K, L, 1, seed=seed + 2),
            "valid": valid,
        },
        batch_size=[B],
    )


# ---- HEPO and its relatives


@pytest.mark.parametrize("terminal", ["zscore", "mean", "batch"])
def test_hepo_without_process_rewards_at_all_levels_is_grpo(terminal: str) -> None:
    data = rollout_data()
    hepo = HEPOAdvantage(process_reward_scale=0.0, all_levels=True, terminal=terminal)
    ours = hepo(data.copy())["advantage"]
    theirs = GRPOAdvantage(terminal=terminal)(data.copy())["advantage"]
    assert torch.equal(ours, theirs)
    if terminal == "zscore":
        exact = grpo_advantages(data["terminal_reward"], L, valid=data["valid"])
        assert torch.equal(ours.squeeze(-1), exact)


@pytest.mark.parametrize(("discount", "gae_lambda"), [(1.0, 0.95), (0.9, 0.5), (0.7, 0.0)])
def test_hepos_coarse_levels_are_gae_truncated_before_the_last(
    discount: float, gae_lambda: float
) -> None:
    process, terminal, value = randn(B, K, L - 1), randn(B, K, seed=1), randn(B, K, L, seed=2)
    ours, _ = hepo_advantages(process, terminal, value, discount, gae_lambda)
    done = torch.zeros(B, K, L - 1, 1, dtype=torch.bool)
    done[..., -1, :] = True  # the sum ends here ...
    data = TensorDict(
        {
            "state_value": value[..., :-1, None],
            "next": TensorDict(
                {
                    "reward": process[..., None],
                    "state_value": value[..., 1:, None],
                    "done": done,
                    "terminated": torch.zeros_like(done),  # ... but the value goes on
                },
                batch_size=[B, K, L - 1],
            ),
        },
        batch_size=[B, K, L - 1],
    )
    constants = torch.tensor([discount, gae_lambda], dtype=torch.float64)
    gae = GAE(gamma=constants[0], lmbda=constants[1], value_network=None)
    theirs = gae(data)["advantage"].squeeze(-1)
    torch.testing.assert_close(ours[..., :-1], theirs, rtol=1e-12, atol=1e-12)


def test_potential_rewards_sum_to_nothing_along_a_path_and_keep_the_returns_order() -> None:
    potential = randn(B, K, L - 1)
    coarse, last = potential_rewards(potential, 1.0)
    torch.testing.assert_close(coarse.sum(-1) + last, torch.zeros(B, K, dtype=torch.float64))
    coarse, last = potential_rewards(potential, 0.5)
    torch.testing.assert_close(coarse[..., 0], 0.5 * potential[..., 0])
    torch.testing.assert_close(coarse[..., 1], 0.5 * potential[..., 1] - potential[..., 0])
    torch.testing.assert_close(last, -potential[..., 1])
    data = rollout_data(4)
    data["valid"] = torch.ones_like(data["valid"])
    shaped = HEPOAdvantage(process_reward="potential")(data.copy())
    # From the root the return is R itself; the last advantage is that of R itself.
    torch.testing.assert_close(shaped["value_target"][:, :, 0, 0], data["terminal_reward"])
    plain = HEPOAdvantage()(data.copy())
    assert torch.equal(shaped["advantage"][:, :, -1], plain["advantage"][:, :, -1])


def test_uncapped_rewards_differ_from_capped_ones_where_delta_is_negative() -> None:
    data = rollout_data(5)
    capped = HEPOAdvantage()(data.copy())["process_reward"]
    uncapped = HEPOAdvantage(process_reward="uncapped")(data.copy())["process_reward"]
    assert (uncapped < 0).any()
    assert torch.equal(uncapped.clamp_min(0.0), capped)


def test_prefix_popularity_counts_only_what_matches() -> None:
    past = torch.tensor([[[0, 1, 2], [0, 1, 3], [0, 2, 2], [1, 1, 1], [3, 3, 3]]])
    exists = torch.tensor([[True, True, True, True, False]])
    codes = torch.tensor([[[0, 1, 2], [1, 0, 0], [2, 2, 2]]])
    found = prefix_popularity(past, exists, codes, V)
    quarter = [0.75, 0.25, 0.0, 0.0]
    assert found[0, :, 0].tolist() == [quarter] * 3  # level 1: nothing to match
    assert found[0, 0, 1].tolist() == pytest.approx([0, 2 / 3, 1 / 3, 0])
    assert found[0, 0, 2].tolist() == [0, 0, 0.5, 0.5]
    assert found[0, 1, 1].tolist() == [0, 1, 0, 0]
    assert found[0, 1, 2].tolist() == [0, 0, 0, 0]
    assert found[0, 2, 1:].eq(0).all()
    scale = torch.ones(L - 1)
    legal = torch.ones(1, 3, L, V, dtype=torch.bool)
    rewards = process_rewards(found, codes, legal, scale)
    assert rewards[0, 0].tolist() == pytest.approx([0.5, 2 / 3 - 0.25])


def test_shuffled_popularity_keeps_the_numbers_and_the_request() -> None:
    popularity = torch.rand(4, L, 64, generator=generator())
    ids = torch.tensor([5, 9, 5, 7])
    popularity[2] = popularity[0]
    shuffled = shuffle_popularity(popularity, ids, 3)
    assert torch.equal(shuffled.sort(-1).values, popularity.sort(-1).values)
    assert not torch.equal(shuffled, popularity)
    assert torch.equal(shuffled[0], shuffled[2])
    assert torch.equal(shuffle_popularity(popularity[1:2], ids[1:2], 3), shuffled[1:2])
    assert not torch.equal(shuffle_popularity(popularity, ids, 4), shuffled)


def test_leave_one_out_by_hand() -> None:
    reward = torch.tensor([[1.0, 2.0, 6.0, 99.0], [3.0, 3.0, 3.0, 0.0], [5.0, 0.0, 0.0, 0.0]])
    valid = torch.tensor([[True, True, True, False]] * 2 + [[True, False, False, False]])
    found = leave_one_out_advantages(reward, 2, valid)
    assert found[0, :, 0].tolist() == pytest.approx([-3.0, -1.5, 4.5, 0.0])
    assert torch.equal(found[..., 0], found[..., 1])
    assert found[1:].eq(0).all()
    data = TensorDict(
        {"terminal_reward": reward, "valid": valid, "codes": torch.zeros(3, 4, 2).long()}, [3]
    )
    assert torch.equal(LeaveOneOutAdvantage()(data)["advantage"].squeeze(-1), found)


# ---- preference losses


def trl_sigmoid_dpo(
    policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor,
    beta: float,
) -> Tensor:  # fmt: skip
    """The way TRL's trainer computes its `sigmoid` loss: ratios of the pair first."""
    policy_ratio = policy_chosen - policy_rejected
    reference_ratio = ref_chosen - ref_rejected
    margin = beta * (policy_ratio - reference_ratio)
    return torch.log1p(torch.exp(-margin)).mean()


def test_dpo_is_trls_formula_and_sdpo_with_one_negative_is_dpo() -> None:
    parts = [randn(7, seed=i) for i in range(4)]
    ours = dpo_loss(*parts, 0.3)
    assert float(ours) == pytest.approx(float(trl_sigmoid_dpo(*parts, 0.3)), rel=1e-12)
    chosen, rejected, ref_chosen, ref_rejected = parts
    one = sdpo_loss(chosen, rejected[:, None], ref_chosen, ref_rejected[:, None], 0.3)
    assert float(one) == pytest.approx(float(ours), rel=1e-12)


def test_sdpo_by_the_papers_formula() -> None:
    chosen, ref_chosen = randn(4), randn(4, seed=1)
    rejected, ref_rejected = randn(4, 3, seed=2), randn(4, 3, seed=3)
    valid = torch.tensor([[True] * 3, [True, False, True], [False] * 3, [True, True, False]])
    terms = []
    for p in range(4):
        total = sum(
            math.exp(
                0.7 * float((rejected[p, n] - ref_rejected[p, n]) - (chosen[p] - ref_chosen[p]))
            )
            for n in range(3)
            if valid[p, n]
        )
        if total:
            terms.append(-math.log(1.0 / (1.0 + math.exp(math.log(total)))))
    found = sdpo_loss(chosen, rejected, ref_chosen, ref_rejected, 0.7, valid)
    assert float(found) == pytest.approx(sum(terms) / len(terms), rel=1e-12)
    with pytest.raises(ValueError, match="beta must be above 0, got 0"):
        sdpo_loss(chosen, rejected, ref_chosen, ref_rejected, 0.0)


def test_rspo_does_not_depend_on_the_order_of_candidates() -> None:
    log_prob, reference, reward = randn(B, K), randn(B, K, seed=1), randn(B, K, seed=2)
    reward[:, 1] = reward[:, 0]  # a tie
    shuffled = torch.tensor([3, 0, 4, 1, 2])
    one = rspo_loss(log_prob, reference, reward, 0.5, 0.3)
    other = rspo_loss(log_prob[:, shuffled], reference[:, shuffled], reward[:, shuffled], 0.5, 0.3)
    assert float(one) == pytest.approx(float(other), rel=1e-12)


def test_raft_imitates_the_best_only() -> None:
    log_prob = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0], [-7.0, -8.0, -9.0]])
    reward = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [1.0, 0.0, 9.0]])
    valid = torch.tensor([[True] * 3, [True] * 3, [True, True, False]])
    # Request 1: the first of the two best; request 2 teaches nothing; request 3: its first.
    assert float(raft_loss(log_prob, reward, 1, valid)) == pytest.approx((2 + 7) / 2)
    assert float(raft_loss(log_prob, reward, 2, valid)) == pytest.approx((2.5 + 7) / 2)
    with pytest.raises(ValueError, match=r"num_best must lie in \[1, 3\], got 4"):
        raft_loss(log_prob, reward, 4, valid)


def test_unified_weights_by_hand() -> None:
    # Ranks by log-probability 0 1 2, by value 2 0 1 (0 is best): A = 2/2, 1/2, 1/2.
    log_prob = torch.tensor([[-1.0, -2.0, -3.0]])
    value = torch.tensor([[1.0, 4.0, 2.0]])
    supervised, preferred = unified_weights(log_prob, value, 0.1)
    expected = [
        math.exp(1.0 * math.log(1)),
        math.exp(0.5 * math.log(4)),
        math.exp(0.5 * math.log(2)),
    ]
    assert supervised[0].tolist() == pytest.approx([0.1 * w for w in expected])
    largest = max(expected)
    assert preferred[0].tolist() == pytest.approx([0.0, 0.05 * largest, 0.05 * largest])
    single = unified_weights(log_prob[:, :1], value[:, :1], 0.1)
    assert [float(w) for w in single] == pytest.approx([0.1, 0.1])
    order = torch.tensor([2, 0, 1])
    shuffled, _ = unified_weights(log_prob[:, order], value[:, order], 0.1)
    assert torch.equal(shuffled, supervised[:, order])


# ---- what holds for every loss

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(log_prob [B, K, L], reward [B, K], valid [B, K]) -> scalar."""


def surrogate_of(function: Callable[..., Tensor], **constants: float) -> Loss:
    def loss(log_prob: Tensor, reward: Tensor, valid: Tensor) -> Tensor:
        advantage = grpo_advantages(reward, log_prob.shape[-1], valid=valid)
        return function(log_prob, log_prob.detach() - 0.05, advantage, valid=valid, **constants)

    return loss


def listwise(function: Callable[..., Tensor]) -> Loss:
    def loss(log_prob: Tensor, reward: Tensor, valid: Tensor) -> Tensor:
        path = log_prob.sum(-1)
        return function(path, path.detach() - 0.1, reward, valid)

    return loss


def pairs(log_prob: Tensor, reward: Tensor, valid: Tensor) -> Tensor:
    from agents.objectives import preference_pairs

    path = log_prob.sum(-1)
    chosen, rejected, counts = preference_pairs(reward, 1, valid)
    lp_c, lp_r = (path.gather(1, index)[counts] for index in (chosen, rejected))
    return dpo_loss(lp_c, lp_r, lp_c.detach() * 0 - 1.0, lp_r.detach() * 0 - 1.0, 0.5)


def negatives(log_prob: Tensor, reward: Tensor, valid: Tensor) -> Tensor:
    path = log_prob.sum(-1)
    best = torch.where(valid, reward, -torch.inf).argmax(-1, keepdim=True)
    counts = valid & (reward < reward.gather(1, best))
    zero = torch.zeros_like(path)
    return sdpo_loss(path.gather(1, best)[:, 0], path, zero[:, 0], zero, 0.5, counts)


LOSSES: dict[str, Loss] = {
    "clipped": surrogate_of(clipped_surrogate, clip=0.2),
    "ecpo": surrogate_of(ecpo_surrogate, clip=0.2),
    "gbpo": surrogate_of(gbpo_surrogate),
    "reinforce": surrogate_of(reinforce_surrogate),
    "rspo": listwise(lambda p, ref, r, valid: rspo_loss(p, ref, r, 0.5, 1.0, valid)),
    "raft": listwise(lambda p, ref, r, valid: raft_loss(p, r, 1, valid)),
    "unified": listwise(
        lambda p, ref, r, valid: sum(unified_loss(p, ref, r, 0.5, 1.0, 0.1, valid))  # type: ignore[arg-type, return-value]
    ),
    "dpo": pairs,
    "sdpo": negatives,
}


def log_probs(seed: int = 3) -> Tensor:
    return (-0.3 - randn(B, K, L, seed=seed).abs()).requires_grad_()


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_falls_when_a_better_candidate_gets_more_likely(name: str) -> None:
    log_prob = log_probs()
    reward = randn(B, K, seed=9)
    valid = torch.ones(B, K, dtype=torch.bool)
    (gradient,) = torch.autograd.grad(LOSSES[name](log_prob, reward, valid), log_prob)
    best, worst = reward.argmax(-1), reward.argmin(-1)
    rows = torch.arange(B)
    assert (gradient[rows, best] < 0).all()
    assert (gradient[rows, worst] >= 0).all()
    if name != "raft":
        assert (gradient[rows, worst] > 0).any()


@pytest.mark.parametrize(
    "name", [n for n in LOSSES if n not in ("clipped", "ecpo", "gbpo", "reinforce")]
)
def test_gradients_agree_with_finite_differences(name: str) -> None:
    reward = randn(B, K, seed=9)
    valid = torch.ones(B, K, dtype=torch.bool)
    valid[1, 3:] = False
    reference = log_probs(5).detach()

    def loss(log_prob: Tensor) -> Tensor:
        path, ref = log_prob.sum(-1), reference.sum(-1)
        if name == "rspo":
            return rspo_loss(path, ref, reward, 0.5, 1.0, valid)
        if name == "unified":
            return sum(unified_loss(path, ref, reward, 0.5, 1.0, 0.1, valid))  # type: ignore[return-value]
        return LOSSES[name](log_prob, reward, valid)

    assert torch.autograd.gradcheck(loss, (log_probs(),), eps=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, b, a: clipped_surrogate(x, b, a, 0.2),
        lambda x, b, a: reinforce_surrogate(x, b, a),
    ],
)
def test_surrogates_gradients_agree_with_finite_differences(
    function: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> None:
    # ECPO and GBPO hold a detached policy in their ratio: no finite difference is their gradient.
    behavior = log_probs(6).detach()
    advantage = randn(B, K, L, seed=7)
    assert torch.autograd.gradcheck(lambda x: function(x, behavior, advantage), (log_probs(),))


CASES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "equal rewards": lambda reward, valid: reward.fill_(3.0),
    "one candidate": lambda reward, valid: valid[:, 1:].fill_(False),
    "no candidate": lambda reward, valid: valid.fill_(False),
    "large rewards": lambda reward, valid: reward.mul_(1e6),
    "huge and equal": lambda reward, valid: reward.fill_(-1e6),
    "one huge": lambda reward, valid: reward[:, 0].fill_(1e6),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("duplicate", [False, True])
def test_losses_and_gradients_stay_finite(name: str, case: str, duplicate: bool) -> None:
    log_prob = log_probs()
    reward = randn(B, K, seed=9)
    valid = torch.ones(B, K, dtype=torch.bool)
    if duplicate:  # the same path twice, so the same reward and log-probability
        log_prob = log_prob.detach().clone()
        log_prob[:, 1], reward[:, 1] = log_prob[:, 0], reward[:, 0]
        log_prob.requires_grad_()
    CASES[case](reward, valid)
    loss = LOSSES[name](log_prob, reward, valid)
    (gradient,) = torch.autograd.grad(loss, log_prob)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    if case in ("equal rewards", "no candidate", "one candidate", "huge and equal"):
        assert gradient.abs().max() == 0.0


@pytest.mark.parametrize("name", LOSSES)
def test_a_path_without_a_choice_teaches_nothing_but_stays_finite(name: str) -> None:
    # One legal code at every level: log-probability 0.
    log_prob = torch.zeros(B, K, L, dtype=torch.float64, requires_grad=True)
    reward = randn(B, K, seed=9)
    valid = torch.ones(B, K, dtype=torch.bool)
    loss = LOSSES[name](log_prob, reward, valid)
    (gradient,) = torch.autograd.grad(loss, log_prob)
    assert loss.isfinite()
    assert gradient.isfinite().all()
