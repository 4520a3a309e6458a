import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from gpr_rl.models.layers.attention import Pairs
from gpr_rl.models.layers.grouping import TokenLayout
from gpr_rl.models.masks import token_time
from gpr_rl.models.mor import (
    balance_loss,
    depth_of,
    depth_share,
    recurse,
    split_blocks,
    z_loss,
)
from gpr_rl.schema import Tokens
from tests.gpr_rl.models.model_inputs import make_model, make_request

LENGTHS = [13, 5, 9]


def _pairs(tokens: Tokens, dtype: torch.dtype = torch.float64) -> Pairs:
    time = token_time(tokens.time_gap)
    return Pairs(tokens.kind, tokens.prompt_length, dtype=dtype, time=time)


def _logits_for(depth: Tensor, recursions: int, sure: float = 2.0) -> Tensor:
    """Logits whose favourite is `depth`; it has probability e^sure / (e^sure + R - 1)."""
    return functional.one_hot(depth - 1, recursions).double() * sure


def _only(tokens: Tokens, row: int, kept: Tensor) -> Tokens:
    """The tokens `kept` of one sequence as a sequence of their own."""
    part = tokens[row : row + 1].clone()
    for name in ("kind", "codes", "action", "time_gap", "context"):
        setattr(part, name, getattr(part, name)[:, kept])
    part.prompt_length = (kept < tokens.prompt_length[row]).sum()[None]
    return part


@pytest.mark.parametrize("relative_time", [False, True])
def test_each_step_equals_the_block_on_the_active_tokens_alone(relative_time: bool) -> None:
    model = make_model(num_hsd_layers=1, relative_time=relative_time)
    block: Any = model.hsd.blocks[0]
    tokens = make_request(LENGTHS, seed=1).tokens
    layout = TokenLayout.of(tokens.kind)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(layout.rows), 8, generator=generator, dtype=torch.float64)
    depth = torch.randint(1, 4, x.shape[:1], generator=generator)
    got = layout.unpack(recurse(x, _logits_for(depth, 3), [block], layout, _pairs(tokens)))

    weight = math.exp(2) / (math.exp(2) + 2)
    states, depths = layout.unpack(x), layout.unpack(depth[:, None].double())[..., 0]
    times = token_time(tokens.time_gap)
    for row, length in enumerate(LENGTHS):
        state = states[row, :length].clone()
        for step in (1, 2, 3):
            kept = (depths[row, :length] >= step).nonzero()[:, 0]
            if len(kept) == 0:
                continue
            part = _only(tokens, row, kept)
            own = TokenLayout.of(part.kind)
            pairs = Pairs(
                part.kind,
                part.prompt_length,
                dtype=x.dtype,
                position=kept[None],
                time=times[row : row + 1, kept],
            )
            packed = state[kept][own.rows]
            moved = own.unpack(packed + weight * (block(packed, own, pairs) - packed))
            state[kept] = moved[0]
        torch.testing.assert_close(got[row, :length], state, rtol=1e-10, atol=1e-12)


def test_one_certain_recursion_is_the_plain_stack() -> None:
    tokens = make_request(LENGTHS).tokens
    for layers in (1, 2, 3, 5):
        plain = make_model(num_hsd_layers=layers)
        looped = make_model(num_hsd_layers=layers, num_recursions=1)
        looped.hsd.load_state_dict(plain.hsd.state_dict(), strict=False)
        torch.testing.assert_close(looped.hsd(tokens)[0], plain.hsd(tokens)[0], rtol=0, atol=1e-12)


def test_the_number_of_blocks_stays() -> None:
    splits = [[range(n)[part] for part in split_blocks(n)] for n in (1, 2, 3, 5)]
    assert [[list(part) for part in split] for split in splits] == [
        [[], [0], []],
        [[0], [1], []],
        [[0], [1], [2]],
        [[0], [1, 2, 3], [4]],
    ]
    plain, looped = make_model(num_hsd_layers=3), make_model(num_hsd_layers=3, num_recursions=4)
    more = set(looped.state_dict()) - set(plain.state_dict())
    assert more == {f"hsd.router.{x}" for x in ("norm.weight", "norm.bias", "output.weight")} | {
        "hsd.router.output.bias"
    }


def test_the_last_block_sees_tokens_that_left_early() -> None:
    # Middle-Cycle: whatever the depths, the last block attends over all tokens again.
    model = make_model(num_hsd_layers=3, num_recursions=2)
    tokens = make_request([9]).tokens
    layout = TokenLayout.of(tokens.kind)
    x = model.hsd.embedding(tokens, layout).detach().requires_grad_()
    model.hsd.transform(x, tokens, layout)[0][0, -1].sum().backward()
    assert x.grad is not None
    assert x.grad.ne(0).any(-1).all()


