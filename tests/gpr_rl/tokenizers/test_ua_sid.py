import hashlib
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from gpr_rl.tokenizers import UASID, CodeIndex, RQKMeans, quality, resolve_collisions, swing_pairs
from gpr_rl.tokenizers.fitting.adapter import train_adapter
from gpr_rl.tokenizers.fitting.balanced import balanced_kmeans
from gpr_rl.tokenizers.fitting.search import nearest
from gpr_rl.tokenizers.keys import hash_keys, read_keys
from tests.gpr_rl.tokenizers.tokenizer_data import clusters


def business(num_rows: int) -> dict[str, list[str]]:
    return {
        "conversion_type": [("click", "purchase")[i % 2] for i in range(num_rows)],
        "ad": [f"ad{i}" for i in range(num_rows)],
        "advertiser": [f"a{i % 7}" for i in range(num_rows)],
    }


@pytest.fixture(scope="module")
def fitted() -> UASID:
    return UASID(3, (16, 8, 32), seed=1).fit(clusters(500), business(500))


def test_the_hash_is_blake2b_of_parts_with_their_lengths() -> None:
    key = ("ad1", "\u00e4")
    data = (3).to_bytes(8, "little") + b"ad1" + (2).to_bytes(8, "little") + "\u00e4".encode()
    digest = hashlib.blake2b(data, digest_size=8).digest()
    assert hash_keys([key], 1 << 20).tolist() == [int.from_bytes(digest, "little") % (1 << 20)]
    # a constant that was worked out once: every machine, every run
    assert hash_keys([("a", "b"), ("ab", ""), ("", "ab")], 1_000_003).tolist() == EXPECTED


EXPECTED = [663_985, 171_756, 149_211]


def test_all_forms_of_one_key_have_one_hash(fitted: UASID) -> None:
    x, keys = clusters(40), business(40)
    rows = list(zip(keys["ad"], keys["advertiser"], keys["conversion_type"], strict=True))
    codes = fitted.encode(x, keys)
    assert torch.equal(fitted.encode(x, rows), codes)
    assert torch.equal(fitted.encode(x, dict(reversed(keys.items()))), codes)
    assert torch.equal(fitted.encode(x, pd.DataFrame(keys)), codes)
    ads = keys["ad"]
    assert torch.equal(fitted.encode(x, ads), fitted.encode(x, [(ad,) for ad in ads]))
    assert not torch.equal(fitted.encode(x, ads)[:, 2], codes[:, 2])
    assert read_keys([("a", 1)], 1) == [("a", "1")]


def test_the_last_level_depends_on_keys_alone_and_the_others_on_content_alone(
    fitted: UASID,
) -> None:
    x = clusters(40)
    same, other = ["one"] * 40, [f"ad{i}" for i in range(40)]
    assert len(fitted.encode(x, same)[:, 2].unique()) == 1
    assert torch.equal(fitted.encode(x, same)[:, :2], fitted.encode(x, other)[:, :2])
    twins = np.repeat(x[:1], 40, axis=0)
    assert len(fitted.encode(twins, other)[:, :2].unique(dim=0)) == 1
    assert len(fitted.encode(twins, other)[:, 2].unique()) > 15
    assert torch.equal(fitted.encode(twins, other)[:, 2], fitted.encode(x, other)[:, 2])


def test_without_keys_the_content_is_hashed_and_never_the_position(fitted: UASID) -> None:
    x = clusters(60, seed=3)
    codes = fitted.encode(x)
    order = np.random.default_rng(0).permutation(60)
    assert torch.equal(fitted.encode(x[order]), codes[order])
    assert len(codes[:, 2].unique()) > 15
    zero = np.zeros((2, 8), dtype=np.float32)
    zero[1] = -0.0
    assert len(fitted.encode(zero).unique(dim=0)) == 1
    assert torch.equal(fitted.encode(x.astype(np.float64)), codes)


def test_decode_ignores_the_last_level(fitted: UASID) -> None:
    codes = fitted.encode(clusters(40))
    changed = codes.clone()
    changed[:, 2] = 0
    assert torch.equal(fitted.decode(changed), fitted.decode(codes))


