import json
import math
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics.pairwise import cosine_similarity

from gpr_rl.tokenizers import RQKMeans, quality
from gpr_rl.tokenizers.fitting import search


def clusters(num_rows: int = 400, width: int = 8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal((12, width)) * 3
    rows = centre[rng.integers(12, size=num_rows)] + rng.standard_normal((num_rows, width))
    return rows.astype(np.float32)


@pytest.fixture(scope="module")
def fitted() -> RQKMeans:
    return RQKMeans(num_levels=3, num_codes=[16, 8, 4], seed=5).fit(clusters())


def test_the_first_level_is_faiss_itself() -> None:
    x = clusters()
    kmeans = faiss.Kmeans(8, 16, niter=25, seed=3, min_points_per_centroid=1)
    kmeans.train(x)
    tokenizer = RQKMeans(num_levels=2, num_codes=16, seed=3).fit(x)
    np.testing.assert_allclose(tokenizer.codebooks[0].numpy(), kmeans.centroids, rtol=1e-5)
    _, code = kmeans.index.search(x, 1)
    assert tokenizer.encode(x)[:, 0].tolist() == code[:, 0].tolist()


def test_every_level_takes_the_nearest_centroid_of_the_residual(fitted: RQKMeans) -> None:
    x = clusters(300, seed=1)
    residual = x.astype(np.float64)
    for level, code in enumerate(fitted.encode(x).T):
        book = fitted.codebooks[level].double().numpy()
        distance = np.square(residual[:, None] - book[None]).sum(-1)
        assert code.tolist() == distance.argmin(1).tolist()
        residual = residual - book[code.numpy()]
    decoded = fitted.decode(fitted.encode(x)).numpy()
    np.testing.assert_allclose(x - decoded, residual, atol=1e-5)


def test_a_hand_worked_line() -> None:
    # Two groups of two: centroids 1 and 11, residuals -1 and +1 twice, so level two has -1 and 1
    # and every point is met exactly.
    x = np.array([[0.0], [2.0], [10.0], [12.0]])
    tokenizer = RQKMeans(num_levels=2, num_codes=2).fit(x)
    assert sorted(tokenizer.codebooks[0].flatten().tolist()) == [1.0, 11.0]
    assert sorted(tokenizer.codebooks[1].flatten().tolist()) == [-1.0, 1.0]
    assert tokenizer.decode(tokenizer.encode(x)).tolist() == x.tolist()
    assert len(tokenizer.encode(x).unique(dim=0)) == 4


@settings(max_examples=20, deadline=None)
@given(rows=st.lists(st.integers(0, 1499), min_size=1, max_size=40), start=st.integers(0, 1490))
def test_a_rows_code_never_depends_on_the_other_rows(rows: list[int], start: int) -> None:
    x = clusters(1500, width=33)
    tokenizer = RQKMeans(num_levels=3, num_codes=20).fit(x[:200])
    whole = tokenizer.encode(x)
    assert torch.equal(tokenizer.encode(x[rows]), whole[rows])
    assert torch.equal(tokenizer.encode(x[start:]), whole[start:])
    assert torch.equal(tokenizer.encode(x[start : start + 1]), whole[start : start + 1])


def test_nor_does_it_where_only_rounding_decides() -> None:
    # Rows moved to the very middle between their two nearest centroids, where a matrix
    # product tips them one way or the other by their place in the block.
    rng = np.random.default_rng(0)
    tokenizer = RQKMeans(num_levels=1, num_codes=256)
    tokenizer.codebooks = [torch.from_numpy(rng.standard_normal((256, 640)).astype(np.float32))]
    book = tokenizer.codebooks[0].double()
    x = torch.from_numpy(rng.standard_normal((600, 640)))
    first, second = book[torch.cdist(x, book).topk(2, largest=False).indices].unbind(1)
    across = second - first
    beyond = ((x - (first + second) / 2) * across).sum(1) / across.square().sum(1)
    x = (x - beyond[:, None] * across).float()
    whole = tokenizer.encode(x)
    assert torch.equal(torch.cat([tokenizer.encode(row[None]) for row in x[:100]]), whole[:100])
    assert torch.equal(tokenizer.encode(x[7:]), whole[7:])


def test_same_seed_same_bits_whatever_the_number_of_threads() -> None:
    x = clusters()
    before = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(2)
        two = RQKMeans(num_levels=2, num_codes=16).fit(x)
        assert faiss.omp_get_max_threads() == 2
    finally:
        faiss.omp_set_num_threads(before)
    one, other = (RQKMeans(num_levels=2, num_codes=16, seed=seed).fit(x) for seed in (0, 1))
    assert all(map(torch.equal, one.codebooks, two.codebooks))
    assert not torch.equal(one.codebooks[0], other.codebooks[0])


def test_reads_arrays_and_tensors_of_every_float_type(fitted: RQKMeans) -> None:
    half = clusters(50).astype(np.float16)
    expected = fitted.encode(half.astype(np.float32))
    assert expected.dtype == torch.int64
    assert expected.shape == (50, 3)
    for x in (
        half,
        half.astype(np.float64),
        torch.from_numpy(half),
        torch.from_numpy(half).double(),
    ):
        assert torch.equal(fitted.encode(x), expected)
    assert fitted.decode(expected.numpy()).dtype == torch.float32
    assert fitted.encode(half[:0]).shape == (0, 3)


def test_does_not_change_its_input() -> None:
    x = clusters()
    kept = x.copy()
    RQKMeans(num_levels=2, num_codes=16).fit(x).encode(x)
    assert np.array_equal(x, kept)


def test_counts_codes_that_the_rows_are_too_few_for() -> None:
    x = np.repeat(np.eye(3), 4, axis=0)  # 12 rows, 3 distinct ones
    tokenizer = RQKMeans(num_levels=2, num_codes=5).fit(x)
    assert tokenizer.num_unused[0] == 2
    assert tokenizer.decode(tokenizer.encode(x)).numpy() == pytest.approx(x, abs=1e-6)


def test_an_empty_centroid_moves_to_the_row_that_fits_worst(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Collapsed(faiss.Kmeans):
        def train(self, x: np.ndarray) -> None:
            self.centroids = np.zeros((self.k, self.d), dtype=np.float32)

    monkeypatch.setattr(search.faiss, "Kmeans", Collapsed)
    x = np.array([[0.0], [1.0], [5.0], [9.0]])
    tokenizer = RQKMeans(num_levels=1, num_codes=3).fit(x)
    # All at 0: the farthest rows are 9 and 5; then rows 0 and 1 share the centroid at 0.
    assert tokenizer.codebooks[0].flatten().tolist() == [0.0, 9.0, 5.0]
    assert tokenizer.num_reseeded == [2]
    assert tokenizer.num_unused == [0]


def test_saved_and_loaded_is_the_same_tokenizer(fitted: RQKMeans, tmp_path: Path) -> None:
    RQKMeans(num_levels=1, num_codes=4).fit(clusters(20)).save(tmp_path)
    fitted.save(tmp_path)
    loaded = RQKMeans.load(tmp_path)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".safetensors"]
    assert all(map(torch.equal, loaded.codebooks, fitted.codebooks))
    for name in ("num_levels", "num_codes", "seed", "num_reseeded", "num_unused"):
        assert getattr(loaded, name) == getattr(fitted, name)
    x = clusters(30, seed=2)
    assert torch.equal(loaded.encode(x), fitted.encode(x))


def test_damaged_files_give_one_clear_error_and_stay(fitted: RQKMeans, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json is missing"):
        RQKMeans.load(tmp_path)
    fitted.save(tmp_path)
    [tensors], info = list(tmp_path.glob("*.safetensors")), tmp_path / "tokenizer.json"
    good_tensors, good_info = tensors.read_bytes(), info.read_bytes()
    for damage in (good_tensors[:-7], b"", good_tensors[:-1] + b"\xff"):
        tensors.write_bytes(damage)
        with pytest.raises(ValueError, match=r"safetensors is damaged"):
            RQKMeans.load(tmp_path)
        assert tensors.read_bytes() == damage
    tensors.unlink()
    with pytest.raises(ValueError, match="can't be read"):
        RQKMeans.load(tmp_path)
    tensors.write_bytes(good_tensors)
    for damage in (good_info[:40], b"[]", b"{}", b"\xff\xfe"):
        info.write_bytes(damage)
        with pytest.raises(ValueError, match=r"tokenizer\.json is damaged"):
            RQKMeans.load(tmp_path)
    foreign = json.loads(good_info) | {"kind": "UASID"}
    info.write_text(json.dumps(foreign))
    with pytest.raises(ValueError, match="holds a UASID, not a RQKMeans"):
        RQKMeans.load(tmp_path)
    changed = json.loads(good_info)
    del changed["config"]["fitted"]
    info.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="damaged"):
        RQKMeans.load(tmp_path)


def test_says_what_is_wrong_with_the_input(fitted: RQKMeans) -> None:
    x = clusters(30)
    x[4, 0], x[7, 2] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"2 of 30 rows hold NaN or infinity: rows 4, 7$"):
        fitted.encode(x)
    with pytest.raises(ValueError, match=r"rows 4, 7$"):
        RQKMeans(num_codes=4).fit(torch.from_numpy(x))
    with pytest.raises(ValueError, match="got 30 rows for 31 codes"):
        RQKMeans(num_codes=[4, 31, 4]).fit(clusters(30))
    with pytest.raises(ValueError, match="must have the 8 columns of fit, got 9"):
        fitted.encode(clusters(30, width=9))
    with pytest.raises(ValueError, match=r"must be \[n, d\]"):
        fitted.encode(np.zeros(8))
    with pytest.raises(ValueError, match="num_codes must be a positive integer or 3 of them"):
        RQKMeans(num_codes=[4, 4])
    with pytest.raises(ValueError, match="call fit or load first"):
        RQKMeans().encode(clusters())
    with pytest.raises(ValueError, match=r"code 8 of row 1, level 1 is outside \[0, 8\)"):
        fitted.decode(np.array([[0, 0, 0], [15, 8, 3]]))
    with pytest.raises(ValueError, match="codes must be integers"):
        fitted.decode(np.zeros((1, 3)))


