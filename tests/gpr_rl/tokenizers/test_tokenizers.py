"""What all four tokenizers promise."""

import json
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from gpr_rl.tokenizers import RQVAE, UASID, RQKMeans, RQKMeansPlus, Tokenizer, quality
from gpr_rl.tokenizers.files import load_matrix
from gpr_rl.tokenizers.fitting.autoencoder import train
from gpr_rl.tokenizers.fitting.search import nearest
from gpr_rl.tokenizers.kinds import TOKENIZERS, open_tokenizer
from gpr_rl.tokenizers.streaming import encode_file
from tests.gpr_rl.tokenizers.tokenizer_data import clusters

SIZES: dict[str, dict[str, Any]] = {
    "rq_kmeans": {},
    "rq_vae": {"num_epochs": 60, "batch_size": 128, "learning_rate": 3e-3},
    "rq_kmeans_plus": {"num_epochs": 4, "batch_size": 128},
    "ua_sid": {},
}


def fresh(method: str, seed: int = 0, num_codes: Any = (16, 8, 4)) -> Any:
    return TOKENIZERS[method](3, num_codes, seed, **SIZES[method])


@pytest.fixture(scope="module", params=list(TOKENIZERS))
def fitted(request: pytest.FixtureRequest) -> Any:
    return fresh(request.param).fit(clusters(600))


def test_codes_and_embeddings_have_the_promised_shapes(fitted: Tokenizer) -> None:
    x = clusters(600)[:50]
    codes = fitted.encode(x)
    assert codes.dtype == torch.int64
    assert codes.shape == (50, 3)
    assert (codes >= 0).all()
    assert (codes < torch.tensor(fitted.num_codes)).all()
    decoded = fitted.decode(codes)
    assert decoded.dtype == torch.float32
    assert decoded.shape == (50, 8)
    assert fitted.encode(x[:0]).shape == (0, 3)
    # what is decoded has to be nearer than the mean of all
    error = quality(codes, x, fitted.num_codes, decoded).reconstruction_error
    assert error < 0.7 * np.square(x - x.mean(0)).sum(1).mean()


@settings(max_examples=15, deadline=None)
@given(rows=st.lists(st.integers(0, 1499), min_size=1, max_size=40), start=st.integers(0, 1490))
def test_a_rows_code_never_depends_on_the_other_rows(
    fitted: Tokenizer, rows: list[int], start: int
) -> None:
    x = clusters(1500, seed=2)
    whole = fitted.encode(x)
    assert torch.equal(fitted.encode(x[rows]), whole[rows])
    assert torch.equal(fitted.encode(x[start:]), whole[start:])


@pytest.mark.parametrize("method", TOKENIZERS)
def test_same_seed_same_bits_whatever_the_number_of_threads(method: str) -> None:
    x = clusters(300)
    state = torch.get_rng_state()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = fresh(method).fit(x)
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        one = fresh(method).fit(x)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone
    first, second = one._tensors(), two._tensors()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = fresh(method, seed=1).fit(x)
    assert not torch.equal(one.encode(x), other.encode(x))


def test_saved_and_loaded_is_the_same_tokenizer(fitted: Tokenizer, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    for loaded in (type(fitted).load(tmp_path), open_tokenizer(tmp_path)):
        assert type(loaded) is type(fitted)
        assert loaded.config == fitted.config
        x = clusters(30, seed=3)
        codes = fitted.encode(x)
        assert torch.equal(loaded.encode(x), codes)
        assert torch.equal(loaded.decode(codes), fitted.decode(codes))
    info = tmp_path / "tokenizer.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"kind": "Other"}))
    with pytest.raises(ValueError, match="holds a 'Other', which this version does not know"):
        open_tokenizer(tmp_path)


def test_says_what_is_wrong_with_the_input(fitted: Tokenizer) -> None:
    x = clusters(30)
    x[4, 0], x[7, 2] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"2 of 30 rows hold NaN or infinity: rows 4, 7$"):
        fitted.encode(x)
    with pytest.raises(ValueError, match="must have the 8 columns of fit, got 9"):
        fitted.encode(clusters(30, width=9))
    with pytest.raises(ValueError, match=r"code 8 of row 1, level 1 is outside \[0, 8\)"):
        fitted.decode(np.array([[0, 0, 0], [15, 8, 3]]))
    with pytest.raises(ValueError, match="call fit or load first"):
        type(fitted)().encode(clusters())
    with pytest.raises(ValueError, match="call fit or load first"):
        type(fitted)().save("nowhere")


