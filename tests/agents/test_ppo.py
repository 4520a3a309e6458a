import pytest
import torch
from tensordict import TensorDict
from torchrl.objectives import ClipPPOLoss

from agents.actor_critic import make_policy_head
from agents.objectives import HEPOLoss, LevelGAE, LevelSummedPPOLoss, clipped_surrogate, value_loss

F64 = torch.float64
NUM_REQUESTS, NUM_CANDIDATES, NUM_LEVELS, NUM_CODES = 3, 5, 3, 4


@pytest.fixture
def data() -> TensorDict:
    """A rollout as the loop stores it: batch [B], every candidate valid."""
    g = torch.Generator().manual_seed(0)
    shape = (NUM_REQUESTS, NUM_CANDIDATES, NUM_LEVELS)
    codes = torch.randint(NUM_CODES, shape, generator=g)
    legal = torch.rand(*shape, NUM_CODES, generator=g) < 0.6
    legal.scatter_(-1, codes[..., None], True)
    value = torch.randn(*shape, 1, dtype=F64, generator=g)
    last = torch.zeros(*shape, 1, dtype=torch.bool)
    last[:, :, -1] = True
    reward = torch.zeros_like(value)
    reward[:, :, -1, 0] = torch.randn(*shape[:2], dtype=F64, generator=g)
    return TensorDict(
        {
            "codes": codes,
            "legal_mask": legal,
            "valid": torch.ones(shape[:2], dtype=torch.bool),
            "logits": torch.randn(*shape, NUM_CODES, dtype=F64, generator=g),
            "action_log_prob": -torch.rand(shape, dtype=F64, generator=g) * 2,
            "state_value": value,
            "next": TensorDict(
                {
                    "reward": reward,
                    "done": last,
                    "terminated": last.clone(),
                    "state_value": torch.cat(
                        [value[:, :, 1:], torch.zeros_like(last[:, :, :1])], 2
                    ),
                },
                batch_size=shape[:1],
            ),
        },
        batch_size=shape[:1],
    )


def test_levels_are_the_time_steps(data: TensorDict) -> None:
    # By hand, candidate by candidate: delta_l = r_l + gamma V_{l+1} - V_l, nothing after the last.
    discount, gae_lambda = 0.9, 0.8
    LevelGAE(discount=discount, gae_lambda=gae_lambda)(data)
    value, reward = data["state_value"][..., 0], data["next", "reward"][..., 0]
    for b in range(NUM_REQUESTS):
        for k in range(NUM_CANDIDATES):
            running = 0.0
            for level in reversed(range(NUM_LEVELS)):
                after = value[b, k, level + 1].item() if level + 1 < NUM_LEVELS else 0.0
                delta = reward[b, k, level].item() + discount * after - value[b, k, level].item()
                running = delta + discount * gae_lambda * running
                assert data["advantage"][b, k, level, 0].item() == pytest.approx(running)
                target = running + value[b, k, level].item()
                assert data["value_target"][b, k, level, 0].item() == pytest.approx(target)
    assert data.batch_size == (NUM_REQUESTS,)


def test_our_surrogate_is_torchrls_times_the_levels(data: TensorDict) -> None:
    LevelGAE()(data)
    data["logits"].requires_grad_()
    summed = LevelSummedPPOLoss(make_policy_head(), num_levels=NUM_LEVELS, clip=0.2)
    theirs = ClipPPOLoss(
        make_policy_head(), None, clip_epsilon=0.2, entropy_bonus=False, functional=False
    )(data)["loss_objective"]
    ours = HEPOLoss(make_policy_head(), clip=0.2)(data)["loss_objective"]
    torch.testing.assert_close(ours, theirs * NUM_LEVELS)
    torch.testing.assert_close(ours, summed(data)["loss_objective"])
    gradients = [torch.autograd.grad(x, data["logits"])[0] for x in (ours, theirs * NUM_LEVELS)]
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().sum() > 0


def test_the_ratios_cover_both_bounds(data: TensorDict) -> None:
    # The parity above means little unless both clips act on both signs of the advantage.
    LevelGAE()(data)
    log_prob = make_policy_head().get_dist(data).log_prob(data["codes"])
    ratio = (log_prob - data["action_log_prob"]).exp()
    for sign in (1, -1):
        chosen = ratio[data["advantage"][..., 0] * sign > 0]
        assert (chosen > 1.2).any()
        assert (chosen < 0.8).any()


def test_invalid_candidates_leave_the_mean(data: TensorDict) -> None:
    LevelGAE()(data)
    data["valid"][0, 1:] = False
    data["valid"][1] = False
    out = LevelSummedPPOLoss(
        make_policy_head(), num_levels=NUM_LEVELS, clip=0.2, entropy_coefficient=0.1
    )(data)
    distribution = make_policy_head().get_dist(data)
    expected = clipped_surrogate(
        distribution.log_prob(data["codes"]),
        data["action_log_prob"],
        data["advantage"][..., 0],
        0.2,
        valid=data["valid"],
    )
    torch.testing.assert_close(out["loss_objective"], expected)
    entropy = distribution.entropy()[data["valid"]].sum(-1).mean()
    torch.testing.assert_close(out["loss_entropy"], -0.1 * entropy)


def test_value_loss_is_torchrls_l2_times_the_levels(data: TensorDict) -> None:
    LevelGAE()(data)
    critic = _StoredValue()
    loss = ClipPPOLoss(
        make_policy_head(), critic, critic_coeff=1.0, loss_critic_type="l2", functional=False,
        separate_losses=True, entropy_bonus=False,
    )  # fmt: skip
    theirs = loss(data)["loss_critic"]
    ours = value_loss(data["state_value"][..., 0], data["value_target"][..., 0])
    torch.testing.assert_close(ours, theirs * NUM_LEVELS)


class _StoredValue(torch.nn.Module):
    in_keys = ("state_value",)
    out_keys = ("state_value",)

    def forward(self, data: TensorDict) -> TensorDict:
        return data