def test_the_router_sees_its_own_token_only() -> None:
    model = make_model(num_hsd_layers=1, num_recursions=3)
    tokens = make_request(LENGTHS).tokens
    layout = TokenLayout.of(tokens.kind)
    x = model.hsd.embedding(tokens, layout).detach()
    assert model.hsd.router is not None
    logits = model.hsd.router(x)
    for token in range(len(x)):
        torch.testing.assert_close(model.hsd.router(x[token : token + 1])[0], logits[token])


def test_a_depth_moves_nobody_who_does_not_see_the_token() -> None:
    model = make_model(num_hsd_layers=1)
    block: Any = model.hsd.blocks[0]
    tokens = make_request([12, 12], seed=2).tokens
    tokens.prompt_length[:] = 1
    layout, pairs = TokenLayout.of(tokens.kind), _pairs(tokens)
    x = torch.randn(24, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    place = layout.rows.argsort()  # packed index of (row, token)
    depth = torch.full((24,), 2)
    before = layout.unpack(recurse(x, _logits_for(depth, 3), [block], layout, pairs))
    for token in range(12):
        for new in (1, 3):
            other = depth.clone()
            other[place[token]] = new
            after = layout.unpack(recurse(x, _logits_for(other, 3), [block], layout, pairs))
            differs = (after - before).abs().amax(-1) > 1e-12
            assert not differs[1].any()
            assert not differs[0, :token].any()
            assert differs[0, token]
            later = differs[0, token + 1 :]
            assert later.all() if new == 1 else not later.any()  # nobody else is at depth 3


def _flops(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def test_work_falls_with_the_mean_depth() -> None:
    model = make_model(num_hsd_layers=1, dim=32)
    block: Any = model.hsd.blocks[0]
    tokens = make_request([64] * 4).tokens
    tokens.prompt_length[:] = 32
    layout, pairs = TokenLayout.of(tokens.kind), _pairs(tokens)
    x = torch.zeros(256, 32, dtype=torch.float64)

    def work(depth: Tensor) -> int:
        with torch.no_grad():
            return _flops(lambda: recurse(x, _logits_for(depth, 4), [block], layout, pairs))

    once = work(torch.ones(256, dtype=torch.int64))
    assert work(torch.full((256,), 4)) == 4 * once
    token = layout.rows % 64
    half = torch.where(token % 2 == 0, 4, 1)  # mean depth 2.5
    # Linear maps halve exactly in three of four steps, attention to a quarter.
    assert once * (1 + 3 / 4) < work(half) < once * (1 + 3 / 2)
    assert work(torch.where(token == 0, 4, 1)) < once * 1.1


def test_losses_by_hand() -> None:
    # Three real tokens that stop at 1, 1, 2 with probabilities (3/4, 1/4), (3/4, 1/4), (1/4, 3/4).
    logits = torch.tensor([[3.0, 1.0], [3.0, 1.0], [1.0, 3.0], [9.0, 1.0]]).double().log()
    real = torch.tensor([True, True, True, False])
    assert depth_of(logits).tolist() == [1, 1, 2, 1]
    torch.testing.assert_close(depth_share(logits, real), torch.tensor([2 / 3, 1 / 3]).double())
    # P = (7/12, 5/12): 2 (2/3 7/12 + 1/3 5/12) = 19/18; logsumexp is log 4 everywhere.
    assert balance_loss(logits, real).item() == pytest.approx(19 / 18)
    assert z_loss(logits, real).item() == pytest.approx(math.log(4) ** 2)


def test_the_balance_loss_spreads_depths() -> None:
    logits = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * 0.1
    logits = (logits + torch.tensor([0.0, 2.0, 0.0])).requires_grad_()
    shift = torch.zeros(3, requires_grad=True)
    real = torch.ones(200, dtype=torch.bool)
    optimizer = torch.optim.Adam([shift], lr=0.05)
    assert depth_share(logits, real)[1] == 1.0
    for _ in range(100):
        optimizer.zero_grad()
        balance_loss(logits.detach() + shift, real).backward()
        optimizer.step()
    assert depth_share(logits + shift, real).min() > 0.2


def test_the_router_learns_from_what_its_choice_led_to() -> None:
    model = make_model(num_hsd_layers=1, num_recursions=3)
    tokens = make_request(LENGTHS).tokens
    seen: list[Tensor] = []
    assert model.hsd.router is not None
    model.hsd.router.register_forward_hook(lambda *call: seen.append(call[2]))
    h = model.hsd(tokens)[0]
    (gradient,) = torch.autograd.grad((h * torch.linspace(-1, 1, 8).double()).square().sum(), seen)
    assert gradient.ne(0).any(-1).all()  # tokens of every depth, the shallow ones too
    assert set(depth_of(seen[0]).tolist()) == {1, 2, 3}