def test_reads_every_float_type_and_file(fitted: Tokenizer, tmp_path: Path) -> None:
    half = clusters(50, seed=4).astype(np.float16)
    expected = fitted.encode(half.astype(np.float32))
    np.save(tmp_path / "x.npy", half)
    save_file({"x": half, "one_row": half[0]}, tmp_path / "x.safetensors")
    lists = pa.array(list(half.astype(np.float32)))
    pq.write_table(pa.table({"id": range(50), "e": lists}), tmp_path / "x.parquet")
    columns = {f"e{i}": half[:, i].astype(np.float64) for i in range(8)}
    pq.write_table(pa.table({"id": range(50), **columns}), tmp_path / "columns.parquet")
    files = ("x.npy", "x.safetensors", "x.parquet", "columns.parquet")
    arrays = (
        half,
        half.astype(np.float64),
        torch.from_numpy(half),
        torch.from_numpy(half).double(),
    )
    for x in (*arrays, *(tmp_path / name for name in files), str(tmp_path / "x.npy")):
        assert torch.equal(fitted.encode(x), expected)


def test_refuses_files_with_a_message_that_names_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x\.txt: embeddings are read from \.npy"):
        load_matrix(tmp_path / "x.txt")
    with pytest.raises(ValueError, match=r"x\.npy: no such file"):
        load_matrix(tmp_path / "x.npy")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"objects\.npy can't be read: .*objects"):
        load_matrix(tmp_path / "objects.npy")
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"x\.parquet can't be read"):
        load_matrix(tmp_path / "x.parquet")
    save_file({"a": np.eye(2), "b": np.eye(2)}, tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match=r"name one of its matrices \['a', 'b'\]"):
        load_matrix(tmp_path / "two.safetensors")
    assert load_matrix(tmp_path / "two.safetensors", "b").shape == (2, 2)
    pq.write_table(pa.table({"e": [[1.0, 2.0], [1.0]]}), tmp_path / "ragged.parquet")
    with pytest.raises(ValueError, match="lists of different lengths"):
        load_matrix(tmp_path / "ragged.parquet")
    pq.write_table(pa.table({"e": [[1.0], None]}), tmp_path / "null.parquet")
    with pytest.raises(ValueError, match="column 'e' holds nulls"):
        load_matrix(tmp_path / "null.parquet")
    pq.write_table(pa.table({"id": [1, 2]}), tmp_path / "none.parquet")
    with pytest.raises(ValueError, match="neither a column of float lists nor float columns"):
        load_matrix(tmp_path / "none.parquet")


def test_encodes_files_in_pieces(
    fitted: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpr_rl.tokenizers.streaming.BATCH_ROWS", 64)
    x = clusters(200, seed=5)
    np.save(tmp_path / "x.npy", x)
    pq.write_table(pa.table({"e": list(x)}), tmp_path / "x.parquet")
    done: list[int] = []
    for name in ("x.npy", "x.parquet"):
        out = tmp_path / "codes.parquet"
        assert encode_file(fitted, tmp_path / name, out, progress=done.append) == 200
        table = pq.read_table(out)
        assert table.column_names == ["code_1", "code_2", "code_3"]
        assert np.array_equal(table.to_pandas().to_numpy(), fitted.encode(x).numpy())
    assert done == [64, 128, 192, 200] * 2
    x[130, 0] = np.nan
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(ValueError, match=r"from row 128 on: 1 of 64 rows hold NaN .* rows 2$"):
        encode_file(fitted, tmp_path / "x.npy", tmp_path / "other.parquet")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["codes.parquet", "x.npy", "x.parquet"]


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_nearest_agrees_with_brute_force_in_float64(offset: bool, shift: float) -> None:
    rng = np.random.default_rng(0)
    rows = torch.from_numpy((rng.standard_normal((3000, 16)) + shift).astype(np.float32))
    centroids = torch.from_numpy((rng.standard_normal((40, 16)) + shift).astype(np.float32))
    centroids[7] = centroids[3]  # a tie: the lower code
    price = torch.from_numpy(rng.random(40).astype(np.float32)) * 5 if offset else None
    if price is not None:
        price[7] = price[3]
    score = (rows[:, None].double() - centroids.double()).square().sum(-1)
    if price is not None:
        score = score + price.double()
    found = nearest(rows, centroids, price)
    assert torch.equal(found, score.argmin(1))
    assert (found == 3).any()
    assert not (found == 7).any()


def test_nearest_multiplies_in_float32_whatever_the_user_allows() -> None:
    before = torch.get_float32_matmul_precision()
    rows, centroids = torch.from_numpy(clusters(500)), torch.from_numpy(clusters(64, seed=1))
    expected = nearest(rows, centroids)
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(nearest(rows, centroids), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_residual_kmeans_reconstructs_as_well_as_faiss() -> None:
    x = clusters(4000, width=24)
    ours = RQKMeans(3, 64, seed=0).fit(x)
    error = quality(ours.encode(x), x, 64, ours.decode(ours.encode(x))).reconstruction_error
    theirs = faiss.ResidualQuantizer(24, 3, 6)
    theirs.max_beam_size = 1
    theirs.train_type = faiss.ResidualQuantizer.Train_default
    theirs.train(x)
    decoded = theirs.decode(theirs.compute_codes(x))
    assert error <= 1.02 * np.square(x - decoded).sum(1).mean()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 37.0])
