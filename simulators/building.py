"""Turns tables into a finished world (semantic IDs, trained and graded rankers, files), and back.

Synthetic worlds and imported logs both end here.

Dims: N ads, M organic items.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from gpr_rl.schema import with_tuples
from simulators.progress import Progress
from simulators.rankers.frozen import ranker_tensors, restore_rankers
from simulators.rankers.training import RankerLog, RankerTraining
from simulators.synthetic.worth import check_personal, measure_worth, regime_of
from simulators.world import World, WorldInfo, WorldParts
from simulators.world.info import FORMAT_VERSION, TABLES, WorldError, read_file
from simulators.world.item_codes import make_ids
from simulators.world.parts import SCORES


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A world before its items have semantic IDs and its rankers are trained."""

    info: WorldInfo
    """Head of `world.json`."""
    users: pd.DataFrame
    ads: pd.DataFrame
    organic: pd.DataFrame
    events: pd.DataFrame
    item_embedding: NDArray[np.float32]
    """[N + M, d]"""
    availability: Bool[Tensor, "G N"] | None = None
    hidden: Mapping[str, dict[str, Tensor]] = field(default_factory=dict)
    """Name to tensors: files that only the evaluator reads."""
    side_files: Mapping[str, Path] = field(default_factory=dict)
    """Further files by the name that they get; they are moved."""
    must_be_personal: bool = False
    """Whether a world is refused that pays for one list of ads for everybody."""
    training: RankerTraining = field(default_factory=RankerTraining)
    """How the rankers are fitted."""
    tokenizer: str = "rq_kmeans"
    """Of the semantic IDs, one of `gpr_rl.tokenizers.kinds.TOKENIZERS`."""
    resolve: str = "highest_value"
    """What a shared path stands for, see `gpr_rl.tokenizers.resolve_collisions`."""


def build_world(directory: Path, draft: Draft, progress: Progress) -> World:
    """Fit the tokenizer and the rankers, write everything, and return the world.

    Nothing is left at `directory` unless all of it is there: files are written beside it and
    renamed at the end. `progress` is called with one line per stage.
    """
    directory = Path(directory)
    if directory.exists():
        raise ValueError(f"{directory} exists already; a world is never overwritten")
    wrong = np.argwhere(~np.isfinite(draft.item_embedding))
    if len(wrong):
        row, column = wrong[0]
        raise ValueError(
            f"item_embedding must be finite, row {row} has {draft.item_embedding[row, column]} "
            f"in column {column}"
        )
    if not (draft.events["kind"] == 1).any():
        raise ValueError("the log has no impression: no ad was ever shown to anybody")
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        world = _write(draft, temporary, progress)
        _open_to_readers(temporary)
        temporary.rename(directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return world.replace(directory=directory)


def _write(draft: Draft, folder: Path, progress: Progress) -> World:
    """Return the world, with its files in an empty folder."""
    info = draft.info
    progress(f"semantic IDs of {len(draft.item_embedding):,} items")
    fitted, codes = make_ids(
        draft.item_embedding,
        draft.ads,
        draft.organic,
        tokenizer=draft.tokenizer,
        resolve=draft.resolve,
        num_levels=info.num_levels,
        num_codes=info.num_codes,
        seed=info.seed,
    )
    most = max(info.num_codes, int(codes.max()) + 1)  # levels differ, and a suffix counts on
    info = replace(info, num_levels=codes.shape[1], num_codes=most)
    fitted.save(folder / "tokenizer")
    tables: dict[str, Any] = {name: getattr(draft, name) for name in TABLES}
    parts = WorldParts(
        info=info,
        **tables,
        item_embedding=torch.from_numpy(draft.item_embedding),
        item_codes=codes,
        availability=draft.availability,
        directory=folder,
    )
    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet", index=False)
    tensors = {"item_embedding": parts.item_embedding, "item_codes": codes}
    if parts.availability is not None:
        tensors["availability"] = parts.availability
    for name, content in ({"embeddings": tensors} | dict(draft.hidden)).items():
        save_file(content, folder / f"{name}.safetensors")
    log = World(parts)
    progress(f"rankers on {log.num_requests:,} logged impressions")
    rows = RankerLog.of(log, draft.training)  # earlier days fit, the last ones calibrate
    frozen, logit = rows.fit(info.seed, rows.rows[: rows.num_fitted])
    world = rows.ranked(frozen, frozen.calibration(logit))
    if info.has_truth and len(world.request_ids("test")):
        worth = measure_worth(world)
        if draft.must_be_personal:
            check_personal(worth)
        regime = regime_of(worth)
        world = world.replace(ranker_card=world.ranker_card | {"regime": regime, "worth": worth})
        if regime["regime"] == "hacking":
            progress(
                "NOTE: reward-hacking regime: the ad that the rankers like best is truly worth "
                "less than what the logging policy shows"
            )
    scores = {name: score.contiguous() for name, score in world.logged.items()}
    save_file(ranker_tensors(frozen), folder / "rankers.safetensors")
    save_file(scores, folder / "scores.safetensors")
    (folder / "ranker_card.json").write_text(json.dumps(world.ranker_card, indent=2))
    (folder / "world.json").write_text(json.dumps(asdict(info), indent=2))
    for name, path in draft.side_files.items():
        shutil.move(path, folder / name)
    return world


def _open_to_readers(folder: Path) -> None:
    """Give a world the permissions that plain files would have; temporary ones are private."""
    mask = os.umask(0)
    os.umask(mask)
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


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
