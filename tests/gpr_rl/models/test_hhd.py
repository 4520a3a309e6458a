import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from gpr_rl.decoding import CodeTrie, beam_search
from gpr_rl.models import HHD, HHDConfig, Unvalued
from gpr_rl.models.hhd import masked_log_prob
from gpr_rl.models.layers.grouping import TokenLayout
from gpr_rl.schema import Request, TokenType
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

LENGTHS = [9, 5, 12]


def _codes(*shape: int, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, SPEC.num_codes, (*shape, 3), generator=generator)


def _all_paths() -> Tensor:
    return torch.tensor(list(itertools.product(range(SPEC.num_codes), repeat=3)))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("sizes", [{}, {"num_ptd_layers": 3, "num_hte_layers": 2}])
def test_beams_equal_known_paths(
    dtype: torch.dtype, tolerance: float, sizes: dict[str, int]
) -> None:
    model = make_model(**sizes).to(dtype)
    context = model.encode(make_request(LENGTHS))
    log_prob, value, cache = model.begin(context)
    assert log_prob.shape == (3, 1, 5)
    assert value.shape == (3, 1)
    seen = [(log_prob.expand(-1, 7, -1), value.expand(-1, 7))]
    prefix = torch.zeros(3, 1, 0, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    for width in (4, 7):  # beams die, multiply and change places
        parent = torch.randint(0, prefix.shape[1], (3, width), generator=generator)
        code = torch.randint(0, 5, (3, width), generator=generator)
        log_prob, value, cache = model.extend(context, cache, parent, code)
        chosen = prefix.gather(1, parent[..., None].expand(-1, -1, prefix.shape[2]))
        prefix = torch.cat([chosen, code[..., None]], dim=-1)
        stepped = model.step(context, prefix)
        for got, want in zip((log_prob, value), stepped, strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=tolerance)
        seen.append((log_prob, value))
    codes = torch.cat([prefix, prefix[..., :1]], dim=-1)
    known = model.logits(context, codes).log_softmax(-1)
    values = model.hte(context, codes).value
    last = seen[-1]
    torch.testing.assert_close(last[0], known[:, :, 2], rtol=0, atol=tolerance)
    torch.testing.assert_close(last[1], values[:, :, 2], rtol=0, atol=tolerance)
    torch.testing.assert_close(seen[0][0], known[:, :, 0], rtol=0, atol=tolerance)
    torch.testing.assert_close(seen[0][1], values[:, :, 0], rtol=0, atol=tolerance)
    empty, start = model.step(context, prefix[..., :0])
    torch.testing.assert_close(empty, known[:, :, 0], rtol=0, atol=tolerance)
    torch.testing.assert_close(start, values[:, :, 0], rtol=0, atol=tolerance)


def test_a_search_without_a_critic_finds_the_same_paths() -> None:
    model, request = make_model(), make_request(LENGTHS)
    trie = CodeTrie(torch.cartesian_prod(*[torch.arange(5)] * 3)[::2], num_codes=5)
    found = beam_search(model, request, trie, 7)
    unvalued = beam_search(Unvalued(model), request, trie, 7)
    assert torch.equal(found.codes, unvalued.codes)
    assert torch.equal(found.log_prob, unvalued.log_prob)
    assert found.value.any()
    assert not unvalued.value.any()
    context = model.encode(request)
    log_prob, value = Unvalued(model).step(context, found.codes[..., :2])
    assert torch.equal(log_prob, model.step(context, found.codes[..., :2])[0])
    assert not value.any()


def test_probabilities_of_all_paths_sum_to_one() -> None:
    model = make_model()
    context = model.encode(make_request(LENGTHS))
    paths = _all_paths()[None].expand(3, -1, -1)
    legal = torch.ones(*paths.shape, SPEC.num_codes, dtype=torch.bool)
    total = model.log_prob(context, paths, legal).sum(-1).exp().sum(-1)
    torch.testing.assert_close(total, torch.ones(3, dtype=torch.float64))


def test_a_level_sees_earlier_codes_of_its_own_candidate_only() -> None:
    model = make_model()
    context = model.encode(make_request(LENGTHS))
    codes = _codes(3, 6)
    logits, value = model.logits(context, codes), model.hte(context, codes).value
    for level in range(3):
        changed = codes.clone()
        changed[:, 2, level] = (changed[:, 2, level] + 1) % SPEC.num_codes
        for before, after in (
            (logits, model.logits(context, changed)),
            (value, model.hte(context, changed).value),
        ):
            differs = (before != after).flatten(3).any(-1) if before.dim() > 3 else before != after
            moved = torch.zeros(3, 6, 3, dtype=torch.bool)
            moved[:, 2, level + 1 :] = True
            assert torch.equal(differs, moved)


def test_padding_and_batch_change_nothing() -> None:
    model, request = make_model().float(), make_request(LENGTHS)
    codes = _codes(3, 4)
    context = model.encode(request)
    together = model.logits(context, codes)
    judged = model.hte(context, codes)
    for row, length in enumerate(LENGTHS):
        alone = _cut(request[row : row + 1], length)
        own = model.encode(alone)
        got = model.logits(own, codes[row : row + 1])
        torch.testing.assert_close(got[0], together[row], rtol=0, atol=1e-5)
        value = model.hte(own, codes[row : row + 1])
        torch.testing.assert_close(value.value[0], judged.value[row], rtol=0, atol=1e-5)
        torch.testing.assert_close(value.pctr_logit[0], judged.pctr_logit[row], rtol=0, atol=1e-5)
        torch.testing.assert_close(own.h[0], context.h[row, :length], rtol=0, atol=1e-5)
    part = model.logits(context[1:], codes[1:])
    torch.testing.assert_close(part, together[1:], rtol=0, atol=1e-5)
    fewer = model.logits(context, codes[:, 1:3])
    torch.testing.assert_close(fewer, together[:, 1:3], rtol=0, atol=1e-5)


def _cut(request: Request, length: int) -> Request:
    """The same requests without the tokens from `length` on."""
    request = request.clone()
    for name in ("kind", "codes", "action", "time_gap", "context"):
        setattr(request.tokens, name, getattr(request.tokens, name)[:, :length])
    return request


KINDS = [
    [U, O, E, I, O, E, I, E, I, O, O, E, I],
    [U, E, I, E, O, E, I, E, I],
    [U, O, O, O, O, E, O, E, I, E],
]
PROMPTS = [6, 2, 6]
POSITIONS = torch.tensor([[5, 7, 11], [1, 3, 7], [5, 7, 9]])


def test_no_supervised_logit_depends_on_a_later_event() -> None:
    model = make_model(num_hsd_layers=3)
    tokens = make_tokens(KINDS, PROMPTS)
    codes = make_targets(POSITIONS, 4).codes
    layout = TokenLayout.of(tokens.kind)
    x = model.hsd.embedding(tokens, layout).detach().requires_grad_()
    h = model.hsd.transform(x, tokens, layout)[0]
    logits = model.ptd.head_logits(model.ptd.decoder.begin(h, POSITIONS), codes)
    index = torch.arange(tokens.kind.shape[1])
    for row, p, head, level in itertools.product(range(3), range(3), range(4), range(3)):
        weight = torch.linspace(-1, 1, SPEC.num_codes, dtype=torch.float64)
        one = (logits[row, p, head, level] * weight).sum()
        gradient = layout.unpack(torch.autograd.grad(one, x, retain_graph=True)[0]).abs().sum(-1)
        past = index <= POSITIONS[row, p]
        assert gradient[row, ~past].eq(0).all(), (row, p, head, level)
        assert gradient[row, past].ne(0).all(), (row, p, head, level)
        assert gradient[torch.arange(3) != row].eq(0).all()


def test_changing_later_events_moves_no_earlier_logit() -> None:
    model = make_model()
    tokens = make_tokens(KINDS, PROMPTS)
    targets = make_targets(POSITIONS, 4)
    logits = model.mtp_logits(tokens, targets)
    for p in range(3):
        changed = make_tokens(KINDS, PROMPTS, seed=1)
        later = torch.arange(tokens.kind.shape[1]) > POSITIONS[:, p : p + 1]
        for name in ("kind", "codes", "action", "time_gap", "context"):
            old, new = getattr(tokens, name), getattr(changed, name)
            if name == "kind":
                new = torch.where(old == O, I, old)  # types too
            mask = later.view(*later.shape, *[1] * (old.dim() - 2))
            setattr(changed, name, torch.where(mask, new, old))
        changed.user, changed.preference = tokens.user, tokens.preference
        moved = (model.mtp_logits(changed, targets) - logits).abs().flatten(2).amax(-1)
        assert (moved[:, : p + 1] < 1e-10).all()
        if p < 2:
            assert (moved[:, -1] > 1e-6).all()


def test_a_window_position_equals_the_request_made_there() -> None:
    model = make_model()
    tokens = make_tokens(KINDS, PROMPTS)
    targets = make_targets(POSITIONS, 4)
    logits = model.mtp_logits(tokens, targets)
    context = model.window(tokens, POSITIONS)
    judged = model.hte(context, targets.codes)
    rows = torch.arange(3)
    for p in range(3):
        request = Request(
            request_id=rows,
            user_id=rows,
            timestamp=rows,
            tokens=tokens.clone(),
            popularity=torch.zeros(3, 3, 5),
            batch_size=[3],
        )
        later = torch.arange(tokens.kind.shape[1]) > POSITIONS[:, p : p + 1]
        request.tokens.kind = tokens.kind.masked_fill(later, TokenType.PAD)
        own = model.encode(request)
        codes = targets.codes[:, p]
        policy = model.logits(own, codes[:, :1])
        torch.testing.assert_close(policy[:, 0], logits[:, p, 0], rtol=0, atol=1e-11)
        value = model.hte(own, codes)
        for name in ("value", "pctr_logit", "pcvr_logit", "final_value"):
            got, want = getattr(value, name), getattr(judged, name)[:, p]
            torch.testing.assert_close(got, want, rtol=0, atol=1e-11)
    single = model.hte(context, targets.codes[:, :, 0])
    torch.testing.assert_close(single.value, judged.value[:, :, 0], rtol=0, atol=1e-12)


def test_the_evaluator_never_moves_the_rest() -> None:
    model = make_model()
    context = model.encode(make_request(LENGTHS))
    output = model.hte(context, _codes(3, 4))
    total = output.value.sum() + output.pctr_logit.sum() + output.pcvr_logit.sum()
    (total + output.final_value.sum()).backward()
    assert all(parameter.grad is None for parameter in model.policy_parameters())
    assert all(parameter.grad.ne(0).any() for parameter in model.hte_parameters())


def test_the_parameter_lists_are_disjoint_and_complete() -> None:
    model = HHD(HHDConfig(dim=8, num_heads=2), SPEC)
    policy, evaluator = (
        {id(parameter) for parameter in parameters}
        for parameters in (model.policy_parameters(), model.hte_parameters())
    )
    assert not policy & evaluator
    assert policy | evaluator == {id(parameter) for parameter in model.parameters()}


def test_every_policy_parameter_learns() -> None:
    model = make_model()
    targets = make_targets(POSITIONS, 4)
    model.mtp_logits(make_tokens(KINDS, PROMPTS), targets).square().sum().backward()
    for name, parameter in model.named_parameters():
        if not name.startswith(("hte.", "head_logits")):
            assert parameter.grad is not None, name
            assert parameter.grad.ne(0).any(), name


def test_a_new_evaluator_says_zero_and_one_half() -> None:
    model = HHD(HHDConfig(), SPEC)
    output = model.hte(model.encode(make_request(LENGTHS)), _codes(3, 4))
    assert output.value.shape == (3, 4, 3)
    for name in ("value", "pctr_logit", "pcvr_logit", "final_value"):
        assert getattr(output, name).eq(0).all()
    assert model.hte.reward_scale.eq(1.0)
    assert "hte.reward_scale" in model.state_dict()


def test_masked_log_prob_by_hand() -> None:
    # Weights 1, 2, 5: among codes 0 and 1 code 1 has 2/3; code 2 is illegal.
    logits = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64).log().requires_grad_()
    legal = torch.tensor([True, True, False])
    rows = torch.stack([legal, legal, ~legal, legal & False])
    codes = torch.tensor([1, 2, 2, 0])
    got = masked_log_prob(logits.expand(4, 3), codes, rows)
    want = torch.tensor([2 / 3, 0, 1, 0], dtype=torch.float64).log()
    torch.testing.assert_close(got, want)
    got.exp().sum().backward()
    # d p_1 / d logits = p_1 (delta - p): 2/3 (-1/3, 1/3, 0); the other rows give no gradient.
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor([-2 / 9, 2 / 9, 0]).double())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3}, "num_heads must divide dim=64, got 3"),
        ({"num_mtp_heads": 0}, "num_mtp_heads must be at least 1, got 0"),
        ({"num_thinking_tokens": -1}, "num_thinking_tokens must be at least 0, got -1"),
    ],
)
def test_bad_sizes_are_named(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HHDConfig(**change)  # type: ignore[arg-type]


def test_one_level_is_too_few() -> None:
    with pytest.raises(ValueError, match="num_levels must be at least 2, got 1"):
        HHD(HHDConfig(), dataclasses.replace(SPEC, num_levels=1))


def test_without_thinking_tokens_it_still_decodes() -> None:
    model = make_model(num_thinking_tokens=0)
    log_prob, _, _ = model.begin(model.encode(make_request(LENGTHS)))
    torch.testing.assert_close(log_prob.exp().sum(-1), torch.ones(3, 1, dtype=torch.float64))
