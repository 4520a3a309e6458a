from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gpr_rl.models import HHD, HHDConfig
from gpr_rl.models.layers.attention import Biases, Pairs, attend
from gpr_rl.models.layers.grouping import TokenLayout
from gpr_rl.models.masks import NUM_TIME_BUCKETS, hybrid_mask, time_bucket, token_time
from gpr_rl.pretraining.mtp import mtp_loss
from tests.gpr_rl.models.model_inputs import (
    SPEC,
    E,
    I,
    make_model,
    make_request,
    make_targets,
    make_tokens,
)

LENGTHS = [23, 9, 16]
NUM_TOKENS, DIM, NUM_HEADS = 2048, 128, 4


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
        h = model.hsd(tokens)
        weight = torch.linspace(-1, 1, h.numel(), dtype=h.dtype).view_as(h)
        (h * weight).sum().backward()
        gradients.append((h, [parameter.grad for parameter in model.hsd.parameters()]))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def _attend(vqk: Tensor, pairs: Pairs, biases: Biases, *, rotary: bool) -> Tensor:
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
    got = _attend(vqk, pairs, Biases(), rotary=False)
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
        _attend(vqk, pairs, Biases(), rotary=True) for pairs in (whole, shifted, spread)
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
    got = _attend(vqk, pairs, Biases(None, block.time_bias), rotary=False)[0, 2]
    bias = block.time_bias[[7, 6, 0]]  # 2^6.5 = 91 s per gap: 182, 91 and 0
    want = torch.einsum("kh,khd->hd", bias.softmax(0), value[0].unflatten(-1, (2, 4))).flatten()
    torch.testing.assert_close(got, want)


def test_time_matters_and_gives_its_bias_a_gradient() -> None:
    model = make_model(relative_time=True, attention_bias="none")
    tokens = make_request(LENGTHS).tokens
    layout = TokenLayout.of(tokens.kind)
    x = model.hsd.embedding(tokens, layout).detach()
    before = model.hsd.transform(x, tokens, layout)
    before.square().sum().backward()
    for block in model.hsd.blocks:
        gradient = block.time_bias.grad
        assert isinstance(gradient, Tensor)
        assert gradient.ne(0).any()
        assert block.distance_bias is None
    tokens.time_gap = (tokens.time_gap + 5) % 16
    assert (model.hsd.transform(x, tokens, layout) - before).abs().max() > 1e-4


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
