"""Reading a world's directory, and the rankers' weights in it."""

import json
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor

from gpr_rl.schema import with_tuples
from simulators.rankers.frozen import FrozenRankers
from simulators.rankers.network import Calibration, RankerConfig, Rankers
from simulators.world import World
from simulators.world.info import FORMAT_VERSION, WorldError, WorldInfo

TABLES = ("users", "ads", "organic", "events")


def read_world(directory: str | Path) -> World:
    """Read a world that was made before.

    Raises:
        WorldError: The directory is no world, has another format, or a file is damaged; the
            message names the file.
    """
    directory = Path(directory)
    if not (directory / "world.json").exists():
        raise WorldError(f"{directory} is not a world: it has no world.json")
    meta = _read_json(directory / "world.json")
    if meta.get("format_version") != FORMAT_VERSION:
        raise WorldError(
            f"{directory / 'world.json'} has format {meta.get('format_version')}, "
            f"this version reads {FORMAT_VERSION}"
        )
    try:
        info = WorldInfo(**with_tuples(meta))
    except TypeError as error:
        raise WorldError(f"{directory / 'world.json'} is not of a world: {error}") from error
    frames = {name: _read_frame(directory / f"{name}.parquet") for name in TABLES}
    tensors = read_tensors(directory / "embeddings.safetensors")
    scores = read_tensors(directory / "scores.safetensors")
    stored = read_tensors(directory / "rankers.safetensors")
    card = _read_json(directory / "ranker_card.json")
    try:
        world = World(info, **frames, tensors=tensors, directory=directory)
        world.attach_rankers(restore_rankers(world, stored), scores, card)
    except (KeyError, RuntimeError, IndexError, ValueError) as error:
        raise WorldError(
            f"{directory} is not a whole world: {type(error).__name__} {error}"
        ) from error
    return world


def _read_json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WorldError(f"{path} can't be read: {error}") from error
    if not isinstance(found, dict):
        raise WorldError(f"{path} can't be read: it holds no JSON object")
    return found


def _read_frame(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except Exception as error:
        raise WorldError(f"{path} can't be read: {error}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file of a world.

    Raises:
        WorldError: It is missing or damaged; the message names it.
    """
    try:
        return load_file(path)
    except Exception as error:
        raise WorldError(f"{path} can't be read: {error}") from error


def build_rankers(world: World) -> Rankers:
    """Return untrained rankers of the world's shape."""
    price = torch.log(world.price)
    spread = price.std().clamp_min(1e-6) if len(price) > 1 else price.new_ones(())
    price = (price - price.mean()) / spread
    return Rankers(
        RankerConfig(**with_tuples(world.info.ranker_config)),
        world.item_embedding,
        world.group,
        price,
    )


def restore_rankers(world: World, tensors: dict[str, Tensor]) -> FrozenRankers:
    """Return frozen rankers from what `ranker_tensors` gave."""
    rankers = build_rankers(world)
    weights = {k[8:]: v for k, v in tensors.items() if k.startswith("rankers.")}
    rankers.load_state_dict(weights)
    calibration = Calibration(tensors["calibration.knots"], tensors["calibration.values"])
    info = world.info
    return FrozenRankers(rankers, calibration, info.has_clicks, info.has_conversions)


def ranker_tensors(frozen: FrozenRankers) -> dict[str, Tensor]:
    """Return the weights and calibration knots for safetensors."""
    out = {f"rankers.{k}": v.contiguous() for k, v in frozen.rankers.state_dict().items()}
    out["calibration.knots"] = frozen.calibration.knots.contiguous()
    out["calibration.values"] = frozen.calibration.values.contiguous()
    return out
