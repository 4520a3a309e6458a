import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from gpr_rl.models.hsd import HSDBlock
from gpr_rl.models.layers.grouping import GroupedFFN, GroupedLayerNorm, TokenLayout
from gpr_rl.models.masks import bucket_of_distance, hybrid_mask
from tests.gpr_rl.models.model_inputs import SPEC, E, I, O, U, make_model, make_request, make_tokens

KINDS = [[U, O, E, I, O, E], [U, E, I, E]]


def _norm(x: list[float], weight: Tensor, bias: Tensor) -> list[float]:
    mean = sum(x) / len(x)
    variance = sum((a - mean) ** 2 for a in x) / len(x)
    return [
        (a - mean) / math.sqrt(variance + 1e-5) * w + b
        for a, w, b in zip(x, weight.tolist(), bias.tolist(), strict=True)
    ]


def _linear(x: list[float], weight: Tensor, bias: Tensor) -> list[float]:
    rows = zip(weight.tolist(), bias.tolist(), strict=True)
    return [sum(a * w for a, w in zip(x, row, strict=True)) + b for row, b in rows]


def _slow_block(
    block: HSDBlock, x: list[list[float]], kinds: list[int], visible: Tensor, bucket: Tensor
) -> list[list[float]]:
    """One sequence through the block, number by number."""
    dim, heads = len(x[0]), block.num_heads
    width = dim // heads
    norm, ffn_norm, ffn = block.attention_norm, block.ffn_norm, block.ffn

    def of_type(parameter: Tensor, kind: int) -> Tensor:
        return parameter[0 if len(parameter) == 1 else kind - 1]

    projected = []
    for token, kind in zip(x, kinds, strict=True):
        normal = _norm(token, of_type(norm.weight, kind), of_type(norm.bias, kind))
        raw = _linear(normal, block.uvqk.weight, block.uvqk.bias)
        projected.append([a / (1 + math.exp(-a)) for a in raw])
    out = []
    for i, (token, kind) in enumerate(zip(x, kinds, strict=True)):
        found = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            query = projected[i][2 * dim : 3 * dim][part]
            scores = {}
            for j in range(len(x)):
                if visible[i, j]:
                    key = projected[j][3 * dim :][part]
                    product = sum(a * b for a, b in zip(query, key, strict=True))
                    bias = block.distance_bias[bucket[i, j], head].item()
                    scores[j] = math.exp(product / math.sqrt(width) + bias)
            total = sum(scores.values())
            for d in range(width):
                values = {j: projected[j][dim : 2 * dim][part][d] for j in scores}
                found.append(sum(scores[j] / total * values[j] for j in scores))
        normal = _norm(found, block.output_norm.weight, block.output_norm.bias)
        gated = [a * b for a, b in zip(normal, projected[i][:dim], strict=True)]
        change = _linear(gated, block.output.weight, block.output.bias)
        token = [a + b for a, b in zip(token, change, strict=True)]
        normal = _norm(token, of_type(ffn_norm.weight, kind), of_type(ffn_norm.bias, kind))
        hidden = _linear(normal, of_type(ffn.weight_in, kind), of_type(ffn.bias_in, kind))
        hidden = [max(a, 0.0) for a in hidden]
        change = _linear(hidden, of_type(ffn.weight_out, kind), of_type(ffn.bias_out, kind))
        out.append([a + b for a, b in zip(token, change, strict=True)])
    return out


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"token_aware_norm": False},
        {"token_aware_ffn": False},
        {"hybrid_attention": False, "token_aware_norm": False, "token_aware_ffn": False},
    ],
)
def test_block_equals_a_plain_loop(switches: dict[str, bool]) -> None:
    model = make_model(num_hsd_layers=1, **switches)
    hybrid = switches.get("hybrid_attention", True)
    tokens = make_tokens(KINDS, [5, 2])
    layout = TokenLayout.of(tokens.kind)
    x = model.hsd.embedding(tokens, layout)
    h = model.hsd.transform(x, tokens, layout)[0]
    visible = hybrid_mask(tokens.kind, tokens.prompt_length, hybrid=hybrid)
    bucket = bucket_of_distance(torch.arange(6)[:, None] - torch.arange(6))
    block = model.hsd.blocks[0]
    assert isinstance(block, HSDBlock)
    padded = layout.unpack(x)
    for row, kinds in enumerate(KINDS):
        start = padded[row, : len(kinds)].tolist()
        slow = torch.tensor(_slow_block(block, start, kinds, visible[row], bucket)).double()
        want = functional.layer_norm(slow, (8,), model.hsd.norm.weight, model.hsd.norm.bias)
        torch.testing.assert_close(h[row, : len(kinds)], want, rtol=1e-6, atol=1e-6)
        assert h[row, len(kinds) :].eq(0).all()


def test_embedding_is_the_sum_of_what_a_token_carries() -> None:
    model = make_model()
    embedding = model.hsd.embedding
    tokens = make_tokens([[U, O, E, I]], [3])
    x = embedding(tokens, TokenLayout.of(tokens.kind))[:, None]  # one of each, in type order
    levels, num_codes = SPEC.num_levels, SPEC.num_codes
    action, gap, kind = levels * num_codes, levels * num_codes + 5, levels * num_codes + 21
    context, user = kind + 5, kind + 5 + 7
    table = embedding.table
    for position, token in enumerate((U, O, E, I)):
        want = table[gap + tokens.time_gap[0, position]] + table[kind + token]
        if token in (O, I):
            want = want + table[action + tokens.action[0, position]]
            for level in range(levels):
                want = want + table[level * num_codes + tokens.codes[0, position, level]]
        if token == E:
            scene, hour = tokens.context[0, position]
            want = want + table[context + scene] + table[context + 4 + hour]
        if token == U:
            age, gender = tokens.user[0]
            want = want + table[user + age] + table[user + 3 + gender]
            for level in range(levels):
                for code in range(num_codes):
                    share = tokens.preference[0, level, code].double()
                    want = want + share * table[level * num_codes + code]
        torch.testing.assert_close(x[position, 0], want)


