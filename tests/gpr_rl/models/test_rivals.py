"""What every rival must do, whatever its architecture."""

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gpr_rl.models.layers.grouping import TokenLayout
from gpr_rl.models.retrieval import NextAdBatch
from gpr_rl.models.rivals import (
    TIGER,
    HSTUConfig,
    OneRecConfig,
    Popularity,
    SASRec,
    SASRecConfig,
    TIGERConfig,
)
from gpr_rl.models.rivals.parts import item_columns
from tests.gpr_rl.models.model_inputs import SPEC
from tests.gpr_rl.models.rival_inputs import (
    AD_CODES,
    MAKERS,
    NUM_ADS,
    PATH_ADS,
    make_batch,
    make_rival,
    make_trie,
    resized,
    rows,
    with_other_end,
)


@pytest.fixture(params=MAKERS)
def name(request: pytest.FixtureRequest) -> str:
    if request.param == "tiger":
        pytest.importorskip("transformers")
    return request.param


def only_first(batch: NextAdBatch) -> NextAdBatch:
    """Supervised at one early E token per row."""
    valid = batch.valid.clone()
    valid[:, 1:] = False
    return replace(batch, valid=valid, position=batch.position[:, :1].expand_as(valid))


def early_batch() -> NextAdBatch:
    """Windows of 12 tokens whose one target has tokens after it."""
    batch = only_first(make_batch([12, 12, 12], seed=5, num_positions=3))
    assert batch.valid[:, 0].all()
    assert batch.position[:, 0].max() < 10
    assert len(batch.position[:, 0].unique()) > 1
    return batch


def test_nothing_after_a_request_changes_its_loss(name: str) -> None:
    model, batch = make_rival(name), early_batch()
    want = model.loss(batch)
    for seed in range(20, 24):
        other = with_other_end(batch, batch.position[:, 0], seed)
        assert not torch.equal(other.tokens.kind, batch.tokens.kind)
        assert (model.loss(other) - want).abs() < 1e-10
    total = torch.zeros(())
    for row in range(3):
        one = rows(batch, torch.tensor([row]))
        total = total + model.loss(resized(one, int(one.position[0, 0]) + 1))
    torch.testing.assert_close(total / 3, want, rtol=1e-6, atol=1e-6)


def _gradient_by_token(model: nn.Module, name: str, batch: NextAdBatch) -> Tensor:
    """Return the loss's gradient with respect to what was embedded of each token, [B, T, D]."""
    kept: list[Tensor] = []
    embedding = model.item if name == "sasrec" else model.embedding
    assert isinstance(embedding, nn.Module)
    handle = embedding.register_forward_hook(lambda module, inputs, output: kept.append(output))
    loss = model.loss(batch)  # type: ignore[operator]
    handle.remove()
    (gradient,) = torch.autograd.grad(loss, kept)
    if name != "sasrec":
        return TokenLayout.of(batch.tokens.kind).unpack(gradient)
    columns, count = item_columns(batch.tokens.kind)
    real = torch.arange(columns.shape[1]) < count[:, -1:]
    by_token = gradient.new_zeros(*batch.item.shape, gradient.shape[-1])
    index = columns[..., None].expand_as(gradient)
    return by_token.scatter_add(1, index, gradient * real[..., None])


@pytest.mark.parametrize("name", ["sasrec", "hstu", "onerec"])
def test_later_tokens_get_no_gradient(name: str) -> None:
    model, batch = make_rival(name, **{"query_chunk": 5} if name == "hstu" else {}), early_batch()
    gradient = _gradient_by_token(model, name, batch)
    later = torch.arange(batch.item.shape[1]) > batch.position[:, :1]
    assert gradient[later].eq(0).all()
    is_item = batch.item >= 0
    assert gradient[~later & is_item].ne(0).any(-1).all()


def test_padding_and_company_change_nothing(name: str) -> None:
    model, batch = make_rival(name), make_batch([11, 4, 8, 2], num_positions=3)
    ranked = model.rank(batch.tokens, batch.item, 4)
    wide = resized(batch, SPEC.max_tokens)
    torch.testing.assert_close(model.loss(wide), model.loss(batch), rtol=1e-5, atol=1e-5)
    assert torch.equal(model.rank(wide.tokens, wide.item, 4), ranked)
    alone, count = batch.item.new_zeros(()).double(), int(batch.valid.sum())
    for row, length in enumerate([11, 4, 8, 2]):
        one = resized(rows(batch, torch.tensor([row])), length)
        alone = alone + model.loss(one).detach() * one.valid.sum()
        assert torch.equal(model.rank(one.tokens, one.item, 4)[0], ranked[row])
    torch.testing.assert_close(alone / count, model.loss(batch).detach(), rtol=1e-5, atol=1e-5)


