"""Reading a pickle that holds nothing but dicts, text and integers, without running what is in it.

A pickle is a program: `GLOBAL`, `REDUCE` and their like fetch any function and call it. Here every
fetch is refused before anything is called, and so are persistent ids; what is left can only build
plain values, whose types are checked afterwards.
"""

import pickle
from pathlib import Path

from simulators.imported.readers.errors import LogFormatError


class _Refused(Exception):
    """The pickle asks for more than plain values."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        raise _Refused(f"it asks for {module}.{name}")

    def persistent_load(self, pid: object) -> object:
        raise _Refused("it asks for an object outside of the file")


def read_plain_pickle(path: Path) -> dict:
    """Return the dict of a pickle file whose values are dicts, str and int only, at any depth.

    Raises:
        LogFormatError: The file is missing, damaged, or holds anything else; bool, None, float and
            lists are refused as well.
    """
    try:
        with path.open("rb") as file:
            found = _PlainUnpickler(file).load()
    except _Refused as error:
        raise LogFormatError(
            f"{path} is refused: {error}; only dicts, text and integers are read from a pickle"
        ) from error
    except Exception as error:
        raise LogFormatError(f"{path} can't be read as a pickle: {error!r}") from error
    if type(found) is not dict:
        raise LogFormatError(f"{path} must hold a dict, got {type(found).__name__}")
    _check_plain(found, path)
    return found


def _check_plain(root: dict, path: Path) -> None:
    """Check every key and value; a dict that is reached twice, or from itself, is checked once."""
    waiting, seen = [root], {id(root)}
    while waiting:
        table = waiting.pop()
        for cells in (table.keys(), table.values()):
            for wrong in set(map(type, cells)) - {dict, str, int}:
                raise LogFormatError(
                    f"{path} is refused: it holds {wrong.__name__}; only dicts, text and integers "
                    "are read from a pickle"
                )
        for value in table.values():
            if type(value) is dict and id(value) not in seen:
                seen.add(id(value))
                waiting.append(value)
