"""Bad input of models: one error that names the field, the place and the value."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gpr_rl.decoding import CodeTrie
from gpr_rl.models import HHDConfig
from gpr_rl.models.rivals import HSTU, HSTUConfig, OneRec, OneRecConfig, SASRec, SASRecConfig
from gpr_rl.schema import Request, Tokens, TokenType
from tests.gpr_rl.models.model_inputs import SPEC, make_model, make_request

LENGTHS = [9, 6]


def set_at(name: str, place: tuple[int, ...], value: float) -> Callable[[Tokens], None]:
    def change(tokens: Tokens) -> None:
        getattr(tokens, name)[place] = value

    return change


def cut(name: str) -> Callable[[Tokens], None]:
    def change(tokens: Tokens) -> None:
        setattr(tokens, name, getattr(tokens, name)[..., :-1])

    return change


WRONG = [
    (
        set_at("codes", (1, 5, 2), 5),
        r"codes must lie in \[0, 5\), got \[.*5\] in sequence 1, token 5",
    ),
    (set_at("codes", (0, 2, 0), -1), r"codes must lie in .*, got \[-1, .* in sequence 0, token 2"),
    (set_at("kind", (0, 3), 5), "kind must be a token type below 5, got 5 in sequence 0, token 3"),
    (set_at("action", (1, 1), 5), "action must be an action below 5, got 5 in sequence 1, token 1"),
    (
        set_at("time_gap", (0, 1), 16),
        r"time_gap must lie in \[0, 16\), got 16 in sequence 0, token 1",
    ),
    (set_at("context", (0, 8, 1), 3), r"context must lie below \[4, 3\], got .*3\] in sequence 0"),
    (set_at("user", (1, 0), 3), r"user must lie below \[3, 2\], got \[3, .*\] in sequence 1"),
    (set_at("preference", (1, 2, 4), float("nan")), r"preference must be finite, got \[nan\] in"),
    (set_at("kind", (0, 0), 2), "kind must begin with a USER token .* in sequence 0"),
    (set_at("kind", (1, 4), 0), "kind must .* be padded on the right alone, got .* in sequence 1"),
    (cut("codes"), r"codes must be \[2, 9, 3\] for this model, got \[2, 9, 2\]"),
    (cut("context"), r"context must be \[2, 9, 2\] for this model, got \[2, 9, 1\]"),
    (cut("user"), r"user must be \[2, 2\] for this model, got \[2, 1\]"),
    (cut("preference"), r"preference must be \[2, 3, 5\] for this model, got \[2, 3, 4\]"),
]


def trie() -> CodeTrie:
    return CodeTrie(torch.randint(0, 5, (10, 3)), num_codes=5)


def rivals() -> list[Any]:
    sizes = {"dim": 8, "num_heads": 2}
    return [
        HSTU(HSTUConfig(**sizes), SPEC, 10),  # type: ignore[arg-type]
        SASRec(SASRecConfig(**sizes), SPEC, 10, 14),  # type: ignore[arg-type]
        OneRec(OneRecConfig(**sizes), SPEC, trie()),  # type: ignore[arg-type]
    ]


def item_of(tokens: Tokens) -> Tensor:
    is_item = (tokens.kind == TokenType.ITEM) | (tokens.kind == TokenType.ORGANIC)
    return torch.where(is_item, 1, -1)


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_wrong_tokens_are_named(change: Callable[[Tokens], None], message: str) -> None:
    request = make_request(LENGTHS)
    change(request.tokens)
    with pytest.raises(ValueError, match=rf"tokens\.{message}"):
        make_model().encode(request)
    for rival in rivals():
        with pytest.raises(ValueError, match=rf"tokens\.{message}"):
            rival.rank(request.tokens, item_of(request.tokens), 3)


def test_padding_may_hold_any_content() -> None:
    request, other = make_request(LENGTHS), make_request(LENGTHS)
    padding = request.tokens.kind == TokenType.PAD
    for name in ("codes", "action", "context"):
        getattr(other.tokens, name)[padding] = 10**6
    model = make_model(relative_time=True)
    assert torch.equal(model.encode(request).h, model.encode(other).h)


def test_a_batch_must_hold_a_sequence() -> None:
    empty: Request = make_request(LENGTHS)[:0]
    with pytest.raises(ValueError, match="at least one sequence, got none"):
        make_model().encode(empty)
    for rival in rivals():
        with pytest.raises(ValueError, match="at least one sequence, got none"):
            rival.rank(empty.tokens, item_of(empty.tokens), 3)


def test_rivals_with_positions_name_a_sequence_that_is_too_long() -> None:
    tokens = make_request([SPEC.max_tokens + 3, 5]).tokens
    for rival in rivals():
        with pytest.raises(ValueError, match="at most 16 tokens, got 19"):
            rival.rank(tokens, item_of(tokens), 3)


def test_paths_of_another_catalogue_are_refused() -> None:
    model = make_model(num_ecpm_buckets=3)
    context = model.encode(make_request(LENGTHS))
    codes = torch.zeros(2, 4, 3, dtype=torch.long)
    calls = [model.logits, model.hte, model.ecpm_logits]
    for call in calls:
        with pytest.raises(ValueError, match="paths must have 3 codes, got 2"):
            call(context, codes[..., :2])
        for value in (5, -1):
            wrong = codes.clone()
            wrong[1, 2, 0] = value
            with pytest.raises(ValueError, match=rf"codes must lie in \[0, 5\), got {value} at"):
                call(context, wrong)
    with pytest.raises(ValueError, match="a prefix must have at most 2 codes, got 3"):
        model.step(context, codes)
    with pytest.raises(ValueError, match=r"codes must lie in \[0, 5\), got 7 at \[0, 0, 1\]"):
        model.step(context, torch.tensor([[[0, 7]], [[1, 2]]]))


def test_knowledge_must_be_finite() -> None:
    model = make_model(knowledge_dim=4)
    knowledge = torch.zeros(2, 4)
    knowledge[1, 3] = float("nan")
    with pytest.raises(ValueError, match=r"knowledge must be finite, got \[.*nan\] in row 1"):
        model.encode(make_request(LENGTHS), knowledge)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ffn_multiple", float("nan")),
        ("ffn_multiple", float("inf")),
        ("ffn_multiple", 0.5),
        ("num_recursions", 1.5),
        ("num_hsd_layers", True),
        ("dim", 8.0),
    ],
)
def test_sizes_that_are_none_name_themselves(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} must be .*, got {value}"):
        HHDConfig(**{name: value})  # type: ignore[arg-type]