def test_grouping_equals_computing_all_types_and_selecting() -> None:
    torch.manual_seed(0)
    kind = torch.tensor([[1, 2, 3, 4, 2, 0], [1, 3, 4, 3, 0, 0]])
    layout = TokenLayout.of(kind)
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    norm, ffn = GroupedLayerNorm(8, 4).double(), GroupedFFN(8, 16, 4).double()
    for module in (norm, ffn):
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter)
    packed = x.flatten(0, 1)[layout.rows]
    got = layout.unpack(ffn(norm(packed, layout.sizes), layout.sizes))
    every = []
    for g in range(4):
        y = functional.layer_norm(x, (8,), norm.weight[g], norm.bias[g])
        hidden = (y @ ffn.weight_in[g].T + ffn.bias_in[g]).relu()
        every.append(hidden @ ffn.weight_out[g].T + ffn.bias_out[g])
    index = (kind - 1).clamp_min(0)[None, ..., None].expand(1, 2, 6, 8)
    want = torch.stack(every).gather(0, index)[0] * (kind > 0)[..., None]
    torch.testing.assert_close(got, want)


def test_a_type_that_is_absent_gets_no_gradient_and_breaks_nothing() -> None:
    model = make_model()
    tokens = make_tokens([[U, E], [U, E]], [2, 2])
    model.hsd(tokens)[0].square().sum().backward()
    gradient = model.hsd.blocks[0].ffn.weight_in.grad
    assert isinstance(gradient, Tensor)
    assert gradient[[1, 3]].eq(0).all()
    assert gradient[[0, 2]].ne(0).any()


def test_gradients_equal_finite_differences() -> None:
    model = make_model(num_hsd_layers=1)
    tokens = make_request([6, 3]).tokens
    layout = TokenLayout.of(tokens.kind)
    x = model.hsd.embedding(tokens, layout).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda y: model.hsd.transform(y, tokens, layout)[0], x)


@pytest.mark.parametrize("lengths", [[7, 4, 9], [6, 6]])
def test_packed_order_goes_back_to_sequence_order(lengths: list[int]) -> None:
    kind = make_request(lengths, seed=3).tokens.kind
    layout, real = TokenLayout.of(kind), kind > 0
    x = torch.randn(*kind.shape, 12, dtype=torch.float64)
    packed = x.flatten(0, 1)[layout.rows].requires_grad_()
    assert torch.equal(layout.unpack(packed), x * real[..., None])
    heads = layout.unpack_heads(packed, 3, 2)  # 3 vectors of 2 heads of width 2
    assert heads.shape == (3, len(lengths), 2, kind.shape[1], 2)
    plain = heads.permute(1, 3, 0, 2, 4).flatten(2)
    assert torch.equal(plain[real], x[real])
    for vector in range(3):
        want = x[..., 4 * vector : 4 * vector + 4].flatten(0, 1)[layout.rows]
        assert torch.equal(layout.pack_heads(heads[vector]), want)


@pytest.mark.parametrize("lengths", [[7, 4, 9], [6, 6]])
def test_gradients_find_their_way_to_the_packed_order(lengths: list[int]) -> None:
    kind = make_request(lengths, seed=3).tokens.kind
    layout, num_real = TokenLayout.of(kind), int((kind > 0).sum())
    packed = torch.randn(num_real, 12, dtype=torch.float64, requires_grad=True)
    key_mask = (kind > 0)[:, None, :, None]  # what stands at padding nobody may read

    def there(x: Tensor) -> Tensor:
        return layout.unpack_heads(x, 3, 2) * key_mask

    def there_and_back(x: Tensor) -> Tensor:
        return layout.pack_heads(layout.unpack_heads(x, 3, 2).sin().sum(0))

    assert torch.autograd.gradcheck(there, packed)
    assert torch.autograd.gradcheck(there_and_back, packed)
    padded = torch.randn(*kind.shape, 4, dtype=torch.float64).unflatten(-1, (2, 2))
    padded = padded.transpose(1, 2).contiguous().requires_grad_()
    assert torch.autograd.gradcheck(layout.pack_heads, padded)


@pytest.mark.parametrize("num_heads", [1, 2])
@pytest.mark.parametrize("hybrid", [False, True])
def test_a_row_in_a_batch_equals_the_row_alone(num_heads: int, hybrid: bool) -> None:
    model = make_model(num_heads=num_heads, hybrid_attention=hybrid)
    tokens = make_request([9, 9, 9]).tokens
    together = model.hsd(tokens)[0]
    for row in range(3):
        alone = model.hsd(tokens[row : row + 1])[0]
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-12)
    assert model.hsd(tokens[:0])[0].shape == (0, 9, 8)


def test_learned_biases_train_under_autocast() -> None:
    model = make_model().float()
    tokens = make_request([9, 5]).tokens
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.hsd(tokens)[0].square().mean()
    loss.backward()
    bias = model.hsd.blocks[0].distance_bias
    assert bias.grad.abs().sum() > 0
