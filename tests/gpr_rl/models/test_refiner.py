import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gpr_rl.models import HHD, HHDConfig
from gpr_rl.models.refiner import Refiner, path_embedding, signal_share, unit_variance
from gpr_rl.pretraining.auxiliary import auxiliary_parts
from gpr_rl.pretraining.mtp import mtp_loss
from tests.gpr_rl.models.model_inputs import (
    SPEC,
    E,
    I,
    O,
    U,
    make_model,
    make_request,
    make_targets,
    make_tokens,
)

KINDS = [[U, O, E, I, O, E, I, E], [U, E, I, E, O, E, I], [U, O, O, E, I, O, E]]
PROMPTS = [3, 2, 4]
POSITIONS = torch.tensor([[2, 7], [1, 5], [3, 6]])
ON = {"num_refining_steps": 3, "num_noise_steps": 10}


def _refiner(dim: int = 6, seed: int = 0, **sizes: Any) -> Refiner:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Refiner(HHDConfig(dim=dim, num_heads=2, **{**ON, **sizes})).double()


def test_the_schedule_goes_from_nearly_clean_to_nearly_noise() -> None:
    kept = signal_share(3)
    # cos^2 of 22.5, 45 and 67.5 degrees
    want = [(2 + math.sqrt(2)) / 4, 1 / 2, (2 - math.sqrt(2)) / 4]
    torch.testing.assert_close(kept, torch.tensor(want))
    many = signal_share(50)
    assert (many.diff() < 0).all()
    assert many[0] > 0.99
    assert 0 < many[-1] < 0.01


class _TrueNoise(torch.nn.Module):
    """A denoiser that knows the answer: (x_t - sqrt(a) x_0) / sqrt(1 - a)."""

    def __init__(self, clean: Tensor, kept: Tensor) -> None:
        super().__init__()
        self.clean, self.kept, self.asked = clean, kept, []

    def forward(self, noisy: Tensor, step: Tensor, thought: Tensor) -> Tensor:
        self.asked.append(step.tolist())
        kept = self.kept[step][:, None]
        return (noisy - kept.sqrt() * self.clean) / (1 - kept).sqrt()


class _Says(torch.nn.Module):
    """A denoiser that looks at x_t alone."""

    def __init__(self, say: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.say = say

    def forward(self, noisy: Tensor, step: Tensor, thought: Tensor) -> Tensor:
        return self.say(noisy)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_with_a_perfect_denoiser_the_process_finds_the_answer(steps: int) -> None:
    refiner = _refiner(num_refining_steps=steps)
    generator = torch.Generator().manual_seed(0)
    clean = unit_variance(torch.randn(5, 6, generator=generator, dtype=torch.float64))
    denoiser = _TrueNoise(clean, refiner.kept)
    refiner.denoiser = denoiser  # type: ignore[assignment]
    thought = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(refiner.reverse(thought), clean)
    first = {1: [9], 2: [9, 0], 4: [9, 6, 3, 0]}[steps]
    assert [asked[0] for asked in denoiser.asked] == first


def test_the_process_by_hand() -> None:
    # Two steps at a = cos^2(67.5) and cos^2(22.5), a denoiser that always says (1, -1).
    refiner = _refiner(dim=2, num_noise_steps=3, num_refining_steps=2)
    said = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    refiner.denoiser = _Says(lambda x: said)  # type: ignore[assignment]
    refiner.noise.copy_(torch.tensor([1.0, 0.5]))
    refiner.kept.copy_(torch.tensor([0.8, 0.5, 0.2]))
    # x = (2, -0.5) + (1, 0.5) = (3, 0); minus sqrt(.8) (1, -1): (2.10557, 0.89443), to unit
    # variance: / sqrt((4.43344 + 0.8) / 2) = / 1.61763: (1.30164, 0.55293).
    # x = sqrt(.8) of it + sqrt(.2) (1, -1) = (1.61144, 0.04734); minus sqrt(.2) (1, -1):
    # the direction of (1.16422, 0.49456), which is the same again.
    got = refiner.reverse(torch.tensor([[2.0, -0.5]], dtype=torch.float64))
    want = torch.tensor([[1.30164, 0.55293]], dtype=torch.float64)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=0)


def test_noise_is_the_same_for_every_row_and_every_call() -> None:
    refiner = _refiner()
    thought = torch.ones(3, 2, 6, dtype=torch.float64)
    got = refiner(thought)
    torch.testing.assert_close(got, got[:1, :1].expand_as(got))
    assert torch.equal(got, refiner(thought))
    assert "noise" in refiner.state_dict()


def test_the_loss_moves_the_denoiser_alone() -> None:
    model = make_model(**ON)
    tokens, targets = make_tokens(KINDS, PROMPTS), make_targets(POSITIONS, 4)
    context = model.window(tokens, targets.position)
    parts = auxiliary_parts(model, context, targets)
    assert set(parts) == {"refining"}
    parts["refining"].backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == name.startswith("refiner.denoiser."), name


def test_generation_moves_all_but_the_denoiser() -> None:
    model = make_model(**ON)
    tokens, targets = make_tokens(KINDS, PROMPTS), make_targets(POSITIONS, 4)
    model.mtp_logits(tokens, targets).square().sum().backward()
    for name, parameter in model.named_parameters():
        if name.startswith(("hte.", "head_logits", "refiner.denoiser.")):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.ne(0).any(), name


