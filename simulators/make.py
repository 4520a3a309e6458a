"""Make a world: `python -m simulators.make small --seed 0 --out DIR`."""

import hashlib
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import tyro

from gpr_rl.dials import with_dials
from simulators.building import Draft, build_world, read_world
from simulators.progress import Progress, WorldArgs, run_command, silent, to_stderr
from simulators.rankers.network import RankerConfig
from simulators.rankers.training import RankerTraining
from simulators.synthetic.behavior import NUM_HOURS, NUM_POSITIONS, NUM_SCENES, make_truth
from simulators.synthetic.cascade import make_cascade, market_bids, price_level
from simulators.synthetic.catalog import (
    NUM_DEVICES,
    NUM_REGIONS,
    context_targeting,
    make_catalog,
)
from simulators.synthetic.config import GATED, PRESETS, WorldConfig, named_config
from simulators.synthetic.logs import simulate_logs
from simulators.synthetic.users import NUM_ACTIVITY_GROUPS, make_interests, make_users
from simulators.synthetic.worth import NotPersonalError
from simulators.world.info import FORMAT_VERSION, WorldInfo
from simulators.world.tables import NUM_AGE_BUCKETS
from simulators.world.world import World, age_bucket

_LOADED: dict[Path, World] = {}
_MAX_LOADED = 3
"""Worlds kept by one process; a run over many seeds would otherwise hold them all."""


def make_world(
    config: WorldConfig,
    seed: int,
    directory: str | Path,
    progress: Progress = silent,
    *,
    allow_constant: bool = True,
) -> World:
    """Make a synthetic world in `directory`, which must not exist yet.

    The same config and seed give the same files. `progress` is called with one line per stage.

    Raises:
        ValueError: The directory exists.
        NotPersonalError: Without `allow_constant`: one list of ads serves everybody.
    """
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(6)]
    progress(f"catalogue and users of world {config.name!r}, seed {seed}")
    catalog = make_catalog(config, streams[0])
    context = context_targeting(
        config, np.random.default_rng(np.random.SeedSequence(seed).spawn(8)[7])
    )
    catalog = replace(catalog, ads=pd.concat([catalog.ads, context], axis=1))
    users = make_users(config, streams[1])
    users["age_bucket"] = age_bucket(users["age"])
    affinity = make_interests(config, catalog.vertical_of_category, streams[2])
    truth = make_truth(config, catalog, affinity, streams[3])
    errors = np.random.SeedSequence(seed).spawn(7)[6]
    cascade = make_cascade(config, truth, catalog.ads, np.random.default_rng(errors))
    catalog.ads["bid"] = market_bids(config, truth, cascade, catalog.ads, streams[4])
    cascade = make_cascade(config, truth, catalog.ads, np.random.default_rng(errors))
    progress("logged traffic")
    events = simulate_logs(config, users, catalog, truth, cascade, streams[5])
    catalog.ads["bid"] *= price_level(config, catalog.ads, events)
    cascade = make_cascade(config, truth, catalog.ads, np.random.default_rng(errors))
    draft = Draft(
        info=synthetic_info(config, seed),
        users=users,
        ads=catalog.ads,
        organic=catalog.organic,
        events=events,
        item_embedding=np.concatenate([catalog.ad_embedding, catalog.organic_embedding]),
        hidden={"truth": truth.tensors(), "cascade": cascade.tensors()},
        training=RankerTraining(num_epochs=config.ranker_epochs),
        must_be_personal=not allow_constant,
        tokenizer=config.tokenizer,
        resolve=config.resolve,
    )
    return build_world(Path(directory), draft, progress)


def synthetic_info(config: WorldConfig, seed: int) -> WorldInfo:
    """Return the head of a synthetic world's `world.json`."""
    context = (NUM_SCENES, NUM_POSITIONS, NUM_HOURS, NUM_DEVICES)
    user = (NUM_AGE_BUCKETS, 2, NUM_REGIONS, NUM_DEVICES, NUM_ACTIVITY_GROUPS)
    strong = config.rankers == "strong"
    rankers = RankerConfig(
        user_cardinalities=user,
        context_cardinalities=context,
        num_items=config.num_ads + config.num_organic,
        embedding_dim=config.embedding_dim,
        num_groups=config.num_verticals + config.num_categories + config.num_advertisers,
        use_counts=strong,
        use_history=strong,
    )
    return WorldInfo(
        name=config.name,
        seed=seed,
        source="synthetic",
        config=asdict(config),
        num_codes=config.num_codes,
        num_levels=config.num_levels,
        num_log_days=config.num_log_days,
        num_train_days=min(4, config.num_log_days),
        num_days=config.num_days,
        has_clicks=True,
        has_truth=True,
        context_cardinalities=context,
        user_cardinalities=user,
        ranker_config=asdict(rankers),
        simulated=("users", "ads", "behaviour", "bids", "budgets"),
        impression_share=0.2,
        max_tokens=48,
    )


