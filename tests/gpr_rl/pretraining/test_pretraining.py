import math

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from gpr_rl.models import HHD, HHDConfig, HTEOutput
from gpr_rl.pretraining.mtp import mtp_loss, path_log_prob, validate_targets
from gpr_rl.pretraining.vaft import (
    explained_variance,
    exponential_weight,
    hte_loss,
    vaft_loss,
    vaft_weight,
    weight_by_action,
)
from gpr_rl.schema import Action, InputSpec, Targets
from tests.gpr_rl.models.model_inputs import SPEC, E, I, O, U, make_model, make_targets, make_tokens

TINY = InputSpec(
    num_levels=2, num_codes=3, user_cardinalities=(2,), context_cardinalities=(2,), max_tokens=8
)


def _by_hand() -> tuple[Tensor, Targets, Tensor]:
    """One window, two positions, two heads; the third target of four is not valid."""
    targets = make_targets(torch.tensor([[1, 3]]), 2, spec=TINY)
    targets.codes = torch.tensor([[[[0, 0], [1, 2]], [[0, 0], [2, 1]]]])
    targets.valid = torch.tensor([[[True, True], [False, True]]])
    targets.legal_mask = torch.tensor([True, True, False]).expand(1, 2, 2, 2, 3).clone()
    targets.legal_mask[0, 0, 1] = torch.tensor([[False, True, False], [True, False, True]])
    targets.legal_mask[0, 1, 0] = False
    targets.legal_mask[0, 1, 1] = torch.tensor([True, True, True])
    weights = torch.ones(1, 2, 2, 2, 3, dtype=torch.float64)
    weights[0, 0, 0, 0] = torch.tensor([1.0, 3.0, 99.0])
    weights[0, 0, 1, 1] = torch.tensor([3.0, 99.0, 1.0])
    weights[0, 1, 1, 0] = torch.tensor([1.0, 1.0, 6.0])
    return weights.log(), targets, torch.tensor([1.0, 3.0], dtype=torch.float64).log()


def test_loss_of_a_hand_worked_batch() -> None:
    logits, targets, head_logits = _by_hand()
    # Head 1: its one valid path has 1/4 (code 0 of weights 1, 3) times 1/2: 1/8.
    # Head 2: 1 (only one legal) times 1/4 (code 2 of weights 3, 1), and 6/8 times 1/3: both 1/4.
    log_prob = torch.tensor([[[1 / 8, 1 / 4], [1.0, 1 / 4]]], dtype=torch.float64).log()
    torch.testing.assert_close(path_log_prob(logits, targets), log_prob)
    # w = (1/4, 3/4): loss = 1/4 log 8 + 3/4 log 4 = 9/4 log 2, less 0.1 times the entropy of w.
    entropy = math.log(4) - 3 / 4 * math.log(3)
    loss = mtp_loss(logits, targets, head_logits, entropy_weight=0.1)
    assert loss.item() == pytest.approx(9 / 4 * math.log(2) - 0.1 * entropy)
    # Eq. 4 with weight 2 for head 1 and (1, 3) for head 2: mean over positions 2 log 4.
    weight = torch.tensor([[[2.0, 1.0], [7.0, 3.0]]], dtype=torch.float64)
    loss = mtp_loss(logits, targets, head_logits, entropy_weight=0.0, weight=weight)
    assert loss.item() == pytest.approx(1 / 4 * 2 * math.log(8) + 3 / 4 * 2 * math.log(4))


def test_targets_that_are_not_valid_teach_nothing() -> None:
    logits, targets, head_logits = _by_hand()
    logits = logits.detach().requires_grad_()
    mtp_loss(logits, targets, head_logits).backward()
    assert logits.grad is not None
    assert logits.grad[0, 1, 0].eq(0).all()
    assert logits.grad.isfinite().all()
    assert logits.grad.masked_select(~targets.legal_mask).eq(0).all()


def test_a_head_without_targets_is_left_out() -> None:
    logits, targets, _ = _by_hand()
    targets.valid[..., 0] = False
    head_logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    loss = mtp_loss(logits, targets, head_logits, entropy_weight=0.1)
    assert loss.item() == pytest.approx(math.log(4))  # w = (0, 1), entropy 0
    loss.backward()
    assert head_logits.grad is not None
    assert head_logits.grad.eq(0).all()
    targets.valid[:] = False
    with pytest.raises(ValueError, match="no valid position"):
        mtp_loss(logits, targets, head_logits)


