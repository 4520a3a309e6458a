"""TIGER against transformers' own T5: logits, beam search, and what its input holds."""

from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor

from gpr_rl.decoding import beam_search
from gpr_rl.models.rivals.tiger import END_ID, PAD_ID, TIGERConfig, user_token
from tests.gpr_rl.models.model_inputs import SPEC, E, I, O, U, make_tokens
from tests.gpr_rl.models.rival_inputs import AD_CODES, PATH_ADS, make_batch, make_rival, make_trie

pytest.importorskip("transformers")

LEVELS, CODES = SPEC.num_levels, SPEC.num_codes


def _last(tokens: Any) -> tuple[Tensor, Tensor]:
    return torch.arange(len(tokens)), (tokens.kind > 0).sum(1) - 1


def _ids(path: list[int]) -> list[int]:
    """The vocabulary by hand: padding, end, then V ids per level."""
    return [2 + level * CODES + code for level, code in enumerate(path)]


def test_input_is_the_user_and_the_latest_items_before() -> None:
    model = make_rival("tiger", max_items=2)
    tokens = make_tokens([[U, O, E, I, O, E, I, E], [U, E], [U, O, E]], [1, 1, 1])
    row = torch.tensor([0, 0, 1, 2, 0])
    ids, mask = model.input_ids(tokens, row, torch.tensor([2, 5, 1, 2, 7]))
    user = (user_token(tokens.user, 5) + 2 + LEVELS * CODES).tolist()
    codes = tokens.codes.tolist()
    seen: list[list[int]] = [[1], [3, 4], [], [1], [4, 6]]
    for got, real, r, places in zip(ids.tolist(), mask.tolist(), row.tolist(), seen, strict=True):
        want = [user[r]] + [i for place in places for i in _ids(codes[r][place])]
        assert got == want + [PAD_ID] * (1 + 2 * LEVELS - len(want))
        assert real == [i != PAD_ID for i in got]


def test_heads_may_be_wider_than_their_share() -> None:
    config = TIGERConfig(dim=128, num_heads=6, head_dim=64)  # as TIGER's
    assert make_rival("tiger", **asdict(config)).t5.config.d_kv == 64
    assert make_rival("tiger", dim=6, num_heads=2).t5.config.d_kv == 3
    with pytest.raises(ValueError, match="num_heads must divide dim=128, got 6"):
        TIGERConfig(dim=128, num_heads=6)
    with pytest.raises(ValueError, match="head_dim must be at least 1, got 0"):
        TIGERConfig(head_dim=0)


def test_user_tokens_spread_and_stay() -> None:
    users = torch.cartesian_prod(torch.arange(8), torch.arange(3), torch.arange(5))
    found = user_token(users, 16)
    assert found.bincount(minlength=16).min() >= 3
    # (((0 * m + 3 + 1) * m + 2 + 1) * m + 4 + 1) mod (2^31 - 1), mod 16, in Python's integers
    mixed = 0
    for value in (3, 2, 4):
        mixed = (mixed * 1_000_003 + value + 1) % (2**31 - 1)
    assert user_token(torch.tensor([[3, 2, 4]]), 16).tolist() == [mixed % 16]


def test_later_codes_get_no_gradient() -> None:
    """Code 4 of level 1 is read after the request only: its row of the table gets nothing."""
    model, batch = make_rival("tiger"), make_batch([12], seed=5, num_positions=3)
    position = int(batch.position[0, 0])
    tokens = batch.tokens
    tokens.codes[tokens.codes == 4] = 0
    later = (batch.item >= 0) & (torch.arange(12) > position)
    assert later.any()
    tokens.codes[later] = 4
    ids, mask = model.input_ids(tokens, torch.tensor([0]), torch.tensor([position]))
    logits = model.t5(
        input_ids=ids,
        attention_mask=mask,
        decoder_input_ids=model.decoder_ids(AD_CODES[:1, :-1]),
        use_cache=False,
    ).logits
    (gradient,) = torch.autograd.grad(logits[0, -1, 2], model.t5.shared.weight)
    assert gradient[[2 + level * CODES + 4 for level in range(LEVELS)]].eq(0).all()
    assert gradient[ids.flatten()].ne(0).any(-1).all()


@torch.no_grad()
def test_steps_equal_transformers_forward() -> None:
    model, batch = make_rival("tiger"), make_batch([11, 4, 8, 2])
    ids, mask = model.input_ids(batch.tokens, *_last(batch.tokens))
    context = model.encode(batch.tokens)
    for path in AD_CODES.tolist():
        full = model.t5(
            input_ids=ids,
            attention_mask=mask.long(),
            decoder_input_ids=torch.tensor([[PAD_ID, *_ids(path)[:-1]]] * 4),
        ).logits.log_softmax(-1)
        for level in range(LEVELS):
            prefix = torch.tensor(path[:level], dtype=torch.long).expand(4, 3, -1)
            log_prob, _ = model.step(context, prefix)
            want = full[:, None, level, 2 + level * CODES :][..., :CODES].expand(-1, 3, -1)
            torch.testing.assert_close(log_prob, want, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("width", [2, 3, 6])
@pytest.mark.parametrize("sizes", [{}, {"num_heads": 3, "head_dim": 5, "max_rows": 4}])
def test_beam_search_equals_transformers_generate(width: int, sizes: dict[str, int]) -> None:
    model, batch = make_rival("tiger", **sizes).eval(), make_batch([11, 4, 8, 2])
    trie = make_trie()
    found = beam_search(model, batch.tokens, trie, width)

    def allowed(row: int, ids: Tensor) -> list[int]:
        prefix = (ids[1:] - 2) % CODES
        legal = trie.legal_mask(prefix[None, None])[0, 0].nonzero()[:, 0]
        return (2 + len(prefix) * CODES + legal).tolist()

    ids, mask = model.input_ids(batch.tokens, *_last(batch.tokens))
    made = model.t5.generate(
        input_ids=ids,
        attention_mask=mask.long(),
        num_beams=width,
        num_return_sequences=width,
        max_new_tokens=LEVELS,
        prefix_allowed_tokens_fn=allowed,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    codes = (made.sequences[:, 1:] - 2) % CODES
    assert torch.equal(codes.view(4, width, LEVELS), found.codes)
    score = made.sequences_scores.view(4, width) * LEVELS  # transformers divides by the length
    torch.testing.assert_close(
        score, found.log_prob.sum(-1), rtol=1e-5, atol=1e-5, check_dtype=False
    )
    if width == len(PATH_ADS):
        assert found.ad_id.sort().values.tolist() == [PATH_ADS] * 4
    assert END_ID not in made.sequences