def cache_folder() -> Path:
    """Return `$GPR_RL_CACHE`, or the user's cache folder."""
    named = os.environ.get("GPR_RL_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gpr_rl"


def cached_directory(name: str, seed: int) -> Path:
    """Return where a named world is cached; other dials or another format have another place."""
    config = named_config(name)
    dials = name if config is None else json.dumps(asdict(config), sort_keys=True)
    digest = hashlib.sha256(f"{FORMAT_VERSION} {dials}".encode()).hexdigest()[:8]
    return cache_folder() / f"{name}-seed{seed}-{digest}"


def load_world(world: str | Path | World, seed: int = 0, progress: Progress = to_stderr) -> World:
    """Return a world by name, by directory, or as it is.

    A named world is made on first use, with progress lines, and cached under `cache_folder()`.
    A world is read once per process and shared; treat it as read-only. Names are `tiny`, `small`,
    `medium`, `constant`, `standard`, `weak` and `journey`; the seed is of a named world, and
    `progress` gets a line per stage of making it.

    Raises:
        ValueError: Neither a known name nor a directory with a world.
    """
    if isinstance(world, World):
        return world
    if not isinstance(world, str | Path):
        raise ValueError(f"world must be a name, a directory or a World, got {world!r}")
    named = str(world) in world_names() or named_config(str(world)) is not None
    directory = (cached_directory(str(world), seed) if named else Path(world)).absolute()
    if directory not in _LOADED:
        if named and not directory.exists():
            started = time.monotonic()
            progress(f"making world {str(world)!r} (seed {seed}), once; cached in {directory}")
            try:
                make_named(str(world), seed, directory, progress)
            except (ValueError, OSError):
                if not directory.exists():  # else another process was faster
                    raise
            progress(f"world {str(world)!r} made in {time.monotonic() - started:.0f} s")
        elif not directory.exists():
            raise ValueError(
                f"unknown world {str(world)!r}: neither one of {', '.join(world_names())} "
                "nor a directory"
            )
        while len(_LOADED) >= _MAX_LOADED:
            del _LOADED[next(iter(_LOADED))]  # the one loaded first
        _LOADED[directory] = read_world(directory)
    return _LOADED[directory]


def world_names() -> tuple[str, ...]:
    """Return the names that `load_world` knows."""
    return (*PRESETS, "journey", "journey-smoke")


def make_named(
    name: str,
    seed: int,
    directory: Path,
    progress: Progress,
    dials: tuple[str, ...] = (),
    allow_constant: bool = False,
) -> World:
    """Make a world by name in `directory`; `dials` and `allow_constant` as in `MakeArgs`.

    Raises:
        ValueError: An unknown name or dial, dials for a world that is not synthetic, or a world of
            `GATED` that pays for one list of ads for everybody.
    """
    config = named_config(name)
    if config is not None:
        free = allow_constant or bool(dials) or name not in GATED
        made = with_dials(config, dials)
        try:
            return make_world(made, seed, directory, progress, allow_constant=free)
        except NotPersonalError as error:
            raise ValueError(
                f"world {name!r}, seed {seed}: {error}; `python -m simulators.make {name} "
                f"--seed {seed} --allow-constant --out DIR` makes it all the same"
            ) from error
    if dials:
        raise ValueError(f"--set changes synthetic worlds only, not {name!r}")
    if name not in world_names():
        raise ValueError(f"unknown world {name!r}: choose one of {', '.join(world_names())}")
    from simulators.journey import make_journey  # optional package

    return make_journey(name, seed, directory, progress)


@dataclass(frozen=True, kw_only=True)
class MakeArgs(WorldArgs):
    """Make a world and write it to a directory."""

    name: Annotated[str, tyro.conf.Positional]
    """tiny, small, medium, constant, standard, weak, journey or journey-smoke; `small-drift` and
    its like are the worlds of `simulators.markets`."""
    set: tuple[str, ...] = ()
    """Dials of a synthetic world, each `field=value`, for instance `drift=0.1`."""
    allow_constant: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Make `small` or `medium` even where one list of ads serves everybody."""


def main() -> int:
    """Run the command line; 2 on a user's mistake."""
    return run_command(
        MakeArgs,
        __doc__,
        lambda args: make_named(
            args.name, args.seed, args.out, to_stderr, args.set, args.allow_constant
        ),
        _report,
    )


def _report(world: World) -> str:
    if "regime" not in world.ranker_card:
        return ""
    regime = world.ranker_card["regime"]
    return (
        f"rankers' favourite reaches {regime['share']:.2f} of the way from the logging policy "
        f"to the best ad under the truth: {regime['regime']} regime"
    )


if __name__ == "__main__":
    sys.exit(main())
