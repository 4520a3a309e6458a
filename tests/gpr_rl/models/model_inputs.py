"""Random but well-formed token sequences for the tests of the model."""

import torch
from torch import Tensor

from gpr_rl.models import HHD, HHDConfig
from gpr_rl.schema import Action, InputSpec, Request, Targets, Tokens, TokenType

SPEC = InputSpec(
    num_levels=3,
    num_codes=5,
    user_cardinalities=(3, 2),
    context_cardinalities=(4, 3),
    max_tokens=16,
)
U, O, E, I = TokenType.USER, TokenType.ORGANIC, TokenType.ENVIRONMENT, TokenType.ITEM  # noqa: E741


def make_model(seed: int = 0, spec: InputSpec = SPEC, **config: object) -> HHD:
    """A small float64 model whose every parameter is random, those that start at zero included."""
    sizes = {"dim": 8, "num_heads": 2, **config}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = HHD(HHDConfig(**sizes), spec).double()  # type: ignore[arg-type]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def make_tokens(
    kinds: list[list[TokenType]], prompt_length: list[int], seed: int = 0, spec: InputSpec = SPEC
) -> Tokens:
    """Random content for the given token types, padded on the right to the longest."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=generator)

    size, length = len(kinds), max(map(len, kinds))
    kind = torch.tensor([[*row, *[0] * (length - len(row))] for row in kinds])
    is_item = (kind == O) | (kind == I)
    context = [draw(high, size, length) for high in spec.context_cardinalities]
    user = [draw(high, size) for high in spec.user_cardinalities]
    levels, codes = spec.num_levels, spec.num_codes
    return Tokens(
        kind=kind,
        codes=draw(codes, size, length, levels) * is_item[..., None],
        action=draw(len(Action), size, length) * is_item,
        time_gap=draw(16, size, length) * (kind > 0),
        context=torch.stack(context, -1) * (kind == E)[..., None],
        user=torch.stack(user, -1),
        preference=torch.rand(size, levels, codes, generator=generator),
        prompt_length=torch.tensor(prompt_length),
        batch_size=[size],
    )


def random_kinds(length: int, seed: int) -> list[TokenType]:
    """U, then O tokens and E-I pairs, then a last E; exactly `length` tokens."""
    generator = torch.Generator().manual_seed(seed)
    kinds = [U]
    while len(kinds) < length - 1:
        pair = len(kinds) < length - 2 and torch.rand((), generator=generator) < 0.5
        kinds += [E, I] if pair else [O]
    return [*kinds, E]


def make_request(lengths: list[int], seed: int = 0, spec: InputSpec = SPEC) -> Request:
    """Requests of the given token counts, whose prompt is about half of them."""
    kinds = [random_kinds(length, seed * 100 + row) for row, length in enumerate(lengths)]
    tokens = make_tokens(kinds, [length // 2 for length in lengths], seed, spec)
    rows = torch.arange(len(lengths))
    return Request(
        request_id=rows,
        user_id=rows,
        timestamp=rows,
        tokens=tokens,
        popularity=torch.zeros(len(lengths), spec.num_levels, spec.num_codes),
        batch_size=[len(lengths)],
    )


def make_targets(
    position: Tensor, num_heads: int, seed: int = 0, spec: InputSpec = SPEC
) -> Targets:
    """Random valid targets, legal masks that hold them, at the given positions [B, P]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (*position.shape, num_heads)
    levels, num_codes = spec.num_levels, spec.num_codes
    codes = torch.randint(0, num_codes, (*shape, levels), generator=generator)
    legal = torch.rand(*shape, levels, num_codes, generator=generator) < 0.5
    return Targets(
        position=position,
        codes=codes,
        action=torch.randint(2, 5, shape, generator=generator),
        valid=torch.ones(shape, dtype=torch.bool),
        legal_mask=legal.scatter(-1, codes[..., None], True),
        pctr=torch.rand(shape, generator=generator),
        pcvr=torch.rand(shape, generator=generator),
        ecpm=torch.rand(shape, generator=generator),
        final_value=torch.rand(shape, generator=generator),
        batch_size=[len(position)],
    )