def test_entropy_keeps_head_weights_from_collapsing() -> None:
    logits, targets, _ = _by_hand()
    weights = []
    for entropy_weight in (0.0, 1.0):
        head_logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([head_logits], lr=2.0)
        for _ in range(200):
            optimizer.zero_grad()
            mtp_loss(logits, targets, head_logits, entropy_weight).backward()
            optimizer.step()
        weights.append(head_logits.detach().softmax(0)[0].item())
    assert weights[0] < 0.01
    # Minimum of w log 8 + (1 - w) log 4 - H(w): w / (1 - w) = 4 / 8.
    assert weights[1] == pytest.approx(1 / 3, rel=1e-3)


def test_overfits_a_tiny_set() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = HHD(HHDConfig(dim=16, num_heads=2, num_mtp_heads=2), SPEC)
    kinds = [[U, O, E, I, O, E, I, E], [U, E, I, E, O, E, I], [U, O, O, E, I, O, E]]
    tokens = make_tokens(kinds, [3, 2, 4])
    targets = make_targets(torch.tensor([[2, 7], [1, 5], [3, 6]]), 2)
    targets.legal_mask[:] = True
    optimizer = torch.optim.Adam(model.policy_parameters(), lr=1e-2)
    start = None
    for _ in range(120):
        optimizer.zero_grad()
        loss = mtp_loss(model.mtp_logits(tokens, targets), targets, model.head_logits, 0.0)
        start = start or loss.item()
        loss.backward()
        optimizer.step()
    assert start is not None
    assert start > 4  # 3 log 5 = 4.8 for three codes of five
    assert loss.item() < 0.02


def test_supervision_that_would_leak_is_refused() -> None:
    tokens = make_tokens([[U, O, E, I, E], [U, E, I, O, E]], [3, 2])
    targets = make_targets(torch.tensor([[2], [4]]), 2)
    validate_targets(tokens, targets)
    tokens.prompt_length[0] = 4
    with pytest.raises(ValueError, match=r"position 2 in window 0 with prompt_length 4"):
        validate_targets(tokens, targets)
    targets.valid[0] = False
    validate_targets(tokens, targets)
    targets.position[1] = 3
    with pytest.raises(ValueError, match="got ORGANIC at position 3 of window 1"):
        validate_targets(tokens, targets)
    targets.position[1] = 5
    with pytest.raises(ValueError, match=r"positions must lie in \[0, 5\), got 5 to 5"):
        validate_targets(tokens, targets)
    targets.position[1] = 4
    targets.legal_mask[1] = False
    with pytest.raises(ValueError, match="legal_mask must hold"):
        validate_targets(tokens, targets)


def test_value_weights_by_hand() -> None:
    targets = make_targets(torch.tensor([[0, 1]]), 2)
    targets.action = torch.tensor([[[Action.IMPRESSION, Action.CLICK], [Action.CONVERSION, 2]]])
    targets.valid = torch.tensor([[[True, True], [True, False]]])
    targets.ecpm = torch.full((1, 2, 2), 2.0)
    targets.pctr = torch.full((1, 2, 2), 0.1)
    targets.pcvr = torch.full((1, 2, 2), 0.2)
    # Raw: 2; 2 / .1 = 20; 2 / (.1 * .2) = 100. Mean of the three: 122 / 3.
    raw = torch.tensor([[[2.0, 20.0], [100.0, 0.0]]]) * 3 / 122
    torch.testing.assert_close(vaft_weight(targets), torch.log1p(raw))
    clipped = vaft_weight(targets, max_weight=0.9)
    torch.testing.assert_close(clipped, torch.log1p(raw).clamp_max(0.9))
    by_action = weight_by_action(vaft_weight(targets), targets)
    assert by_action["conversion"] > by_action["click"] > by_action["impression"]


def test_conversion_outweighs_click_outweighs_impression_on_average() -> None:
    targets = make_targets(torch.zeros(500, 2, dtype=torch.int64), 4)
    generator = torch.Generator().manual_seed(0)
    targets.ecpm = 80 * torch.empty(500, 2, 4).log_normal_(0, 1, generator=generator)
    targets.pctr = 0.005 + 0.1 * torch.rand(500, 2, 4, generator=generator)
    targets.pcvr = 0.01 + 0.2 * torch.rand(500, 2, 4, generator=generator)
    weight = vaft_weight(targets)
    mean = weight_by_action(weight, targets)
    assert mean["conversion"] > 2 * mean["click"] > 4 * mean["impression"] > 0
    assert weight.max() <= 5.0