def test_what_is_not_valid_does_not_count(name: str) -> None:
    model, batch = make_rival(name), make_batch([11, 4, 2], num_positions=4)
    assert not batch.valid.all()
    other_ads = (batch.ad_id + 1) % NUM_ADS
    ad_id = batch.ad_id.where(batch.valid, other_ads)
    other = replace(batch, ad_id=ad_id, codes=AD_CODES[ad_id])
    torch.testing.assert_close(model.loss(other), model.loss(batch), rtol=0, atol=0)


def test_loss_is_minus_log_probability_of_the_ad(name: str) -> None:
    """By the definition: each valid target's own log-probability, asked for on its own."""
    model, batch = make_rival(name), make_batch([10, 7], num_positions=2)
    total = torch.zeros((), dtype=torch.float64)
    for row, column in batch.valid.nonzero().tolist():
        one = resized(rows(batch, torch.tensor([row])), int(batch.position[row, column]) + 1)
        ad = int(batch.ad_id[row, column])
        total = total - _log_prob(model, name, one)[0, ad]
    want = total / batch.valid.sum()
    torch.testing.assert_close(model.loss(batch), want, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def _log_prob(model: Any, name: str, batch: NextAdBatch) -> Tensor:
    """Return the log-probability of every ad (that of its path) at each row's end, [B, N]."""
    if name in ("sasrec", "hstu"):
        last = (batch.tokens.kind > 0).sum(1, keepdim=True) - 1
        return (model.states(batch.tokens, batch.item, last)[:, 0] @ model.ads.T).log_softmax(-1)
    context = model.encode(batch.tokens)
    paths = AD_CODES.expand(len(batch.item), -1, -1)
    total = torch.zeros(paths.shape[:2], dtype=torch.float64)
    for level in range(SPEC.num_levels):
        log_prob, value = model.step(context, paths[..., :level])
        assert value.eq(0).all()
        total = total + log_prob.gather(-1, paths[..., level : level + 1])[..., 0]
    return total


def test_rank_is_the_order_of_all_ads(name: str) -> None:
    model, batch = make_rival(name), make_batch([11, 4, 8, 2])
    scores = _log_prob(model, name, batch)
    ads = range(NUM_ADS) if name in ("sasrec", "hstu") else PATH_ADS
    ranked = model.rank(batch.tokens, batch.item, NUM_ADS + 2)
    for row, score in enumerate(scores.tolist()):
        want = sorted(ads, key=lambda ad: -score[ad])
        assert ranked[row].tolist() == want + [-1] * (NUM_ADS + 2 - len(want))
    if name in ("sasrec", "hstu"):
        assert torch.equal(model.rank(batch.tokens, batch.item, 3), ranked[:, :3])


@pytest.mark.parametrize("seed", [0, 1])
def test_each_learns_its_windows_by_heart(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    model = MAKERS[name](dim=16, num_heads=2)
    batch = make_batch([11, 9, 8, 7, 6, 5], seed=seed, num_positions=2)
    ad_id = torch.tensor(PATH_ADS)[torch.arange(12).view(6, 2) % 6]
    batch = replace(batch, ad_id=ad_id, codes=AD_CODES[ad_id])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = model.loss(batch)  # type: ignore[operator]
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]
    ranked = model.rank(batch.tokens, batch.item, 3)  # type: ignore[operator]
    assert torch.equal(ranked[:, 0], ad_id[:, -1])


def test_equal_seeds_make_equal_models(name: str) -> None:
    batch, losses = make_batch([8, 5]), []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        losses.append(MAKERS[name]().loss(batch).item())  # type: ignore[operator]
    assert losses[0] == losses[1] != losses[2]


def test_dropout_is_off_unless_asked_for_and_off_in_evaluation(name: str) -> None:
    batch = make_batch([8, 5])
    model = make_rival(name, dropout=0.5)
    torch.manual_seed(0)
    assert model.loss(batch) != model.loss(batch)
    assert model.eval().loss(batch) == make_rival(name).loss(batch)


@pytest.mark.parametrize("name", ["onerec", "tiger"])
def test_parts_change_neither_loss_nor_gradient(name: str) -> None:
    if name == "tiger":
        pytest.importorskip("transformers")
    batch = make_batch([11, 4, 8, 2], num_positions=3)
    found = []
    for max_rows in (100, 2):
        model = make_rival(name, max_rows=max_rows)
        model.loss(batch).backward()
        gradients = [x.grad for x in model.parameters() if x.grad is not None]
        found.append(
            (model.loss(batch).detach(), model.rank(batch.tokens, batch.item, 5), gradients)
        )
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


def test_sasrec_equals_torchs_own_layers() -> None:
    """Each row on its own, item by item, through `nn.TransformerEncoderLayer`."""
    model, batch = make_rival("sasrec"), make_batch([11, 4, 8, 2], num_positions=3)
    layers = []
    for block in model.blocks:
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=True)
        own = {
            "self_attn.in_proj_": block.qkv,
            "self_attn.out_proj.": block.output,
            "linear1.": block.ffn_in,
            "linear2.": block.ffn_out,
            "norm1.": block.attention_norm,
            "norm2.": block.ffn_norm,
        }
        parts = own.items()
        state = {k + n: v for k, part in parts for n, v in part.state_dict().items()}
        layer.double().load_state_dict(state)
        layers.append(layer)
    got = model.states(batch.tokens, batch.item, batch.position)
    for row, column in batch.valid.nonzero().tolist():
        before = batch.position[row, column]
        item, action = batch.item[row, :before], batch.tokens.action[row, :before]
        item, action = item[item >= 0], action[item >= 0]
        want = model.start
        if len(item):
            x = model.item.weight[item] + model.action.weight[action]
            x = (x + model.position[: len(item)])[None]
            mask = nn.Transformer.generate_square_subsequent_mask(len(item), dtype=torch.float64)
            for layer in layers:
                x = layer(x, src_mask=mask, is_causal=True)
            want = model.norm(x)[0, -1]
        torch.testing.assert_close(got[row, column], want)
    assert torch.equal(got[3, -1], model.start)  # a user token and a request, nothing else


