"""A catalogue in files that many processes map into memory: an `.npy` per array and a JSON."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gpr_rl.checkpoint import CheckpointError
from gpr_rl.decoding.tree import Tree
from gpr_rl.files import complete_folder

ABOUT = "trie.json"
FORMAT = 1
_NUMBERS = ("num_codes", "num_ads", "version", "dense_bytes")


def save_tree(tree: Tree, folder: Path) -> None:
    """Write a tree into a new folder, which appears when it is complete."""
    arrays = _arrays(tree)
    about = {name: getattr(tree, name) for name in _NUMBERS}
    about |= {"format": FORMAT, "num_levels": tree.num_levels, "arrays": {}}
    with complete_folder(folder) as temporary:
        for name, x in arrays.items():
            np.save(temporary / f"{name}.npy", x.cpu().numpy())
            about["arrays"][name] = [str(x.cpu().numpy().dtype), len(x)]
        (temporary / ABOUT).write_text(json.dumps(about, indent=1) + "\n")


def _arrays(tree: Tree) -> dict[str, Tensor]:
    named = {"ad_id": tree.ad_id, "edge": tree.edge, "value": tree.value, "active": tree.active}
    named |= {f"first{level}": x for level, x in enumerate(tree.first)}
    named |= {f"code{level}": x for level, x in enumerate(tree.code)}
    return {name: x for name, x in named.items() if x is not None}


def load_tree(folder: Path) -> Tree:
    """Return a tree whose arrays stay in the files, copied where they are written to.

    Raises:
        CheckpointError: A file is missing or damaged; names it.
    """
    path = folder / ABOUT
    try:
        about = json.loads(path.read_text())
        if about["format"] != FORMAT:
            raise ValueError(f"its format is {about['format']}, not {FORMAT}")
        numbers = {name: int(about[name]) for name in _NUMBERS}
        num_levels, described = int(about["num_levels"]), dict(about["arrays"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(path, f"{type(error).__name__}: {error}") from error
    arrays = {name: _mapped(folder / f"{name}.npy", *what) for name, what in described.items()}
    for name in ("ad_id", "edge", *(f"first{i}" for i in range(num_levels))):
        if name not in arrays:
            raise CheckpointError(path, f"it names no array {name}")
    tree = Tree(
        ad_id=arrays["ad_id"],
        edge=arrays["edge"],
        first=tuple(arrays[f"first{level}"] for level in range(num_levels)),
        code=tuple(arrays[f"code{level}"] for level in range(num_levels + 1)),
        value=arrays.get("value"),
        active=arrays.get("active"),
        **numbers,
    )
    _check_ends(tree, folder)
    return tree


def _mapped(path: Path, dtype: str, length: int) -> Tensor:
    try:
        array = np.load(path, mmap_mode="c")
    except (OSError, ValueError, EOFError) as error:
        raise CheckpointError(path, str(error) or type(error).__name__) from error
    if array.shape != (length,) or str(array.dtype) != dtype:
        raise CheckpointError(
            path, f"it holds {array.dtype} {list(array.shape)}, not {dtype} [{length}]"
        )
    return torch.from_numpy(array)


def _check_ends(tree: Tree, folder: Path) -> None:
    """Raise a CheckpointError where the arrays are not of one tree; reads their ends only."""
    sizes = [len(code) - 1 for code in tree.code]
    runs = [
        *zip(tree.first, sizes, sizes[1:], strict=False),
        (tree.edge, sizes[-1], len(tree.ad_id)),
    ]
    for number, (run, owners, members) in enumerate(runs):
        if len(run) != owners + 2 or int(run[-1]) != members or int(run[0]) or int(run[1]):
            name = "edge" if number == tree.num_levels else f"first{number}"
            raise CheckpointError(folder / f"{name}.npy", "it is of another tree")
