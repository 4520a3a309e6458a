"""Attention with a learned bias, some sequences at a time, against torch's own."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure.flops import training_flops
from gpr_rl.models.layers import attention
from gpr_rl.models.layers.attention import Biases

HEADS, WIDTH, BUCKETS = 2, 4, 5
CASES = list(product([1, 3], [1, 3], [5, 7]))


def _inputs(shared_mask: int, shared_bias: int, keys: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return query, key, value and table in float64; bucket and mask."""
    draw = torch.Generator().manual_seed(3)
    shapes = [(3, HEADS, 5, WIDTH), *[(3, HEADS, keys, WIDTH)] * 2, (BUCKETS, HEADS)]
    free = [torch.randn(s, generator=draw, dtype=torch.float64) for s in shapes]
    batch = () if shared_bias == 1 else (3,)
    bucket = torch.randint(0, BUCKETS, (*batch, 5, keys), generator=draw)
    hidden = torch.rand((shared_mask, 1, 5, keys), generator=draw) < 0.3
    hidden[..., 0] = False
    mask = torch.zeros(hidden.shape, dtype=torch.float64)
    return free, bucket, mask.masked_fill(hidden, torch.finfo(torch.float64).min)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, table: Tensor, bucket: Tensor, mask: Tensor
) -> Tensor:
    return attention._plain(query, key, value, Biases(table), mask, bucket, None)


@pytest.mark.parametrize("cache", [1, 200, 10**6])
@pytest.mark.parametrize("case", CASES)
def test_it_is_torchs_attention(
    case: tuple[int, int, int], cache: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_CACHE_BYTES", cache)
    free, bucket, mask = _inputs(*case)
    for x in free:
        x.requires_grad_()
    got = _attend(*free, bucket, mask)
    bias = free[3][bucket].movedim(-1, -3)
    want = F.scaled_dot_product_attention(*free[:3], attn_mask=bias + mask)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(_attend(*free, bucket, mask), want, rtol=0, atol=1e-12)
    weight = torch.linspace(-1, 1, want.numel(), dtype=want.dtype).view_as(want)
    pairs = zip(
        torch.autograd.grad((got * weight).sum(), free),
        torch.autograd.grad((want * weight).sum(), free),
        strict=True,
    )
    for mine, torchs in pairs:
        torch.testing.assert_close(mine, torchs, rtol=0, atol=1e-12)


def test_gradients_are_those_of_small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_CACHE_BYTES", 600)
    free, bucket, mask = _inputs(3, 3, 7)
    for x in free:
        x.requires_grad_()
    assert torch.autograd.gradcheck(lambda *x: _attend(*x, bucket, mask), free)


def test_autocast_and_plain_products_agree() -> None:
    free, bucket, mask = _inputs(3, 1, 7)
    parts = [x.float() for x in free]
    mask = mask.float().clamp_min(torch.finfo(torch.float32).min)
    with torch.autocast("cpu", torch.bfloat16):
        rough = _attend(*parts, bucket, mask)
    torch.testing.assert_close(rough.float(), _attend(*parts, bucket, mask), rtol=0.03, atol=0.03)


def test_nothing_is_attended_by_no_sequence() -> None:
    free, bucket, mask = _inputs(1, 1, 7)
    none = [x[:0].requires_grad_() for x in free[:3]]
    table = free[3].requires_grad_()
    found = _attend(*none, table, bucket, mask)
    assert found.shape == (0, HEADS, 5, WIDTH)
    found.sum().backward()
    assert table.grad is not None
    assert not table.grad.any()


def test_its_products_are_counted() -> None:
    free, bucket, mask = _inputs(3, 1, 7)
    products = 2 * (3 * HEADS * 5 * 7 * WIDTH) * 2
    assert training_flops(lambda: _attend(*free, bucket, mask)) == 3 * products


def test_there_may_be_no_queries() -> None:
    free, bucket, mask = _inputs(3, 1, 7)
    queries = [free[0][:, :, :0], *free[1:]]
    assert _attend(*queries, bucket[:0], mask[:, :, :0]).shape == (3, HEADS, 0, WIDTH)
