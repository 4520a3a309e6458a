import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gpr_rl.decoding import CodeTrie, beam_search
from gpr_rl.models import HHD, HHDConfig
from gpr_rl.models.knowledge.providers import (
    Click,
    HistoryThoughts,
    InformedPolicy,
    PreparedThoughts,
    embed_thoughts,
)
from gpr_rl.models.knowledge.text_embedding import SentenceEmbedder, TfidfEmbedder
from tests.gpr_rl.models.model_inputs import SPEC, make_model, make_request, make_targets

CLICKS = [
    Click(1, 30, "shoes", "acme"),
    Click(1, 10, "games", "zeta"),
    Click(1, 20, "shoes"),
    Click(1, 40, "books", "acme"),
    Click(2, 10, "cars"),
]
TEXTS = [
    "likes running shoes and trail shoes",
    "likes video games and board games",
    "likes shoes",
    "plays games on the phone",
    "reads books about trails",
    "",
]


def _thoughts(user: list[int], time: list[int], **options: int) -> list[str]:
    provider = HistoryThoughts(CLICKS, **options)
    return provider.thoughts(torch.tensor(user), torch.tensor(time))


def test_the_template_names_the_most_frequent_first() -> None:
    assert _thoughts([1, 1], [100, 35], num_named=2) == [
        "The user is likely interested in shoes, books. The user often clicks ads of acme, zeta.",
        "The user is likely interested in shoes, games. The user often clicks ads of acme, zeta.",
    ]
    assert _thoughts([2, 3], [100, 100]) == ["The user is likely interested in cars.", ""]


def test_only_clicks_strictly_before_the_request_count() -> None:
    assert _thoughts([1, 1, 1], [10, 11, 20]) == [
        "",
        *["The user is likely interested in games. The user often clicks ads of zeta."] * 2,
    ]


def test_prepared_texts_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "thoughts.jsonl"
    lines = [{"user_id": 4, "text": "likes café"}, {"user_id": -1, "text": ""}]
    path.write_text("\n\n".join(json.dumps(x, ensure_ascii=False) for x in lines), "utf-8")
    provider = PreparedThoughts.load(path)
    user = torch.tensor([9, 4, -1])
    assert provider.thoughts(user, user) == ["", "likes café", ""]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "Expecting property name"),
        ("[1]", 'must be an object with "user_id" and "text" and nothing else'),
        ('{"user_id": 2}', 'must be an object with "user_id" and "text" and nothing else'),
        ('{"user_id": "2", "text": ""}', "user_id must be an integer, got '2'"),
        ('{"user_id": true, "text": ""}', "user_id must be an integer, got True"),
        ('{"user_id": 2, "text": null}', "text must be a string, got None"),
        ('{"user_id": 1, "text": ""}', "user 1 has a text already"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"user_id": 1, "text": "a"}\n' + line + "\n")
    with pytest.raises(ValueError, match=rf"bad\.jsonl, line 2: {message}"):
        PreparedThoughts.load(path)


def test_embedding_equals_sklearn(tmp_path: Path) -> None:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    embed = TfidfEmbedder.fit(TEXTS, dim=3, seed=0)
    got = embed(TEXTS)
    assert got.dtype == torch.float32
    assert got.shape == (6, 3)
    vectorizer = TfidfVectorizer(ngram_range=(1, 2)).fit(TEXTS[:5])
    svd = TruncatedSVD(3, random_state=0).fit(vectorizer.transform(TEXTS[:5]))
    raw = torch.from_numpy(svd.transform(vectorizer.transform(TEXTS[:5]))).float()
    want = torch.nn.functional.normalize(raw, dim=1)
    torch.testing.assert_close(got[:5], want, rtol=1e-4, atol=1e-5)
    assert got[5].eq(0).all()
    assert embed(["zebra"]).eq(0).all()
    assert got[0] @ got[2] > got[1] @ got[2]  # shoes are nearer to shoes than games are


def test_an_embedder_comes_back_from_its_files(tmp_path: Path) -> None:
    embed = TfidfEmbedder.fit(TEXTS, dim=2)
    embed.save(tmp_path / "e")
    assert {p.suffix for p in (tmp_path / "e").iterdir()} == {".json", ".safetensors"}
    again = TfidfEmbedder.load(tmp_path / "e")
    torch.testing.assert_close(again(TEXTS), embed(TEXTS), rtol=0, atol=1e-6)
    (tmp_path / "e" / "text_embedding.json").write_text('["one"]')
    with pytest.raises(ValueError, match="1 words, but weights of"):
        TfidfEmbedder.load(tmp_path / "e")


def test_texts_that_are_all_alike_have_one_vector() -> None:
    embed = TfidfEmbedder.fit(["shoes from north, boots from south"] * 9, 2)
    found = embed(["shoes from north, boots from south"] * 2)
    assert found.isfinite().all()
    assert torch.equal(found[0], found[1])


def test_a_vector_depends_on_its_text_alone() -> None:
    embed = TfidfEmbedder.fit(TEXTS, dim=3)
    for row, text in enumerate(TEXTS):
        torch.testing.assert_close(embed([text])[0], embed(TEXTS)[row], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("texts", "dim", "message"),
    [
        ([], 1, "at least one text with a word is needed, got 0 without"),
        (["", " "], 1, "at least one text with a word is needed, got 0 without"),
        (["a b", "-"], 1, "at least one text with a word is needed, got 2 without"),
        (TEXTS, 0, "dim must be at least 1, got 0"),
    ],
)
def test_too_little_text_is_named(texts: list[str], dim: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TfidfEmbedder.fit(texts, dim=dim)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_texts_fill_up_with_zeros(count: int) -> None:
    embed = TfidfEmbedder.fit(TEXTS[:count], dim=16)
    found = embed(TEXTS[:count])
    assert found.shape == (count, 16)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(count))
    assert found[:, count:].abs().max() < 1e-3


