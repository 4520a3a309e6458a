from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gpr_rl.models import HHD, HHDConfig
from gpr_rl.models.decoder import CodeDecoder
from gpr_rl.models.lazy_ar import Fuse, LazyDecoder
from tests.gpr_rl.models.model_inputs import SPEC, make_model, make_request

LENGTHS = [9, 5, 12]
LAZY = {"decoder": "lazy_ar", "num_ptd_layers": 3, "num_lazy_layers": 2}


def _codes(*shape: int, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, SPEC.num_codes, (*shape, 3), generator=generator)


def _decoder(model: HHD) -> LazyDecoder:
    assert isinstance(model.ptd.decoder, LazyDecoder)
    return model.ptd.decoder


def test_no_lazy_layers_is_ordinary_autoregression() -> None:
    plain = make_model(num_ptd_layers=2)
    lazy = make_model(seed=1, num_ptd_layers=2, decoder="lazy_ar", num_lazy_layers=0)
    lazy.load_state_dict(plain.state_dict())  # strict: the same parameters
    request, codes = make_request(LENGTHS), _codes(3, 4)
    assert type(plain.ptd.decoder) is CodeDecoder
    assert isinstance(lazy.ptd.decoder, LazyDecoder)
    want = plain.logits(plain.encode(request), codes)
    torch.testing.assert_close(lazy.logits(lazy.encode(request), codes), want, rtol=0, atol=1e-12)


def test_a_fuse_that_ignores_the_trunk_leaves_the_last_layers_alone() -> None:
    # Without thinking tokens, W_f = [0, I] makes LazyAR the plain decoder of its last layer.
    lazy = make_model(num_thinking_tokens=0, **LAZY)
    plain = make_model(num_thinking_tokens=0, num_ptd_layers=1)
    decoder = _decoder(lazy)
    with torch.no_grad():
        identity = torch.eye(8, dtype=torch.float64)
        decoder.fuse.output.weight.copy_(torch.cat([torch.zeros_like(identity), identity], 1))
    state = {k: v for k, v in lazy.state_dict().items() if k in plain.state_dict()}
    state["ptd.decoder.memory.weight"] = decoder.memory.weight[32:].detach()
    state["ptd.decoder.memory.bias"] = decoder.memory.bias[32:].detach()
    plain.load_state_dict(state)
    request, codes = make_request(LENGTHS), _codes(3, 4)
    want = plain.logits(plain.encode(request), codes)
    torch.testing.assert_close(lazy.logits(lazy.encode(request), codes), want, rtol=0, atol=1e-12)


def test_fuse_by_hand() -> None:
    fuse = Fuse(2)
    with torch.no_grad():
        fuse.gate.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 2.0]]))
        fuse.output.weight.copy_(torch.tensor([[1.0, 0, 0, 10], [0, 1, 1, 0]]))
    # W_g s = (7, 8); m * it = (14, 24); [14, 24, 3, 4] -> (14 + 40, 24 + 3)
    got = fuse(torch.tensor([2.0, 3.0]), torch.tensor([3.0, 4.0]))
    assert got.tolist() == [54.0, 27.0]


def test_the_trunk_sees_no_code_and_no_other_level() -> None:
    model = make_model(**LAZY)
    decoder = _decoder(model)
    context = model.encode(make_request(LENGTHS))
    assert context.trunk is not None
    assert context.trunk.shape == (3, 1, 3, 8)
    with torch.no_grad():
        decoder.codes.mul_(2)
        decoder.level[1] += 1
    moved = model.encode(make_request(LENGTHS)).trunk
    assert moved is not None
    differs = (moved != context.trunk).any(-1)[:, 0]
    assert torch.equal(differs, torch.tensor([False, True, False]).expand(3, -1))


def test_the_trunk_equals_its_layers_one_position_at_a_time() -> None:
    # Without thinking tokens self-attention of a level position is its own value.
    model = make_model(num_thinking_tokens=0, **LAZY)
    decoder = _decoder(model)
    request = make_request([9])
    h = model.hsd(request.tokens)[0]
    context = model.encode(request)
    assert context.trunk is not None
    memory = decoder.memory(h[0]).unflatten(-1, (3, 2, 2, 4))
    for level in range(3):
        x: Any = decoder.level[level] + decoder.state(h[0, -1])
        for layer in range(2):
            block: Any = decoder.trunk_blocks[layer]
            value = block.qkv(block.self_norm(x))[16:]
            x = x + block.self_output(value)
            query = block.cross_query(block.cross_norm(x)).view(2, 4)
            key, found = memory[:, layer].unbind(1)
            weight = (torch.einsum("hd,thd->ht", query, key) / 2).softmax(-1)
            x = x + block.cross_output(torch.einsum("ht,thd->hd", weight, found).flatten())
            x = x + block.ffn_out(block.ffn_in(block.ffn_norm(x)).relu())
        torch.testing.assert_close(context.trunk[0, 0, level], x)


