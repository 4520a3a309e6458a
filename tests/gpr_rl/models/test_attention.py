"""Masks, distances and attention: against torch, plain loops, and the memory of long histories."""

import math
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.measure.flops import training_flops
from gpr_rl.models import HHD, HHDConfig
from gpr_rl.models.layers import attention
from gpr_rl.models.layers.attention import Biases, Pairs, attend
from gpr_rl.models.layers.grouping import TokenLayout
from gpr_rl.models.masks import (
    NUM_DISTANCE_BUCKETS,
    NUM_TIME_BUCKETS,
    bucket_of_distance,
    hybrid_mask,
    time_bucket,
    token_time,
)
from gpr_rl.pretraining.mtp import mtp_loss
from gpr_rl.schema import TokenType
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

KINDS = [[U, O, E, I, O, E, I, E], [U, E, I, E, I, O, E], [U, O, O, E]]
PROMPTS = [5, 2, 4]
HEADS, WIDTH, BUCKETS = 2, 4, 5
CASES = list(product([1, 3], [1, 3], [5, 7]))
LENGTHS = [23, 9, 16]
NUM_TOKENS, DIM, NUM_HEADS = 2048, 128, 4


def _kind() -> torch.Tensor:
    return torch.tensor([[*row, *[TokenType.PAD] * (8 - len(row))] for row in KINDS])


def test_the_mask_matches_the_rule_said_in_words() -> None:
    mask = hybrid_mask(_kind(), torch.tensor(PROMPTS))
    for row, (kinds, prompt) in enumerate(zip(KINDS, PROMPTS, strict=True)):
        for i, query in enumerate(kinds):
            expected = [
                j <= i or (i < prompt and j < prompt and query != I and key != I)
                for j, key in enumerate(kinds)
            ]
            assert mask[row, i, : len(kinds)].tolist() == expected


def test_nobody_sees_padding() -> None:
    mask = hybrid_mask(_kind(), torch.tensor([8, 8, 8]))
    for row, kinds in enumerate(KINDS):
        assert not mask[row, : len(kinds), len(kinds) :].any()


def test_without_hybrid_attention_the_mask_is_causal() -> None:
    mask = hybrid_mask(_kind(), torch.tensor(PROMPTS), hybrid=False)
    assert torch.equal(mask, torch.ones(3, 8, 8, dtype=torch.bool).tril())


def test_distance_buckets_are_exact_then_logarithmic() -> None:
    bucket = bucket_of_distance(torch.arange(300)[:, None] - torch.arange(300))
    past = bucket[-1].flip(0).tolist()  # past[d] is the bucket of distance d
    assert past[:8] == list(range(8))
    # Above: 8 + floor(2 log2(d / 8)), at most 15. By squares, free of rounding: 2 log2(d / 8) >= k
    # where d^2 >= 64 * 2^k.
    for distance in range(8, 300):
        steps = max(k for k in range(20) if distance**2 >= 64 * 2**k)
        assert past[distance] == min(8 + steps, 15), distance
    assert math.isclose(past[128], 15)