def test_quality_agrees_with_loops_and_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 3, size=(60, 3))
    x = rng.standard_normal((60, 7)) + 1.0
    x_hat = x + rng.standard_normal((60, 7))
    x[3] = 0.0  # no direction: scikit-learn gives it cosine 0 as well
    found = quality(codes, x, num_codes=[3, 4, 5], x_hat=x_hat)
    paths = [tuple(row) for row in codes.tolist()]
    cosine = cosine_similarity(x.astype(np.float32).astype(np.float64))
    means = []
    for path in set(paths):
        members = [i for i in range(60) if paths[i] == path]
        pairs = [cosine[i, j] for i in members for j in members if i != j]
        if pairs:
            means.append(sum(pairs) / len(pairs))
    assert len(means) > 5
    assert found.path_similarity == pytest.approx(np.mean(means), rel=1e-9)
    assert found.collision_rate == sum(paths.count(path) > 1 for path in paths) / 60
    assert found.code_usage.tolist() == pytest.approx([3 / 3, 3 / 4, 3 / 5])
    expected = [stats.entropy(np.bincount(column)) for column in codes.T]
    assert found.entropy.tolist() == pytest.approx(expected)
    assert found.reconstruction_error == pytest.approx(
        np.mean([np.linalg.norm(a - b) ** 2 for a, b in zip(x, x_hat, strict=True)]), rel=1e-5
    )


