import math

import pytest
import torch
from torch import Tensor

from gpr_rl.models.layers.grouping import TokenLayout
from gpr_rl.models.rivals.hstu import HSTUBlock
from gpr_rl.schema import NUM_TIME_GAPS, Action
from tests.gpr_rl.models.model_inputs import SPEC, E, I, O, U, make_tokens
from tests.gpr_rl.models.rival_inputs import make_batch, make_rival


def _silu(x: float) -> float:
    return x / (1 + math.exp(-x))


def _norm(x: list[float], weight: Tensor, bias: Tensor) -> list[float]:
    mean = sum(x) / len(x)
    variance = sum((a - mean) ** 2 for a in x) / len(x)
    return [
        (a - mean) / math.sqrt(variance + 1e-6) * w + b
        for a, w, b in zip(x, weight.tolist(), bias.tolist(), strict=True)
    ]


def _linear(x: list[float], weight: Tensor, bias: Tensor) -> list[float]:
    pairs = zip(weight.tolist(), bias.tolist(), strict=True)
    return [sum(a * w for a, w in zip(x, row, strict=True)) + b for row, b in pairs]


def _slow_block(block: HSTUBlock, x: list[list[float]], time: list[int]) -> list[list[float]]:
    """One sequence through the block, number by number (Zhai et al., Eqs. 1 to 3)."""
    dim, heads = len(x[0]), block.num_heads
    width = dim // heads
    projected = []
    for token in x:
        normal = _norm(token, block.norm.weight, block.norm.bias)
        projected.append([_silu(a) for a in _linear(normal, block.uvqk.weight, block.uvqk.bias)])
    out = []
    for i, token in enumerate(x):
        found = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            query, total = projected[i][2 * dim : 3 * dim][part], [0.0] * width
            for j in range(i + 1):
                value, key = projected[j][dim : 2 * dim][part], projected[j][3 * dim :][part]
                bucket = int(math.log2(max(1, time[i] - time[j])))
                bias = block.position_bias[i - j].item() + block.time_bias[bucket].item()
                weight = _silu(sum(a * b for a, b in zip(query, key, strict=True)) + bias)
                total = [a + weight / (i + 1) * b for a, b in zip(total, value, strict=True)]
            found += total
        normal = _norm(found, block.attended_norm.weight, block.attended_norm.bias)
        gated = [a * b for a, b in zip(normal, projected[i][:dim], strict=True)]
        change = _linear(gated, block.output.weight, block.output.bias)
        out.append([a + b for a, b in zip(token, change, strict=True)])
    return out


@pytest.mark.parametrize("query_chunk", [1, 3, 256])
def test_states_equal_a_plain_double_loop(query_chunk: int) -> None:
    model = make_rival("hstu", query_chunk=query_chunk)
    kinds = [[U, O, E, I, O, O, E], [U, E, I, E]]
    tokens = make_tokens(kinds, [1, 1])
    layout = TokenLayout.of(tokens.kind)
    x = layout.unpack(model.embedding(tokens, layout))
    got = model.states(tokens, torch.zeros_like(tokens.kind), torch.arange(7).expand(2, -1))
    for row, kind in enumerate(kinds):
        gaps = tokens.time_gap[row, : len(kind)].tolist()
        time = [
            sum(1.5 * 2 ** (b + 2) if b else 0 for b in gaps[: i + 1]) for i in range(len(gaps))
        ]
        slow = x[row, : len(kind)].tolist()
        for block in model.blocks:
            slow = _slow_block(block, slow, time)
        want = torch.nn.functional.layer_norm(
            torch.tensor(slow).double(), (8,), model.norm.weight, model.norm.bias
        )
        torch.testing.assert_close(got[row, : len(kind)], want, rtol=1e-6, atol=1e-6)


def test_chunks_change_neither_loss_nor_gradient() -> None:
    batch, found = make_batch([11, 4, 8, 2], num_positions=3), []
    for query_chunk in (256, 4):
        model = make_rival("hstu", query_chunk=query_chunk)
        loss = model.loss(batch)
        loss.backward()
        found.append((loss.detach(), [x.grad for x in model.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-12)


def test_backward_keeps_no_scores_of_the_whole_sequence() -> None:
    """What autograd saves with chunks has no tensor as large as one chunk's scores."""
    batch, sizes = make_batch([16, 16]), []
    model = make_rival("hstu", query_chunk=4)

    def note(x: Tensor) -> Tensor:
        sizes.append(x.shape)
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        model.loss(batch)
    assert sizes
    assert not [shape for shape in sizes if len(shape) == 4 and shape[-1] > 8]


def test_time_is_known_beyond_the_gap_embeddings() -> None:
    model, batch = make_rival("hstu"), make_batch([10])
    first_gap = SPEC.num_levels * SPEC.num_codes + len(Action)
    model.embedding.table.data[first_gap : first_gap + NUM_TIME_GAPS] = 0
    want = model.states(batch.tokens, batch.item, batch.position)
    moved = batch.tokens.clone()
    moved.time_gap = (moved.time_gap + 3) % NUM_TIME_GAPS
    assert not torch.allclose(model.states(moved, batch.item, batch.position), want)