def test_scaling_all_ecpm_changes_no_weight() -> None:
    targets = make_targets(torch.zeros(20, 2, dtype=torch.int64), 3)
    before = vaft_weight(targets)
    targets.ecpm = targets.ecpm * 1000
    torch.testing.assert_close(vaft_weight(targets), before)


def test_value_aware_loss_is_eq_4() -> None:
    model = make_model(num_mtp_heads=2)
    tokens = make_tokens([[U, O, E, I, E]], [3])
    targets = make_targets(torch.tensor([[2, 4]]), 2)
    logits = model.mtp_logits(tokens, targets)
    loss = vaft_loss(logits, targets, model.head_logits, entropy_weight=0.0)
    share = model.head_logits.softmax(0)
    per_path = -path_log_prob(logits, targets) * vaft_weight(targets)
    torch.testing.assert_close(loss, (per_path.mean((0, 1)) * share).sum())


def _output(value: list[float], pctr: float, pcvr: float, final: float) -> HTEOutput:
    return HTEOutput(
        value=torch.tensor([[value, [9.0, 9.0]]]),
        pctr_logit=torch.tensor([[pctr, 9.0]]),
        pcvr_logit=torch.tensor([[pcvr, 9.0]]),
        final_value=torch.tensor([[final, 9.0]]),
        batch_size=[1, 2],
    )


def test_critic_loss_by_hand() -> None:
    output = _output([1.0, 3.0], math.log(3), 0.0, 2.0)
    nan = float("nan")
    loss = hte_loss(
        output,
        torch.tensor([[2.0, nan]]),
        torch.tensor([[0.25, nan]]),
        torch.tensor([[1.0, nan]]),
        torch.tensor([[True, False]]),
    )
    # Squares 1, 1, 0: mean 2/3. Click at p = 3/4, target 1/4: -(log(3/4) + 3 log(1/4)) / 4.
    # Conversion at p = 1/2: log 2.
    click = -(math.log(3 / 4) + 3 * math.log(1 / 4)) / 4
    assert loss.item() == pytest.approx(2 / 3 + click + math.log(2))


def test_explained_variance_by_hand() -> None:
    target = torch.tensor([1.0, 2.0, 3.0, 50.0])
    # Level 1 is off by a constant: 1. Level 2 says the mean: 0. Level 3 is turned round: -3.
    prediction = torch.stack([target + 5, torch.full((4,), 2.0), 4 - target], dim=-1)
    valid = torch.tensor([True, True, True, False])
    got = explained_variance(prediction, target, valid)
    torch.testing.assert_close(got, torch.tensor([1.0, 0.0, -3.0]))
    same = explained_variance(prediction, torch.ones(4), valid)
    assert same.isnan().all()


def test_critic_learns_values_and_leaves_the_policy_alone() -> None:
    model = make_model(num_mtp_heads=2).float()
    tokens = make_tokens([[U, O, E, I, E], [U, E, I, O, E]], [3, 2])
    targets = make_targets(torch.tensor([[2, 4], [1, 4]]), 2)
    before = TensorDict({str(i): p.clone() for i, p in enumerate(model.policy_parameters())})
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        output = model.hte(model.window(tokens, targets.position), targets.codes)
        loss = hte_loss(output, targets.ecpm, targets.pctr, targets.pcvr, targets.valid)
        loss.backward()
        optimizer.step()
    # Level 2 can't tell apart the two candidates that share their first code.
    values = torch.stack([output.value[..., 2], output.final_value], dim=-1).detach()
    assert explained_variance(values, targets.ecpm, targets.valid).min() > 0.9
    after = model.policy_parameters()
    assert all(torch.equal(before[str(i)], parameter) for i, parameter in enumerate(after))


def test_exponential_weights_by_hand() -> None:
    _, targets, _ = _by_hand()
    assert targets.valid.numel() >= 4
    valid = torch.zeros_like(targets.valid)
    valid.view(-1)[:3] = True
    value = torch.full_like(targets.final_value, torch.nan)
    value.view(-1)[:3] = torch.tensor([0.0, 2.0 * math.log(2.0), 2.0 * math.log(3.0)])
    targets = targets.replace(valid=valid, final_value=value)
    weight = exponential_weight(targets, scale=2.0)
    assert weight.view(-1)[:3].tolist() == pytest.approx([0.5, 1.0, 1.5])  # 1 : 2 : 3, mean 1
    assert (weight.view(-1)[3:] == 0).all()