def test_quality_of_a_hand_worked_coding() -> None:
    # Items 0 and 1 share a path at a right angle, 2 and 3 another one pointing the same way.
    codes = torch.tensor([[0, 0], [0, 0], [1, 0], [1, 0], [1, 3]])
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0], [1.0, 1.0], [5.0, 0.0]])
    found = quality(codes, x, num_codes=4)
    assert found.collision_rate == 4 / 5
    assert found.path_similarity == pytest.approx(0.5)
    assert found.code_usage.tolist() == [0.5, 0.5]
    assert found.entropy[0].item() == pytest.approx(-0.4 * math.log(0.4) - 0.6 * math.log(0.6))
    assert math.isnan(found.reconstruction_error)
    assert quality(codes, x).code_usage.tolist() == [1.0, 0.5]


def test_quality_without_shared_paths_has_no_path_similarity() -> None:
    found = quality([[0, 0], [0, 1]], np.eye(2), num_codes=2)
    assert found.collision_rate == 0.0
    assert math.isnan(found.path_similarity)


def test_quality_refuses_what_does_not_match() -> None:
    with pytest.raises(ValueError, match=r"codes must be \[3, L\]"):
        quality([[0], [1]], np.eye(3))
    with pytest.raises(ValueError, match=r"code 4 of row 1, level 0 is outside \[0, 4\)"):
        quality([[0], [4]], np.eye(2), num_codes=4)
    with pytest.raises(ValueError, match="x_hat must have 2 rows"):
        quality([[0], [1]], np.eye(2), x_hat=np.ones((3, 2)))