def test_new_ads_get_an_id_at_once_and_the_index_knows_them(fitted: UASID, tmp_path: Path) -> None:
    before = fitted.encode(clusters(500), business(500))
    fitted.save(tmp_path)
    tokenizer = UASID.load(tmp_path)
    assert len(tokenizer.index) == 500
    assert torch.equal(tokenizer.index.codes(range(500)), before)
    new = clusters(3, seed=8)
    codes = tokenizer.add(new, ["x", "y", "z"], [900, 700, 800])
    assert torch.equal(codes, tokenizer.encode(new, ["x", "y", "z"]))
    assert 700 in tokenizer.index.items(codes[1].tolist())
    assert torch.equal(tokenizer.encode(clusters(500), business(500)), before)
    assert torch.equal(tokenizer.add(new, ["x", "y", "z"]), codes)
    assert tokenizer.index.codes([901, 902, 903]).equal(codes)
    with pytest.raises(ValueError, match="item 900 would be in the index twice"):
        tokenizer.add(new[:1], ["x"], [900])
    tokenizer.save(tmp_path)
    assert len(UASID.load(tmp_path).index) == 506


def test_refuses_keys_that_do_not_fit(fitted: UASID) -> None:
    x = clusters(3)
    for keys, message in (
        (["a", "b"], "keys must have 3 entries, one per row, got 2"),
        ({"ad": ["a"] * 3, "account": ["b"]}, r"keys\['account'\] must have 3 entries"),
        ("abc", "one key per row, got the string 'abc'"),
        ({}, "keys has no columns"),
        (["a", None, "b"], "the key of row 1 has a missing value"),
        ({"ad": ["a", "b", float("nan")]}, "the key of row 2 has a missing value"),
    ):
        with pytest.raises(ValueError, match=message):
            fitted.encode(x, keys)


def test_the_index_finds_paths_and_prefixes() -> None:
    index = CodeIndex(torch.tensor([[0, 1], [0, 2], [0, 1]]), [5, 3, 4])
    assert index.items([0, 1]) == [4, 5]
    assert index.items([0]) == [3, 4, 5]
    assert index.items([1]) == []
    assert index.codes([3, 5]).tolist() == [[0, 2], [0, 1]]
    assert index.add(torch.tensor([[7, 7]])) == [6]
    with pytest.raises(ValueError, match="1 items are not in the index, the first is 9"):
        index.codes([3, 9])
    with pytest.raises(ValueError, match="item 8 would be in the index twice"):
        index.add(torch.tensor([[0, 0], [0, 1]]), [8, 8])
    with pytest.raises(ValueError, match=r"codes must be \[n, 2\]"):
        index.add(torch.tensor([[0, 0, 0]]))
    assert len(index) == 4
    assert index.items([7]) == [6]
    again = CodeIndex.from_tensors(index.tensors())
    assert again.items([0]) == [3, 4, 5]


def test_clusters_are_balanced_also_for_rows_not_seen_before() -> None:
    rng = np.random.default_rng(0)
    # one crowd with most of the rows, as in a real catalogue
    x = torch.from_numpy(
        np.concatenate([rng.normal(0, 0.3, (3200, 6)), rng.normal(0, 3, (800, 6))]).astype("f4")
    )
    fit, new = x[::2], x[1::2]
    plain = RQKMeans(1, 32).fit(fit)
    centroids, offset = balanced_kmeans(fit, 32, 0)

    def largest(code: torch.Tensor) -> float:
        return torch.bincount(code, minlength=32).max().item() / (len(code) / 32)

    assert largest(plain.encode(fit)[:, 0]) > 2.5
    assert largest(nearest(fit, centroids, offset)) < 1.3
    assert largest(nearest(new, centroids, offset)) < 1.6


def test_ids_collide_less_than_those_of_kmeans_with_as_many_paths() -> None:
    x = np.repeat(clusters(300), 3, axis=0)  # three ads with the same creative
    plain = RQKMeans(3, (32, 16, 8)).fit(x)
    ours = UASID(3, (32, 16, 8)).fit(x, [str(i) for i in range(900)])
    before = quality(plain.encode(x), x).collision_rate
    after = quality(ours.index.codes(range(900)), x).collision_rate
    assert before == 1.0
    assert after < 0.5