def test_popularity_counts_valid_targets() -> None:
    batch = make_batch([11, 11], num_positions=3)
    assert batch.valid.all()
    ad_id = torch.tensor([[3, 3, 6], [1, 6, 0]])
    batch = replace(batch, ad_id=ad_id, valid=torch.tensor([[True] * 3, [True, True, False]]))
    model = Popularity(torch.zeros(NUM_ADS, dtype=torch.long)).fit([batch])
    # 3 and 6 twice, 1 once, the others never; ties go to the lower id
    assert model.rank(batch.tokens, batch.item, 5).tolist() == [[3, 6, 1, 0, 2]] * 2
    assert model.rank(batch.tokens, batch.item, 8)[1].tolist() == [3, 6, 1, 0, 2, 4, 5, -1]
    # raised by one: 1 2 1 3 1 1 3 of 12; the five targets are 3 3 6 1 6
    want = -(torch.tensor([3, 3, 3, 2, 3]) / 12).log().mean()
    torch.testing.assert_close(model.loss(batch), want)
    assert not list(model.parameters())
    twice = Popularity(model.count).fit([batch, batch])
    assert twice.count.tolist() == [0, 3, 0, 6, 0, 0, 6]
    assert model.count.sum() == 5


def test_bad_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="num_heads must divide dim=64, got 5"):
        HSTUConfig(num_heads=5)
    with pytest.raises(ValueError, match=r"dropout must lie in \[0, 1\), got 1"):
        OneRecConfig(dropout=1.0)
    with pytest.raises(ValueError, match="max_items must be at least 1, got 0"):
        TIGERConfig(max_items=0)
    with pytest.raises(ValueError, match="num_items must be at least num_ads=7, got 6"):
        SASRec(SASRecConfig(), SPEC, 7, 6)


def test_tiger_names_the_package_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="pip install transformers"):
        TIGER(TIGERConfig(), SPEC, make_trie())


def test_a_batch_without_targets_teaches_nothing(name: str) -> None:
    batch = make_batch([12, 8], seed=1)
    empty = replace(batch, valid=torch.zeros_like(batch.valid))
    model = make_rival(name)
    loss = model.loss(empty)
    assert loss.item() == 0.0
    if loss.requires_grad:  # all but popularity
        loss.backward()
        for parameter in model.parameters():
            assert parameter.grad is None or not parameter.grad.any()
