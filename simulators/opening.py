"""Opens the directory of a world that was made before."""

from pathlib import Path
from typing import Any

from gpr_rl.schema import with_tuples
from simulators.rankers.frozen import restore_rankers
from simulators.world import World, WorldParts
from simulators.world.info import FORMAT_VERSION, TABLES, WorldError, WorldInfo, read_file
from simulators.world.parts import SCORES


def read_world(directory: str | Path) -> World:
    """Read a world that was made before.

    Raises:
        WorldError: The directory is no world, has another format, or a file is damaged; the
            message names the file.
    """
    directory = Path(directory)
    if not (directory / "world.json").exists():
        raise WorldError(f"{directory} is not a world: it has no world.json")
    meta = read_file(directory / "world.json")
    if meta.get("format_version") != FORMAT_VERSION:
        raise WorldError(
            f"{directory / 'world.json'} has format {meta.get('format_version')}, "
            f"this version reads {FORMAT_VERSION}"
        )
    try:
        info = WorldInfo(**with_tuples(meta))
    except TypeError as error:
        raise WorldError(f"{directory / 'world.json'} is not of a world: {error}") from error
    frames = {name: read_file(directory / f"{name}.parquet") for name in TABLES}
    tensors = read_file(directory / "embeddings.safetensors")
    scores = read_file(directory / "scores.safetensors")
    missing = [name for name in SCORES if name not in scores]
    if missing:
        raise WorldError(f"{directory / 'scores.safetensors'} has no {', '.join(missing)}")
    stored = read_file(directory / "rankers.safetensors")
    card = read_file(directory / "ranker_card.json")
    try:
        tables: dict[str, Any] = frames | tensors
        log = World(WorldParts(info=info, **tables, directory=directory))
        rankers = restore_rankers(log, stored)
        world = log.replace(rankers=rankers, logged=scores, ranker_card=card)
        _ = world.trie  # damaged codes are found here
    except (KeyError, RuntimeError, IndexError, TypeError, ValueError) as error:
        raise WorldError(
            f"{directory} is not a whole world: {type(error).__name__} {error}"
        ) from error
    return world