def test_swing_agrees_with_its_definition() -> None:
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 12, 90), rng.integers(0, 9, 90)
    has = {u: set(item[user == u].tolist()) for u in range(12)}
    expected = {}
    for i, j in itertools.permutations(range(9), 2):
        both = [u for u in range(12) if {i, j} <= has[u]]
        score = sum(1 / (2 + len(has[u] & has[v])) for u, v in itertools.combinations(both, 2))
        if score:
            expected[i, j] = score
    pairs, score = swing_pairs(user, item, num_neighbors=9, alpha=2.0)
    found = dict(zip(map(tuple, pairs.tolist()), score.tolist(), strict=True))
    assert found.keys() == expected.keys()
    assert all(found[pair] == pytest.approx(expected[pair]) for pair in expected)
    best, kept = swing_pairs(user, item, num_neighbors=2, alpha=2.0)
    for i in range(9):
        theirs = sorted((-s, j) for (a, j), s in expected.items() if a == i)[:2]
        assert best[best[:, 0] == i][:, 1].tolist() == [j for _, j in theirs]
        assert kept[best[:, 0] == i].tolist() == pytest.approx([-s for s, _ in theirs])


def test_swing_bounds_its_work_and_names_what_is_wrong() -> None:
    user = np.repeat(np.arange(50), 2)
    item = np.tile([0, 1], 50)
    few = swing_pairs(user, item, max_users_per_item=10)[1]
    assert few == pytest.approx([10 * 9 / 2 / 3] * 2)  # ten users, each pair with two items
    none = np.empty(0, dtype=np.int64)
    assert len(swing_pairs(none, none)[0]) == 0
    assert len(swing_pairs(np.arange(3), np.arange(3))[0]) == 0
    for args, message in (
        ((user, item[:5]), "must be"),
        ((user - 1, item), "must not be negative"),
    ):
        with pytest.raises(ValueError, match=message):
            swing_pairs(*args)
    with pytest.raises(ValueError, match="alpha must be above 0, got 0"):
        swing_pairs(user, item, alpha=0.0)


def test_the_adapter_brings_pairs_together(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 12)).astype(np.float32)
    pairs = np.stack([np.arange(0, 200, 2), np.arange(1, 200, 2)], axis=1)
    weight = np.ones(100)

    def similarity(rows: np.ndarray) -> float:
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return float((unit[::2] * unit[1::2]).sum(1).mean())

    tokenizer = UASID(2, (16, 8), adapter_epochs=60, adapter_learning_rate=1e-2).fit(
        x, pairs=(pairs, weight)
    )
    tokenizer.save(tmp_path)
    assert torch.equal(UASID.load(tmp_path).encode(x), tokenizer.encode(x))
    plain = UASID(2, (16, 8)).fit(x)
    assert tokenizer.losses[-1] < 0.7 * tokenizer.losses[0]
    assert similarity(tokenizer._adapted(torch.from_numpy(x)).numpy()) > similarity(x) + 0.3
    together = [
        (t.encode(x)[::2, 0] == t.encode(x)[1::2, 0]).float().mean() for t in (tokenizer, plain)
    ]
    assert together[0] > together[1] + 0.2
    # decoding gives embeddings, not what the adapter makes of them
    error = quality(tokenizer.encode(x), x, x_hat=tokenizer.decode(tokenizer.encode(x)))
    assert error.reconstruction_error < np.square(x - x.mean(0)).sum(1).mean()


def test_the_adapter_starts_as_nothing_and_checks_its_pairs() -> None:
    x = torch.from_numpy(clusters(20))
    options = {"num_epochs": 0, "learning_rate": 1e-3, "temperature": 0.1, "seed": 0}
    adapter, losses = train_adapter(x, [[0, 1]], [1.0], **options)
    assert torch.equal(adapter.embed(x), x)
    assert losses == []
    for pairs, weight, message in (
        ([[0, 20]], [1.0], r"rows in \[0, 20\), got 0 to 20"),
        ([[0, 1, 2]], [1.0], r"integers \[P, 2\]"),
        ([[0, 1]], [1.0, 2.0], r"weights must be \[1\]"),
        ([[0, 1]], [-1.0], "not negative"),
    ):
        with pytest.raises(ValueError, match=message):
            train_adapter(x, pairs, weight, **options)


def test_a_suffix_makes_every_path_one_items() -> None:
    codes = torch.tensor([[1, 2], [0, 0], [1, 2], [1, 2], [0, 1]])
    found = resolve_collisions(codes, "suffix")
    assert found.tolist() == [[1, 2, 0], [0, 0, 0], [1, 2, 1], [1, 2, 2], [0, 1, 0]]
    assert resolve_collisions(codes, "highest_value") is codes
    with pytest.raises(ValueError, match="resolve must be one of highest_value, suffix, got 'x'"):
        resolve_collisions(codes, "x")
