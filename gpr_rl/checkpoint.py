"""Checkpoints: one safetensors file with JSON metadata in its header; nothing is ever unpickled.

A file appears under its name only when it is complete (`gpr_rl.files`).
"""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from gpr_rl.files import complete_file

_META_KEY = "gpr_rl"


class CheckpointError(ValueError):
    """A checkpoint that can't be read, with the file's name and the reason."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"can't read checkpoint {path}: {reason}")


def save_checkpoint(path: str | Path, tensors: dict[str, Tensor], meta: dict) -> None:
    """Write tensors of any dtype and JSON metadata, all or nothing.

    An older file of this name is replaced; its folder must exist. Tensors may share storage.

    Raises:
        TypeError: If `meta` holds what JSON can't.
        OSError: If the folder can't be written; nothing is left behind.
    """
    path = Path(path)
    header = {_META_KEY: json.dumps(meta, allow_nan=False, sort_keys=True)}
    # A copy of each: safetensors refuses tensors that share storage.
    owned = {name: x.detach().cpu().clone().contiguous() for name, x in tensors.items()}
    with complete_file(path) as temporary:
        save_file(owned, temporary, metadata=header)
        temporary.chmod(0o644)


def load_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """Return the tensors and the metadata that `save_checkpoint` wrote.

    Raises:
        CheckpointError: The file is missing, truncated or none of this project; it stays as it is.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(path, str(error) or type(error).__name__) from error
    if _META_KEY not in header:
        raise CheckpointError(path, f"it has no {_META_KEY!r} entry in its header")
    try:
        meta = json.loads(header[_META_KEY])
    except json.JSONDecodeError as error:
        raise CheckpointError(path, f"its metadata is not JSON: {error}") from error
    return tensors, meta


def below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, named by what follows it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def flatten_optimizer_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict]:
    """Return an optimizer's state as flat tensors and JSON metadata.

    Tensors are named "<parameter number>.<entry>", numbered over the parameter groups in order.
    """
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, object] = {}
    for number, entries in state["state"].items():
        for entry, value in entries.items():
            target = tensors if isinstance(value, Tensor) else scalars
            target[f"{number}.{entry}"] = value
    return tensors, {"groups": state["param_groups"], "scalars": scalars}


def restore_optimizer_state(optimizer: Optimizer, tensors: dict[str, Tensor], meta: dict) -> None:
    """Put back what `flatten_optimizer_state` returned; training then goes on bit for bit.

    Raises:
        ValueError: If the parameter groups or the shapes don't fit this optimizer.
    """
    shapes = [p.shape for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, object]] = {}
    for name, value in {**tensors, **meta["scalars"]}.items():
        number, entry = name.split(".", 1)
        if int(number) >= len(shapes):
            raise ValueError(f"optimizer state {name!r} has no parameter, of {len(shapes)}")
        shape = shapes[int(number)]
        if isinstance(value, Tensor):
            if value.dim() and value.shape != shape:
                raise ValueError(
                    f"optimizer state {name!r} has shape {list(value.shape)}, "
                    f"its parameter {list(shape)}"
                )
            value = value.clone()
        state.setdefault(int(number), {})[entry] = value
    groups = [
        {key: tuple(value) if key == "betas" else value for key, value in group.items()}
        for group in meta["groups"]
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
