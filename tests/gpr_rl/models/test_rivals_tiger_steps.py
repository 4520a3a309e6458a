"""TIGER code by code, `begin` and `extend`, against `step`, which runs transformers' T5 anew."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gpr_rl.decoding import CodeTrie, beam_search
from gpr_rl.models.rivals import TIGER, TIGERConfig
from tests.gpr_rl.models.model_inputs import SPEC, make_tokens, random_kinds

pytest.importorskip("transformers")

# a fourth level, as only from there on does a beam's origin lie two steps back
LEVELS = replace(SPEC, num_levels=4)
LENGTHS = [11, 4, 8, 2]


def _model(dtype: torch.dtype = torch.float64, **sizes: Any) -> TIGER:
    """Every parameter random, position biases and norms included; heads wider than D / H."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codes = torch.randint(0, LEVELS.num_codes, (40, LEVELS.num_levels))
        config = {"dim": 8, "num_heads": 3, "head_dim": 4, "num_user_tokens": 5, **sizes}
        model = TIGER(TIGERConfig(**config), LEVELS, CodeTrie(codes, LEVELS.num_codes)).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval().to(dtype)


def _tokens(lengths: list[int], seed: int = 0) -> Any:
    kinds = [random_kinds(length, seed * 100 + row) for row, length in enumerate(lengths)]
    return make_tokens(kinds, [1] * len(lengths), seed, LEVELS)


class _Stepped:
    """The same policy, asked for whole prefixes."""

    def __init__(self, model: TIGER) -> None:
        self.encode, self.step = model.encode, model.step


def _assert_steps(
    model: TIGER, tokens: Any, widths: tuple[int, ...], tolerance: float = 1e-10
) -> None:
    """Follow random beams, parents in any order and several times, and compare every level."""
    generator = torch.Generator().manual_seed(len(widths))
    context = model.encode(tokens)
    prefix = torch.zeros(len(tokens), 1, 0, dtype=torch.long)
    log_prob, value, cache = model.begin(context)
    for width in (*widths, 0):
        want, _ = model.step(context, prefix)
        assert log_prob.shape == want.shape
        torch.testing.assert_close(log_prob, want, rtol=0, atol=tolerance)
        assert torch.equal(value, torch.zeros_like(value).expand(prefix.shape[:2]))
        if not width:
            break
        shape = (len(tokens), width)
        parent = torch.randint(0, prefix.shape[1], shape, generator=generator)
        code = torch.randint(0, LEVELS.num_codes, shape, generator=generator)
        log_prob, value, cache = model.extend(context, cache, parent, code)
        kept = prefix.gather(1, parent[..., None].expand(-1, -1, prefix.shape[2]))
        prefix = torch.cat([kept, code[..., None]], dim=2)


@pytest.mark.parametrize("max_rows", [512, 7, 1])
@pytest.mark.parametrize("widths", [(1, 1, 1), (4, 4, 4), (2, 7, 3), (5, 1, 6), (1, 3, 2)])
@pytest.mark.parametrize("lengths", [[9], LENGTHS])
def test_extend_equals_step(lengths: list[int], widths: tuple[int, ...], max_rows: int) -> None:
    _assert_steps(_model(max_rows=max_rows), _tokens(lengths), widths)


def test_extend_equals_step_in_single_and_half_precision() -> None:
    _assert_steps(_model(torch.float32), _tokens(LENGTHS), (4, 6, 5), 1e-5)
    _assert_steps(_model(torch.bfloat16), _tokens(LENGTHS), (4, 6, 5), 0.1)  # of 8 bits


def test_outputs_may_go_unscaled() -> None:
    model, scaled = _model(), _model()
    for name in ("scale_decoder_outputs", "tie_word_embeddings"):  # of transformers 5, and 4
        setattr(model.t5.config, name, False)
    tokens = _tokens(LENGTHS)
    _assert_steps(model, tokens, (3, 4))
    found = [m.begin(m.encode(tokens))[0] for m in (model, scaled)]
    assert (found[0] - found[1]).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("max_rows", [512, 1])
def test_encoder_equals_transformers(max_rows: int) -> None:
    model, tokens = _model(max_rows=max_rows), _tokens([14, *LENGTHS])
    ids, mask = model.input_ids(tokens, torch.arange(5), (tokens.kind > 0).sum(1) - 1)
    assert not mask.all()
    want = model.t5.encoder(ids, attention_mask=mask.long()).last_hidden_state
    found = model.encode(tokens)
    assert torch.equal(found.mask, mask)
    torch.testing.assert_close(found.hidden[mask], want[mask], rtol=0, atol=1e-10)


@pytest.mark.parametrize("options", [{}, {"value_weight": 1.0}, {"value_weight": 1.0, "k": 2}])
def test_search_equals_that_of_steps(options: dict[str, Any]) -> None:
    model, tokens = _model(), _tokens(LENGTHS)
    k = options.pop("k", 6)
    found, want = (
        beam_search(m, tokens, model.trie, k, **options) for m in (model, _Stepped(model))
    )
    assert torch.equal(found.codes, want.codes)
    assert torch.equal(found.ad_id, want.ad_id)
    torch.testing.assert_close(found.log_prob, want.log_prob, rtol=0, atol=1e-10)


def test_no_request_depends_on_its_batch() -> None:
    model, tokens = _model(), _tokens(LENGTHS)
    together = beam_search(model, tokens, model.trie, 6)
    for row in range(len(LENGTHS)):
        alone = beam_search(model, tokens[row : row + 1], model.trie, 6)
        assert torch.equal(alone.codes[0], together.codes[row])
        torch.testing.assert_close(alone.log_prob[0], together.log_prob[row], rtol=0, atol=1e-10)


def test_a_search_sees_the_weights_of_its_time_without_dropout_or_gradient() -> None:
    model, tokens = _model(dropout=0.5), _tokens(LENGTHS)
    before = model.begin(model.encode(tokens))[0]
    model.train()
    found = model.begin(model.encode(tokens))[0]
    assert torch.equal(found, before)
    assert not found.requires_grad
    model.eval()
    for parameter in model.parameters():
        parameter.data.mul_(1.1)  # as some optimizers write, past autograd's count of versions
    _assert_steps(model, tokens, (4, 4))
    assert not torch.equal(model.begin(model.encode(tokens))[0], before)


def test_gates_are_refused() -> None:
    model = _model()
    model.t5.config.feed_forward_proj = "gated-gelu"
    with pytest.raises(ValueError, match="feed_forward_proj must be relu, got gated-gelu"):
        model.encode(_tokens([9]))


def test_a_past_shared_by_all_beams_stays_so() -> None:
    """What is read of an input grows with its own width, not with that of later ones."""
    model, tokens = _model(), _tokens(LENGTHS)
    context = model.encode(tokens)
    cache = model.begin(context)[2]
    parent: Tensor = torch.zeros(4, 6, dtype=torch.long)
    for _ in range(2):
        cache = model.extend(context, cache, parent, parent)[2]
    assert [past.key.shape[2] for past in cache.path] == [1, 6, 6]
    assert [past.beam is None for past in cache.path] == [True, False, True]
    assert cache.memory.key[0].shape[:2] == (4, 3)  # once per request and head