def test_without_sentence_transformers_the_error_says_so(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match="needs sentence-transformers, which is not installed"):
        SentenceEmbedder(tmp_path)


def test_a_sentence_model_is_used_where_there_is_one(monkeypatch: Any, tmp_path: Path) -> None:
    class FakeModel:
        def __init__(self, path: str, local_files_only: bool) -> None:
            assert (path, local_files_only) == (str(tmp_path), True)

        def encode(self, texts: list[str], normalize_embeddings: bool) -> Any:
            assert normalize_embeddings
            return torch.ones(len(texts), 4).numpy()

    module = type(sys)("sentence_transformers")
    module.SentenceTransformer = FakeModel  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    got = SentenceEmbedder(tmp_path)(["a", ""])
    assert got.tolist() == [[1.0] * 4, [0.0] * 4]


LENGTHS = [9, 5, 12]


def _vectors(seed: int = 0) -> Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))


def test_knowledge_reaches_policy_and_critic() -> None:
    model = make_model(knowledge_dim=4)
    request = make_request(LENGTHS)
    codes = torch.zeros(3, 2, 3, dtype=torch.int64)
    seen = []
    for seed in (0, 1):
        knowledge = _vectors()
        knowledge[1] = _vectors(seed)[1]
        context = model.encode(request, knowledge)
        seen.append((model.logits(context, codes), model.hte(context, codes).value))
    for before, after in zip(*seen, strict=True):
        differs = (before != after).flatten(1).any(1)
        assert differs.tolist() == [False, True, False]
    nothing = model.encode(request)
    zero = model.encode(request, torch.zeros(3, 4))
    assert torch.equal(nothing.h, zero.h)


def test_the_slot_is_one_more_intent_embedding() -> None:
    model = make_model(knowledge_dim=4)
    request = make_request(LENGTHS)
    context = model.encode(request, _vectors())
    assert context.h.shape == (3, 13, 8)
    assert torch.equal(context.h[:, 1:], model.hsd(request.tokens)[0])
    assert context.key_mask.sum(1).tolist() == [10, 6, 13]
    assert context.position[:, 0].tolist() == [9, 5, 12]
    assert torch.equal(context.visible[:, 0], context.key_mask)
    assert model.knowledge_slot is not None
    slot = model.knowledge_slot
    want = slot.norm(slot.project(_vectors()[2].double()))
    torch.testing.assert_close(context.h[2, 0], want)


def test_the_projection_learns_from_the_policy() -> None:
    model = make_model(knowledge_dim=4)
    request = make_request(LENGTHS)
    position = (request.tokens.kind > 0).sum(1, keepdim=True) - 1
    logits = model.mtp_logits(request.tokens, make_targets(position, 4), _vectors())
    logits.square().sum().backward()
    assert model.knowledge_slot is not None
    for parameter in model.knowledge_slot.parameters():
        assert parameter.grad is not None
        assert parameter.grad.ne(0).any()


def test_knowledge_that_does_not_fit_is_named() -> None:
    request = make_request(LENGTHS)
    with pytest.raises(ValueError, match="the model takes no knowledge: knowledge_dim is 0"):
        make_model().encode(request, _vectors())
    with pytest.raises(ValueError, match=r"knowledge must be \(3, 5\), got \(3, 4\)"):
        make_model(knowledge_dim=5).encode(request, _vectors())
    with pytest.raises(ValueError, match="knowledge_dim must be at least 0, got -1"):
        HHDConfig(knowledge_dim=-1)


def test_from_texts_to_logits() -> None:
    embed = TfidfEmbedder.fit(TEXTS, dim=3)
    provider = PreparedThoughts({0: TEXTS[0], 2: TEXTS[3]})
    request = make_request(LENGTHS)
    knowledge = embed_thoughts(provider, embed, request.user_id, request.timestamp)
    assert knowledge[1].eq(0).all()
    model = HHD(HHDConfig(dim=8, num_heads=2, knowledge_dim=3), SPEC)
    policy = InformedPolicy(model, provider, embed)
    log_prob, _, _ = policy.begin(policy.encode(request))
    assert torch.equal(log_prob, model.begin(model.encode(request, knowledge))[0])
    torch.testing.assert_close(log_prob.exp().sum(-1), torch.ones(3, 1))


def test_beam_search_uses_knowledge() -> None:
    codes = torch.tensor([[0, 1, 2], [1, 0, 0], [3, 3, 3]])
    trie = CodeTrie(codes, SPEC.num_codes)
    model, embed = make_model(knowledge_dim=3), TfidfEmbedder.fit(TEXTS, dim=3)
    request = make_request(LENGTHS)
    informed = InformedPolicy(model, PreparedThoughts({1: TEXTS[1]}), embed)
    with_it, without = (beam_search(x, request, trie, 3) for x in (informed, model))
    differs = with_it.log_prob.sum(-1).sort().values != without.log_prob.sum(-1).sort().values
    assert differs.any(1).tolist() == [False, True, False]
