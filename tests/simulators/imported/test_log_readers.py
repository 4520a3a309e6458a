"""Tables are streamed with their line numbers; the package's own format is read as documented."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

import simulators.imported.formats  # noqa: F401  registers them
from simulators.imported.readers import tables
from simulators.imported.readers.checks import RowChecker
from simulators.imported.readers.columns import Kind
from simulators.imported.readers.log import (
    ACTIONS,
    ItemTable,
    LogFormatError,
    LogSource,
    open_log,
    register_format,
)
from simulators.imported.readers.tables import Table

ONLINE_RETAIL = Path(__file__).parents[4] / "shared" / "data" / "online_retail"
INTERACTIONS = "user_id,item_id,timestamp,action,price,quantity\n"
ITEMS = 'item_id,name,colour,shop_id,price\na,big cup,red,s1,2.5\nb,small pot,"",s1,""\n'


def _write(folder: Path, **files: str) -> Path:
    """Write `name` as `name.csv`."""
    for name, text in files.items():
        (folder / f"{name}.csv").write_text(text)
    return folder


def _read_tables(source: LogSource) -> None:
    source.items()
    source.users()


def _all_rows(source: LogSource) -> pd.DataFrame:
    return pd.concat([rows.frame for rows in source.rows()], ignore_index=True)


# --- tables ---------------------------------------------------------------------------------------


def test_lines_of_a_csv_are_physical_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_BLOCK_BYTES", 64)
    monkeypatch.setattr(tables, "PIECE_ROWS", 3)
    rows = [f"{n},x" for n in range(40)]
    rows[0] = rows[17] = rows[18] = "1,2,3"
    rows[25] = ""
    rows[39] = "5"
    (tmp_path / "t.csv").write_text("n,s\n" + "\n".join(rows) + "\n")
    pieces = list(Table(tmp_path / "t.csv").pieces({"n": "integer"}))
    assert max(len(piece.frame) for piece in pieces) == 3
    numbers = np.concatenate([piece.frame["n"] for piece in pieces])
    np.testing.assert_array_equal(np.concatenate([p.line for p in pieces]), numbers + 2)
    assert numbers.tolist() == [n for n in range(1, 39) if n not in (17, 18, 25)]
    assert [bad for piece in pieces for bad in piece.unreadable] == [
        (2, "3 cells, must be 2"),
        (19, "3 cells, must be 2"),
        (20, "3 cells, must be 2"),
        (41, "1 cells, must be 2"),
    ]


def test_rows_of_parquet_are_counted_in_each_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in (("b", 2), ("a", 5)):
        pq.write_table(pa.table({"n": range(size)}), tmp_path / f"{name}.parquet")
    monkeypatch.setattr(tables, "PIECE_ROWS", 3)
    pieces = list(Table(tmp_path).pieces({"n": "integer"}))
    assert [piece.file.name for piece in pieces] == ["a.parquet", "a.parquet", "b.parquet"]
    assert [piece.line.tolist() for piece in pieces] == [[1, 2, 3], [4, 5], [1, 2]]


def test_cells_that_do_not_fit_stay_text(tmp_path: Path) -> None:
    rows = ["i,x,t,f,e", "1,1.5,100,true,a", " 2,nan,2001-09-09T01:46:40Z,0,\xe9"]
    rows += ["two,?,noon,1,NULL", ",,,,b", ""]
    (tmp_path / "t.csv").write_bytes("\n".join(rows).encode("latin-1"))
    columns: dict[str, Kind] = {"i": "integer", "x": "number", "t": "time", "e": "text"}
    (piece,) = Table(tmp_path / "t.csv").pieces(columns)
    assert piece.frame["i"].tolist() == [1, 2, "two", None]
    assert piece.frame["x"].tolist()[::2] == [1.5, "?"]
    assert piece.frame["x"].isna().tolist() == [False, True, False, True]
    assert piece.frame["t"].tolist() == [100, 1_000_000_000, "noon", None]
    assert piece.frame["e"].fillna("-").tolist() == ["a", "\ufffd", "-", "b"]
    table = Table(tmp_path / "t.csv")
    assert table.read({"f": "flag"})["f"].tolist() == [True, False, True, None]
    with pytest.raises(LogFormatError, match=r"t\.csv:4: column 'x' must hold numbers, got '\?'"):
        table.read({"x": "number"})


def test_large_integers_keep_their_digits(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("i\n9007199254740993\nx\n99999999999999999999\n")
    (piece,) = Table(tmp_path / "t.csv").pieces({"i": "integer"})
    assert piece.frame["i"].tolist() == [9007199254740993, "x", "99999999999999999999"]
    pq.write_table(pa.table({"i": [9007199254740993, None]}), tmp_path / "t.parquet")
    (piece,) = Table(tmp_path / "t.parquet").pieces({"i": "id"})
    assert piece.frame["i"].tolist() == [9007199254740993, None]


def test_datetimes_become_seconds(tmp_path: Path) -> None:
    naive = pd.to_datetime(["2001-09-09 01:46:40.9", None])
    table = {"naive": naive, "zoned": naive.tz_localize("Europe/Paris")}
    pd.DataFrame(table).to_parquet(tmp_path / "t.parquet")
    frame = Table(tmp_path / "t.parquet").read({"naive": "time", "zoned": "time"})
    assert frame["naive"].tolist() == [1_000_000_000, None]
    assert frame["zoned"].tolist() == [1_000_000_000 - 7200, None]


@pytest.mark.parametrize(
    ("column", "kind", "message"),
    [
        ("y", "text", r"t\.parquet: column 'y' \(text\) is missing; the file has 'x', 'when'"),
        ("x", "integer", r"t\.parquet: column 'x' must hold integers, got double"),
        ("x", "id", r"t\.parquet: column 'x' must hold integers or text, got double"),
        ("when", "number", r"t\.parquet: column 'when' must hold numbers, got timestamp"),
        ("x", "text", r"t\.parquet: column 'x' must hold text, got double"),
    ],
)
def test_columns_are_checked_first(tmp_path: Path, column: str, kind: Kind, message: str):
    table = pd.DataFrame({"x": [1.0], "when": pd.to_datetime(["2020-01-01"])})
    table.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(LogFormatError, match=message):
        Table(tmp_path / "t.parquet").require({column: kind})


def test_every_file_of_a_folder_is_checked(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"m": [1]}), tmp_path / "b.parquet")
    with pytest.raises(LogFormatError, match=r"b\.parquet: column 'n'"):
        Table(tmp_path).require({"n": "integer"})


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "t.csv").write_bytes(b"")
    for name in ("t.parquet", "t.csv"):
        with pytest.raises(LogFormatError, match=f"{name} can't be read"):
            Table(tmp_path / name)
    with pytest.raises(LogFormatError, match=r"none\.csv is missing"):
        Table(tmp_path / "none.csv")


# --- the package's own format ---------------------------------------------------------------------


def test_csv_tables(tmp_path: Path) -> None:
    _write(
        tmp_path,
        interactions=INTERACTIONS
        + "07,a,100,Purchase,1.5,3\n7,b,2001-09-09 01:46:40,pv,,1\n7,b,300,exposure,,1\n",
        items=ITEMS,
        users="user_id,age,gender,plan\n07,33,f,\n7,,m,gold\n",
    )
    source = open_log(tmp_path, "generic")
    rows = _all_rows(source)
    assert rows["user_id"].tolist() == ["07", "7", "7"]
    assert rows["action"].tolist() == ["conversion", "view", "impression"]
    assert rows["timestamp"].tolist() == [100, 1_000_000_000, 300]
    assert "quantity" not in rows
    items = source.items()
    assert items.text is not None
    assert items.text.tolist() == ["big cup red", "small pot"]
    assert items.frame["price"].fillna(-1).tolist() == [2.5, -1]
    assert items.frame.columns.tolist() == ["item_id", "price", "name"]
    users = source.users()
    assert users["age"].fillna(-1).tolist() == [33, -1]
    assert users["plan"].isna().tolist() == [True, False]
    assert list(source.offers()) == []


def test_parquet_tables_with_everything(tmp_path: Path) -> None:
    pd.DataFrame(
        {
            "user_id": [1, 2],
            "item_id": [5, 6],
            "timestamp": [10.5, 20.0],
            "action": pd.Categorical(["click", "conversion"]),
            "value": [0.0, 3.0],
            "bid": [1, 2],
            "scene": [3, 4],
            "place": [1, 1],
        }
    ).to_parquet(tmp_path / "interactions.parquet")
    pd.DataFrame(
        {
            "item_id": [5, 6],
            "is_ad": [True, False],
            "vertical": ["v", None],
            "category": [7, 8],
            "bid_type": ["cpc", None],
            "emb_1": [1.0, 2.0],
            "emb_0": [3, 4],
        }
    ).to_parquet(tmp_path / "items.parquet")
    (tmp_path / "offers.csv").write_text("place,item_id\n1,5\n1,6\n")
    source = open_log(tmp_path, "generic")
    rows = _all_rows(source)
    assert rows["scene"].tolist() == ["3", "4"]
    assert rows["action"].tolist() == ["click", "conversion"]
    items = source.items()
    np.testing.assert_array_equal(items.embedding, np.float32([[3, 1], [4, 2]]))
    assert items.text is None
    assert items.frame["is_ad"].dtype == bool
    assert items.frame["category"].tolist() == ["7", "8"]
    assert items.frame["bid_type"].tolist()[0] == "CPC"
    (offers,) = source.offers()
    assert offers.values.tolist() == [[1, 5], [1, 6]]
    assert source.users().columns.tolist() == ["user_id"]


def _matrix(folder: Path, kind: str) -> None:
    matrix = np.arange(6, dtype=np.float16).reshape(2, 3)
    items = pd.DataFrame({"item_id": ["a", "b"]})
    if kind == "npy":
        np.save(folder / "embeddings.npy", matrix)
    elif kind == "safetensors":
        save_file({"any": matrix}, folder / "embeddings.safetensors")
    else:
        items["embedding"] = list(matrix.astype(np.float32))
    items.to_parquet(folder / "items.parquet")


@pytest.mark.parametrize("kind", ["npy", "safetensors", "list"])
def test_embeddings(tmp_path: Path, kind: str) -> None:
    _write(tmp_path, interactions=INTERACTIONS)
    _matrix(tmp_path, kind)
    embedding = open_log(tmp_path, "generic").items().embedding
    assert embedding is not None
    assert embedding.dtype == np.float32
    np.testing.assert_array_equal(embedding, np.arange(6).reshape(2, 3))


def test_integers_in_parquet_and_text_in_csv_agree(tmp_path: Path) -> None:
    pd.DataFrame({"user_id": [1], "item_id": [5], "timestamp": [1], "action": ["view"]}).to_parquet(
        tmp_path / "interactions.parquet"
    )
    _write(tmp_path, items="item_id,name\n5,cup\n", users="user_id,age\n1,3\n")
    source = open_log(tmp_path, "generic")
    assert source.items().frame["item_id"].tolist() == [5]
    assert source.users()["user_id"].tolist() == [1]
    _write(tmp_path, items="item_id,name\nE5,cup\n")
    with pytest.raises(LogFormatError, match=r"items\.csv:2: .*'item_id' must hold integers.*'E5'"):
        open_log(tmp_path, "generic").items()


def test_text_in_the_log_and_integers_in_the_items_agree(tmp_path: Path) -> None:
    _write(tmp_path, interactions=INTERACTIONS + "1,5,5,buy,1,1\n")
    pd.DataFrame({"item_id": [5], "name": ["cup"]}).to_parquet(tmp_path / "items.parquet")
    source = open_log(tmp_path, "generic")
    assert source.items().frame["item_id"].tolist() == _all_rows(source)["item_id"].tolist()


def test_compressed_csv(tmp_path: Path) -> None:
    _write(tmp_path, items=ITEMS)
    with gzip.open(tmp_path / "interactions.csv.gz", "wt") as file:
        file.write(INTERACTIONS + "1,a,5,buy,1,1\n")
    assert _all_rows(open_log(tmp_path, "generic"))["timestamp"].tolist() == [5]


def test_milliseconds_are_pointed_out(tmp_path: Path) -> None:
    _write(tmp_path, items=ITEMS, interactions=INTERACTIONS + "1,a,1500000000000,buy,1,1\n")
    checker = RowChecker(["a", "b"], tmp_path / "rejected.parquet")
    for rows in open_log(tmp_path, "generic").rows():
        checker.check(rows)
    with pytest.raises(LogFormatError, match=r"interactions\.csv:2: .*perhaps milliseconds"):
        checker.finish()


GOOD = {"interactions": INTERACTIONS + "1,a,5,buy,1,1\n", "items": ITEMS}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"interactions": None}, r"interactions\.parquet, \.csv or \.csv\.gz is missing"),
        ({"items": None}, r"items\.parquet, \.csv or \.csv\.gz is missing"),
        (
            {"interactions": "user_id,item_id,time,action\n1,a,5,buy\n"},
            r"interactions\.csv: column 'timestamp' \(seconds or a datetime\) is missing; "
            r"the file has 'user_id', 'item_id', 'time', 'action'",
        ),
        ({"items": "id,name\na,cup\n"}, r"items\.csv: column 'item_id' .* is missing"),
        ({"items": "item_id,price\na,1\n"}, r"items\.csv: nothing says what an item is"),
        ({"items": "item_id,name\na,x\na,y\n"}, "item_id must be unique, 'a' occurs twice"),
        ({"items": "item_id,name\n,x\na,y\n"}, "item_id of row 1 is missing"),
        ({"items": "item_id,name\na,x,y\n"}, r"items\.csv:2: 3 cells, must be 2"),
        ({"items": "item_id,name,price\na,x,-1\n"}, "price must be at least 0 and finite, got -1"),
        ({"items": "item_id,name,price\na,x,much\n"}, r"items\.csv:2: column 'price' .*'much'"),
        ({"items": "item_id,name,bid_type\na,x,cpa\n"}, "bid_type must be one of .* got 'CPA'"),
        ({"items": "item_id,name,is_ad\na,x,maybe\n"}, "'is_ad' must hold true or false, got"),
        ({"items": "item_id,emb_0,emb_2\na,1,2\n"}, "numbered from 0 without gaps, got emb_0"),
        ({"users": "user_id,age\n1,3\n1,4\n"}, r"users\.csv: column 'user_id' must be unique"),
        ({"offers": "place,item_id\n1,a\n"}, r"interactions\.csv: column 'place' is missing, wh"),
    ],
)
def test_broken_folders(tmp_path: Path, files: dict[str, str | None], message: str) -> None:
    merged = {name: text for name, text in (GOOD | files).items() if text is not None}
    _write(tmp_path, **merged)
    with pytest.raises(LogFormatError, match=message):
        _read_tables(open_log(tmp_path, "generic"))


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.zeros((3, 2), np.float32), r"a row for each of 2 items, got shape \(3, 2\)"),
        (np.float32([[1, 2], [np.nan, 0]]), "the embedding of row 2 is not finite"),
        (np.zeros(2, np.float32), r"embeddings\.npy must hold a matrix of floats, got float32"),
        (np.zeros((2, 2), np.int64), r"embeddings\.npy must hold a matrix of floats, got int64"),
        (np.array([[{}], [{}]]), r"embeddings\.npy can't be read"),
    ],
)
def test_broken_matrices(tmp_path: Path, matrix: np.ndarray, message: str) -> None:
    _write(tmp_path, **GOOD)
    np.save(tmp_path / "embeddings.npy", matrix)
    with pytest.raises(LogFormatError, match=message):
        open_log(tmp_path, "generic").items()


def test_two_of_a_kind_are_an_error(tmp_path: Path) -> None:
    _write(tmp_path, **GOOD)
    np.save(tmp_path / "embeddings.npy", np.zeros((2, 2), np.float32))
    _write(tmp_path, items="item_id,emb_0\na,1\nb,2\n")
    with pytest.raises(
        LogFormatError, match=r"two embeddings, embeddings\.npy and columns 'emb_0'"
    ):
        open_log(tmp_path, "generic").items()
    (tmp_path / "items.csv.gz").touch()
    with pytest.raises(LogFormatError, match=r"which one of items\.csv and items\.csv\.gz to read"):
        open_log(tmp_path, "generic")


def test_lists_of_unequal_length(tmp_path: Path) -> None:
    _write(tmp_path, interactions=INTERACTIONS)
    items = pd.DataFrame({"item_id": ["a", "b"], "embedding": [[1.0, 2.0], [3.0]]})
    items.to_parquet(tmp_path / "items.parquet")
    with pytest.raises(LogFormatError, match="of one length, got 2 in row 1 and 1 in row 2"):
        open_log(tmp_path, "generic").items()


@pytest.mark.skipif(not ONLINE_RETAIL.exists(), reason="needs the Online Retail data")
def test_online_retail(tmp_path: Path) -> None:
    source = open_log(ONLINE_RETAIL, "generic")
    items = source.items()
    assert items.embedding is not None
    assert items.embedding.shape == (3665, 64)
    checker = RowChecker(items.frame["item_id"], tmp_path / "rejected.parquet")
    good = pd.concat([checker.check(rows) for rows in source.rows()])
    counts = checker.finish()
    raw = pd.read_parquet(ONLINE_RETAIL / "interactions.parquet")
    assert len(good) == len(raw.drop_duplicates(["user_id", "item_id", "timestamp", "action"]))
    assert (counts.num_rows, counts.num_bad) == (len(raw), 0)
    assert (good["action"] == ACTIONS.index("conversion")).all()


# --- the interface --------------------------------------------------------------------------------


def test_formats_are_known_by_name() -> None:
    names = "amazon_reviews, generic, ipinyou, journey, kuairand, movielens, taobao_ad, tencentgr"
    with pytest.raises(LogFormatError, match=f"unknown format 'csv': choose one of {names}$"):
        open_log("x", "csv")
    with pytest.raises(ValueError, match="format 'generic' is registered already"):
        register_format("generic")(lambda path: open_log(path, "generic"))


def test_an_item_is_an_embedding_or_text() -> None:
    frame = pd.DataFrame({"item_id": [1]})
    with pytest.raises(LogFormatError, match="exactly one of an embedding and text"):
        ItemTable(frame=frame)
    with pytest.raises(LogFormatError, match="exactly one of an embedding and text"):
        ItemTable(frame=frame, embedding=np.zeros((1, 2), np.float32), text=pd.Series(["x"]))