def test_the_target_never_reaches_the_logits_of_generation() -> None:
    # Level 1 has no codes to see: it must not move with the target at all, nor level l with the
    # target's codes from l on; and the state before any code is made without targets.
    model = make_model(**ON)
    tokens, targets = make_tokens(KINDS, PROMPTS), make_targets(POSITIONS, 4)
    before = model.mtp_logits(tokens, targets)
    for level in range(3):
        changed = targets.clone()
        changed.codes[..., level] = (changed.codes[..., level] + 1) % SPEC.num_codes
        context = model.window(tokens, changed.position)
        auxiliary_parts(model, context, changed)  # learns from the target
        after = model.window_logits(context, changed.codes)
        assert torch.equal(after[..., : level + 1, :], before[..., : level + 1, :])
        if level < 2:
            assert (after != before)[..., level + 1, :].any()


def test_training_and_serving_see_the_same_token() -> None:
    model = make_model(**ON)
    request = make_request([9, 5])
    position = (request.tokens.kind > 0).sum(1, keepdim=True) - 1
    window = model.train().window(request.tokens, position)
    served = model.eval().encode(request)
    assert torch.equal(window.start, served.start)
    assert window.shared.shape[5] == 4  # two thinking tokens, the refining one, start


def test_the_refining_token_matters() -> None:
    model = make_model(**ON)
    request = make_request([9, 5])
    before = model.encode(request).start
    assert model.refiner is not None
    with torch.no_grad():
        model.refiner.noise.neg_()
    assert (model.encode(request).start - before).abs().max() > 1e-4


def test_the_denoiser_learns_to_tell_two_targets_apart() -> None:
    refiner = _refiner(dim=8, num_noise_steps=20, num_refining_steps=4).float()
    generator = torch.Generator().manual_seed(1)
    thought, target = torch.randn(2, 2, 8, generator=generator).unbind()
    optimizer = torch.optim.Adam(refiner.denoiser.parameters(), lr=3e-3)
    valid = torch.ones(2, 64, dtype=torch.bool)
    many = thought[:, None].expand(-1, 64, -1), target[:, None].expand(-1, 64, -1), valid
    start = float(refiner.loss(*many, generator).detach())
    for _ in range(300):
        optimizer.zero_grad()
        loss = refiner.loss(*many, generator)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.4 * start
    found, want = refiner.reverse(thought), unit_variance(target)
    near = (found - want).square().mean(-1)
    far = (found - want.flip(0)).square().mean(-1)
    assert (near < 0.5 * far).all()


def test_the_loss_by_hand_and_without_targets() -> None:
    refiner = _refiner()
    refiner.denoiser = _Says(torch.zeros_like)  # type: ignore[assignment]
    thought = torch.zeros(2, 3, 6, dtype=torch.float64)
    valid = torch.tensor([[True, False, False], [True, True, False]])
    loss = refiner.loss(thought, thought + 1, valid, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    torch.randint(10, (3,), generator=generator)
    noise = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(loss, noise.square().mean())
    assert _refiner().loss(thought, thought, valid & False).item() == 0.0


def test_path_embedding_is_a_sum_over_levels() -> None:
    table = torch.arange(12.0).view(6, 2)  # three levels of two codes
    got = path_embedding(table, torch.tensor([[0, 1, 1], [1, 0, 0]]))
    assert got.tolist() == [[0 + 6 + 10, 1 + 7 + 11], [2 + 4 + 8, 3 + 5 + 9]]
    torch.testing.assert_close(unit_variance(got).square().mean(-1), torch.ones(2))
    assert unit_variance(torch.zeros(2, 3)).eq(0).all()


def test_it_trains_beside_the_policy() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = HHD(HHDConfig(dim=16, num_heads=2, num_mtp_heads=2, **ON), SPEC)  # type: ignore[arg-type]
    tokens, targets = make_tokens(KINDS, PROMPTS), make_targets(POSITIONS, 2)
    targets.legal_mask[:] = True
    optimizer = torch.optim.Adam(model.policy_parameters(), lr=1e-2)
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(60):
        optimizer.zero_grad()
        context = model.window(tokens, targets.position)
        logits = model.window_logits(context, targets.codes)
        policy = mtp_loss(logits, targets, model.head_logits, 0.0)
        parts = auxiliary_parts(model, context, targets, generator)
        (policy + parts["refining"]).backward()
        optimizer.step()
        losses.append((policy.item(), parts["refining"].item()))
    assert losses[-1][0] < 0.1 * losses[0][0]
    early, late = (sum(x[1] for x in part) for part in (losses[:10], losses[-10:]))
    assert late < early


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_thinking_tokens": 0}, "refining needs num_thinking_tokens of at least 1, got 0"),
        ({"num_noise_steps": 2}, "num_noise_steps must be at least num_refining_steps = 3, got 2"),
        ({"num_denoiser_layers": 0}, "num_denoiser_layers must be at least 1, got 0"),
    ],
)
def test_bad_sizes_are_named(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HHDConfig(**{**ON, **change})  # type: ignore[arg-type]