def test_later_tokens_have_buckets_of_their_own() -> None:
    bucket = bucket_of_distance(torch.arange(20)[:, None] - torch.arange(20))
    half = NUM_DISTANCE_BUCKETS // 2
    upper = bucket.triu(1)
    assert torch.equal(upper, (bucket.mT + half).triu(1))
    assert bucket.tril().max() < half


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


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest result of any operation, with its name."""

    def __init__(self) -> None:
        super().__init__()
        self.size, self.where = 0, ""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(part, Tensor) and part.numel() > self.size:
                self.size, self.where = part.numel(), str(func)
        return result


def _largest_of_training(**switches: object) -> LargestTensor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = HHD(HHDConfig(dim=DIM, num_heads=NUM_HEADS, **switches), SPEC)  # type: ignore[arg-type]
    request = make_request([NUM_TOKENS])
    position = torch.tensor([[NUM_TOKENS - 1]])
    targets = make_targets(position, 4)
    assert request.tokens.prompt_length.item() == NUM_TOKENS // 2  # two-way attention is large too
    with LargestTensor() as largest, torch.no_grad():
        model.encode(request)
    with largest:
        logits = model.mtp_logits(request.tokens, targets)
        mtp_loss(logits, targets, model.head_logits).backward()
    assert all(parameter.grad is not None for parameter in model.hsd.parameters())
    return largest


@pytest.mark.parametrize(
    "switches",
    [
        {"attention_bias": "rotary"},
        {"attention_bias": "none"},
        {"attention_chunk": 128},
        {"attention_chunk": 128, "relative_time": True, "attention_bias": "none"},
        {"attention_chunk": 128, "num_recursions": 2, "num_hsd_layers": 1},
        {"attention_bias": "rotary", "num_recursions": 2, "num_hsd_layers": 1},
    ],
)
def test_no_tensor_over_all_pairs_of_2048_tokens(switches: dict[str, Any]) -> None:
    largest = _largest_of_training(**switches)
    # [T, 4 D] and a chunk of scores [H, 128, T] are 2^20 each; all pairs of one head are 2^22.
    assert largest.size <= NUM_TOKENS * 4 * DIM, largest.where


def test_the_tracker_sees_what_the_default_holds() -> None:
    assert _largest_of_training(num_hsd_layers=1).size == NUM_HEADS * NUM_TOKENS**2


@pytest.mark.parametrize("switches", [{}, {"relative_time": True}, {"hybrid_attention": False}])
@pytest.mark.parametrize("recursions", [0, 2])
def test_chunks_change_nothing(switches: dict[str, Any], recursions: int) -> None:
    tokens = make_request(LENGTHS).tokens
    gradients = []
    for chunk in (0, 5):
        model = make_model(attention_chunk=chunk, num_recursions=recursions, **switches)
        h = model.hsd(tokens)[0]
        weight = torch.linspace(-1, 1, h.numel(), dtype=h.dtype).view_as(h)
        (h * weight).sum().backward()
        gradients.append((h, [parameter.grad for parameter in model.hsd.parameters()]))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def _attend_packed(vqk: Tensor, pairs: Pairs, biases: Biases, *, rotary: bool) -> Tensor:
    """Attend with two heads; values, queries and keys lie side by side."""
    heads = vqk.unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    return attend(heads, pairs, biases, rotary=rotary).transpose(1, 2).flatten(2)


def _by_loop(vqk: Tensor, num_heads: int, kind: Tensor, prompt: Tensor) -> Tensor:
    """Softmax attention without bias, a query at a time."""
    value, query, key = (part.unflatten(-1, (num_heads, -1)) for part in vqk.chunk(3, dim=-1))
    visible = hybrid_mask(kind, prompt)
    out = torch.zeros_like(query)
    for row in range(len(kind)):
        for i in range(kind.shape[1]):
            seen = visible[row, i].nonzero()[:, 0]
            score = torch.einsum("hd,khd->hk", query[row, i], key[row, seen])
            weight = (score / query.shape[-1] ** 0.5).softmax(-1)
            out[row, i] = torch.einsum("hk,khd->hd", weight, value[row, seen])
    return out.flatten(2)


@pytest.mark.parametrize("prompts", [[1, 1, 1], [12, 9, 3], [23, 9, 16]])
def test_fused_attention_equals_a_plain_loop(prompts: list[int]) -> None:
    tokens = make_request(LENGTHS).tokens
    generator = torch.Generator().manual_seed(0)
    vqk = torch.randn(3, 23, 24, generator=generator, dtype=torch.float64)
    prompt = torch.tensor(prompts)
    pairs = Pairs(tokens.kind, prompt, dtype=vqk.dtype)
    got = _attend_packed(vqk, pairs, Biases(), rotary=False)
    real = tokens.kind > 0
    want = _by_loop(vqk, 2, tokens.kind, prompt)
    torch.testing.assert_close(got[real], want[real], rtol=1e-10, atol=1e-12)


def test_rotary_scores_depend_on_distance_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    vqk = torch.randn(1, 1, 24, generator=generator, dtype=torch.float64).expand(1, 12, -1)
    kind = torch.full((1, 12), int(I))
    whole = Pairs(kind, torch.ones(1, dtype=torch.int64), dtype=vqk.dtype)
    shifted = Pairs(
        kind, whole.prompt_length, dtype=vqk.dtype, position=torch.arange(100, 112)[None]
    )
    spread = Pairs(
        kind, whole.prompt_length, dtype=vqk.dtype, position=torch.arange(0, 24, 2)[None]
    )
    value = torch.randn(1, 12, 8, generator=generator, dtype=torch.float64)
    vqk = torch.cat([value, vqk[..., 8:]], dim=-1)
    at_home, moved, wider = (
        _attend_packed(vqk, pairs, Biases(), rotary=True) for pairs in (whole, shifted, spread)
    )
    torch.testing.assert_close(moved, at_home, rtol=1e-10, atol=1e-12)
    assert (wider - at_home)[:, 2:].abs().amax(-1).gt(1e-4).all()


def test_time_is_the_sum_of_the_gaps() -> None:
    gap = torch.tensor([[0, 0, 1, 15, 3]])
    # 4, 4, round(2^3.5) = 11, round(2^17.5) = 185364, round(2^5.5) = 45 seconds
    assert token_time(gap).tolist() == [[4, 8, 19, 185383, 185428]]


def test_time_buckets_are_powers_of_two() -> None:
    seconds = torch.tensor([0, 1, 2, 3, 4, -4, 7, 8, 86400, 2**23 - 1, 2**23, 2**40])
    want = [0, 0, 1, 1, 2, 2, 2, 3, 16, 22, 23, 23]
    assert time_bucket(seconds).tolist() == want
    assert max(want) == NUM_TIME_BUCKETS - 1


def test_relative_time_is_a_bias_by_hand() -> None:
    # A query that scores all keys alike but for the time: 0, 90 s (bucket 6) and 181 s (7) ago.
    model = make_model(relative_time=True, num_hsd_layers=1)
    block: Any = model.hsd.blocks[0]
    tokens = make_tokens([[E, I, I]], [1])
    tokens.time_gap = torch.tensor([[9, 4, 4]])
    value = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    vqk = torch.cat([value, value.new_zeros(1, 3, 16)], dim=-1)
    pairs = Pairs(
        tokens.kind, tokens.prompt_length, dtype=vqk.dtype, time=token_time(tokens.time_gap)
    )
    got = _attend_packed(vqk, pairs, Biases(None, block.time_bias), rotary=False)[0, 2]
    bias = block.time_bias[[7, 6, 0]]  # 2^6.5 = 91 s per gap: 182, 91 and 0
    want = torch.einsum("kh,khd->hd", bias.softmax(0), value[0].unflatten(-1, (2, 4))).flatten()
    torch.testing.assert_close(got, want)


def test_time_matters_and_gives_its_bias_a_gradient() -> None:
    model = make_model(relative_time=True, attention_bias="none")
    tokens = make_request(LENGTHS).tokens
    layout = TokenLayout.of(tokens.kind)
    x = model.hsd.embedding(tokens, layout).detach()
    before = model.hsd.transform(x, tokens, layout)[0]
    before.square().sum().backward()
    for block in model.hsd.blocks:
        gradient = block.time_bias.grad
        assert isinstance(gradient, Tensor)
        assert gradient.ne(0).any()
        assert block.distance_bias is None
    tokens.time_gap = (tokens.time_gap + 5) % 16
    assert (model.hsd.transform(x, tokens, layout)[0] - before).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_bias": "learned"}, "attention_bias must be distance, rotary or none"),
        ({"attention_bias": "rotary", "dim": 6, "num_heads": 2}, "even head width, got 6 / 2"),
        ({"attention_chunk": -1}, "attention_chunk must be at least 0, got -1"),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_bad_switches_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HHDConfig(**change)
