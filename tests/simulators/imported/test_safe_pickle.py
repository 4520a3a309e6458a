"""A pickle is read as plain values, or refused before anything in it runs."""

import collections
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from simulators.imported.readers.log import LogFormatError
from simulators.imported.readers.safe_pickle import read_plain_pickle

INDEXER = {
    "i": {"ad 1": 1, 7_000_000_000: 2},
    "u": {f"user {n}": n for n in range(3000)},
    "f": {"101": {"red": 1}, "102": {}},
}


def _write(path: Path, value: object, protocol: int | None = None) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


class _Runs:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_come_back(tmp_path: Path, protocol: int) -> None:
    assert read_plain_pickle(_write(tmp_path / "indexer.pkl", INDEXER, protocol)) == INDEXER


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_runs(tmp_path: Path, protocol: int) -> None:
    path = _write(tmp_path / "indexer.pkl", {"i": _Runs(tmp_path / "made")}, protocol)
    with pytest.raises(LogFormatError, match=r"indexer\.pkl is refused: it asks for .*mkdir"):
        read_plain_pickle(path)
    assert not (tmp_path / "made").exists()
    pickle.loads(path.read_bytes())  # the attack is real
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "value",
    [np.int64(1), np.zeros(2), collections.OrderedDict(a=1), Path("x"), {1, 2}, print],
    ids=lambda value: type(value).__name__,
)
def test_other_classes_are_refused(tmp_path: Path, value: object) -> None:
    # a set needs a class in protocol 2
    with pytest.raises(LogFormatError, match="is refused: it asks for"):
        read_plain_pickle(_write(tmp_path / "x.pkl", {"i": value}, 2))


@pytest.mark.parametrize(
    ("held", "name"),
    [
        ({"i": None}, "NoneType"),
        ({"i": True}, "bool"),
        ({"f": {"101": {1: 1.5}}}, "float"),
        ({"f": {"101": [1]}}, "list"),
        ({"f": {"101": (1,)}}, "tuple"),
        ({"i": {3}}, "set"),
        ({b"x": 1}, "bytes"),
        ({"i": {("a", 1): 1}}, "tuple"),
        ({None: 1}, "NoneType"),
    ],
)
def test_other_plain_types_are_refused(tmp_path: Path, held: dict, name: str) -> None:
    with pytest.raises(LogFormatError, match=f"is refused: it holds {name}; only dicts"):
        read_plain_pickle(_write(tmp_path / "x.pkl", held))


def test_persistent_ids_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(b"Pname\n.")
    with pytest.raises(LogFormatError, match="an object outside of the file"):
        read_plain_pickle(tmp_path / "x.pkl")


def test_a_dict_in_itself_ends(tmp_path: Path) -> None:
    loop: dict = {"a": 1}
    loop["self"] = loop
    found = read_plain_pickle(_write(tmp_path / "x.pkl", loop))
    assert found["self"] is found


def test_deep_dicts_need_no_recursion(tmp_path: Path) -> None:
    depth = 50_000
    (tmp_path / "x.pkl").write_bytes(
        b"\x80\x04" + b"}K\x00" * depth + b"K\x01s" + b"s" * (depth - 1) + b"."
    )
    found: object = read_plain_pickle(tmp_path / "x.pkl")
    levels = 0
    while isinstance(found, dict):
        found, levels = found.popitem()[1], levels + 1
    assert (levels, found) == (depth, 1)


@pytest.mark.parametrize("data", [b"", b"no pickle", pickle.dumps(INDEXER)[:-30]])
def test_a_damaged_file_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.pkl").write_bytes(data)
    with pytest.raises(LogFormatError, match=r"x\.pkl can't be read as a pickle"):
        read_plain_pickle(tmp_path / "x.pkl")


def test_it_must_be_a_dict(tmp_path: Path) -> None:
    with pytest.raises(LogFormatError, match="must hold a dict, got str"):
        read_plain_pickle(_write(tmp_path / "x.pkl", "text"))
    with pytest.raises(LogFormatError, match=r"none\.pkl can't be read"):
        read_plain_pickle(tmp_path / "none.pkl")