def test_without_training_kmeans_plus_is_kmeans(scale: float) -> None:
    x = clusters(700) * np.float32(scale)
    plain = RQKMeans(3, (16, 8, 4), seed=3).fit(x)
    plus = RQKMeansPlus(3, (16, 8, 4), seed=3, num_epochs=0).fit(x)
    other = clusters(900, seed=9) * np.float32(scale)
    assert torch.equal(plus.encode(other), plain.encode(other))
    codes = plain.encode(other)
    assert torch.equal(plus.decode(codes), plain.decode(codes))
    trained = RQKMeansPlus(3, (16, 8, 4), seed=3, num_epochs=3, learning_rate=1e-3).fit(x)
    assert not torch.equal(trained.decode(codes), plain.decode(codes))
    assert trained.losses[-1] < trained.losses[0]


def test_the_autoencoders_loss_is_the_one_of_the_paper() -> None:
    """Two rows, one level, identity networks: hand-worked.

    x = 1 and 4 with centroids 0 and 3: both residuals are 1, so |x - x_hat|^2 = 1, the codebook
    term 1 and the commitment term beta; the mean is 2 + beta. The decoder's gradient passes
    straight to the encoder: d/dz of |x - x_hat|^2 = 2 (x_hat - x) = -2 a row.
    """
    from gpr_rl.tokenizers.fitting.autoencoder import ResidualAutoencoder

    encoder = torch.nn.Linear(1, 1)
    with torch.no_grad():
        encoder.weight.fill_(1.0)
        encoder.bias.zero_()
    books = [torch.tensor([[0.0], [3.0]])]
    model = ResidualAutoencoder(encoder, torch.nn.Identity(), books, torch.ones(()))
    loss = model.loss(torch.tensor([[1.0], [4.0]]), commitment=0.25)
    assert loss.item() == pytest.approx(2.25)
    loss.backward()
    # codebook term: d/de (r - e)^2 = -2 a row, over two rows; commitment: +0.25 * 2 * 1 a row
    assert model.codebooks[0].grad.flatten().tolist() == pytest.approx([-1.0, -1.0])
    assert encoder.bias.grad.item() == pytest.approx(-2.0 + 0.5)


def test_an_epochs_loss_is_the_mean_over_its_rows() -> None:
    layer = torch.nn.Linear(1, 1)
    losses = train(
        layer,
        lambda rows: rows.float().mean() + 0.0 * layer.weight.sum(),
        lambda: torch.tensor([1, 3, 5]),  # batches of means 2 and 5: (2 * 2 + 1 * 5) / 3
        num_epochs=2,
        batch_size=2,
        learning_rate=0.1,
    )
    assert losses == [3.0, 3.0]


def test_a_diverging_loss_stops_with_the_epoch() -> None:
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) in epoch \d+: lower"):
        RQVAE(2, 8, learning_rate=1e30, num_epochs=30).fit(clusters(100))


def test_refuses_sizes_out_of_range() -> None:
    for wrong in ({"hidden_dim": 0}, {"num_epochs": -1}, {"commitment": -0.1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            RQVAE(**wrong)
    with pytest.raises(ValueError, match=r"learning_rate must be positive and finite, got 0\.0"):
        RQKMeansPlus(learning_rate=0.0)
    with pytest.raises(ValueError, match="num_levels must be at least 2"):
        UASID(1, 8)
    with pytest.raises(ValueError, match="an autoencoder needs at least one row"):
        RQVAE(2, 4).fit(np.empty((0, 3)))
