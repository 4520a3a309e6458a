"""What every loss over a rollout reads, writes and leaves alone."""

import torch
from tensordict import TensorDict

from agents.actor_critic import make_policy_head
from agents.objectives import (
    DPOLoss,
    HEPOLoss,
    RAFTLoss,
    RSPOLoss,
    SDPOLoss,
    SurrogateLoss,
    UnifiedLoss,
)


def test_every_loss_keeps_its_keys_and_the_rollout() -> None:
    g = torch.Generator().manual_seed(0)
    legal = torch.ones(2, 4, 2, 3, dtype=torch.bool)
    index = torch.tensor([[0], [1]])
    data = TensorDict(
        {
            "logits": torch.randn(2, 4, 2, 3, generator=g),
            "legal_mask": legal,
            "valid": legal[..., 0, 0],
            "codes": torch.zeros(2, 4, 2, dtype=torch.int64),
            "advantage": torch.randn(2, 4, 2, 1, generator=g),
            "action_log_prob": torch.zeros(2, 4, 2),
            "terminal_reward": torch.randn(2, 4, generator=g),
            "reference_log_probs": torch.zeros(2, 4, 2, 3),
            "chosen": index,
            "rejected": index + 1,
            "pair_valid": torch.ones(2, 1, dtype=torch.bool),
        },
        batch_size=[2],
    )
    read, scores = ["codes", "valid"], ["terminal_reward", "reference_log_probs"]
    pairs = ["chosen", "rejected", "pair_valid", "reference_log_probs"]
    wanted = {
        DPOLoss: (read + pairs, {"pair_accuracy"}),
        SDPOLoss: (read + scores, set()),
        RSPOLoss: (read + scores, set()),
        UnifiedLoss: (read + scores, {"loss_supervised"}),
        RAFTLoss: ([*read, "terminal_reward"], set()),
        SurrogateLoss: (["codes", "action_log_prob", "advantage", "valid"], {"clip_fraction"}),
    }
    assert HEPOLoss is SurrogateLoss
    before = data.clone()
    for kind, (reads, more) in wanted.items():
        loss = kind(make_policy_head())
        assert loss.in_keys == [*reads, *make_policy_head().in_keys], kind
        out = loss(data)
        assert set(out.keys()) == set(loss.out_keys) == {"loss_objective", "entropy"} | more, kind
        # Entropy is summed over both levels, averaged over all candidates.
        p = data["logits"].softmax(-1)
        torch.testing.assert_close(out["entropy"], -(p * p.log()).sum() / 8, rtol=1e-5, atol=0)
        assert not loss.functional
        assert set(data.keys()) == set(before.keys())