@pytest.mark.parametrize("lazy_layers", [0, 1, 2])
def test_beams_equal_known_paths(lazy_layers: int) -> None:
    model = make_model(**{**LAZY, "num_lazy_layers": lazy_layers}).float()
    context = model.encode(make_request(LENGTHS))
    log_prob, _, cache = model.begin(context)
    prefix = torch.zeros(3, 1, 0, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    steps = [log_prob.expand(-1, 7, -1)]
    for width in (4, 7):
        parent = torch.randint(0, prefix.shape[1], (3, width), generator=generator)
        code = torch.randint(0, 5, (3, width), generator=generator)
        log_prob, _, cache = model.extend(context, cache, parent, code)
        chosen = prefix.gather(1, parent[..., None].expand(-1, -1, prefix.shape[2]))
        prefix = torch.cat([chosen, code[..., None]], dim=-1)
        torch.testing.assert_close(log_prob, model.step(context, prefix)[0], rtol=0, atol=1e-5)
        steps.append(log_prob)
    known = model.logits(context, torch.cat([prefix, prefix[..., :1]], -1)).log_softmax(-1)
    for level in (0, 2):
        torch.testing.assert_close(steps[level], known[:, :, level], rtol=0, atol=1e-5)


def test_the_trunk_costs_nothing_per_beam() -> None:
    work = {}
    for lazy_layers in (0, 1, 2, 3):
        model = make_model(decoder="lazy_ar", num_ptd_layers=4, num_lazy_layers=lazy_layers)
        with torch.no_grad():
            context = model.encode(make_request(LENGTHS))
            codes = _codes(3, 1, 50)[..., :-1]
            with FlopCounterMode(display=False) as counter:
                model.ptd.decoder.candidates(context.state(), codes)
        work[lazy_layers] = counter.get_total_flops()
    per_layer = work[0] / 4
    fuse = 2 * 8 * 8 * 3 * 50 * 2  # 2 flops per weight; paths, codes
    fuse += 2 * (2 * 8 * 8) * 2 * SPEC.num_codes  # gate and code: once per code that exists
    for lazy_layers in (1, 2, 3):
        assert work[lazy_layers] == (4 - lazy_layers) * per_layer + fuse


def test_the_trunk_loss_reads_the_trunk() -> None:
    model = make_model(**LAZY)
    context = model.encode(make_request(LENGTHS))
    logits = model.ptd.trunk_logits(context.state())
    assert logits.shape == (3, 1, 3, 5)
    decoder = _decoder(model)
    assert context.trunk is not None
    hidden = decoder.trunk_norm(context.trunk[1, 0, 2])
    want = model.ptd.output[2] @ model.ptd.head[0, 0] @ hidden
    torch.testing.assert_close(logits[1, 0, 2], want)
    logits.square().sum().backward()
    for name, parameter in decoder.named_parameters():
        if name.startswith(("blocks.", "fuse.", "codes", "norm")):
            assert parameter.grad is None, name
    plain = make_model()
    with pytest.raises(ValueError, match="the decoder has no trunk"):
        plain.ptd.trunk_logits(plain.encode(make_request(LENGTHS)).state())


@pytest.mark.parametrize("lazy_layers", [-1, 3])
def test_at_least_one_layer_reads_codes(lazy_layers: int) -> None:
    with pytest.raises(ValueError, match=f"got {lazy_layers} of 3"):
        HHDConfig(decoder="lazy_ar", num_ptd_layers=3, num_lazy_layers=lazy_layers)


@pytest.mark.usefixtures("unchecked_shapes")
def test_an_unknown_decoder_is_named() -> None:
    with pytest.raises(ValueError, match="decoder must be plain or lazy_ar, got 'lazy'"):
        HHDConfig(decoder="lazy")  # type: ignore[arg-type]
