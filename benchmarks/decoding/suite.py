"""How ads are found: speed and agreement with a peer, catalogues, widths, precision, load.

The methods are the parts of the suite. Every figure is measured alone: tasks run one after the
other whatever `--workers` says, with one thread. A seed is a round of measurements; all rounds
share one world and one trained policy, those of the first.
"""

from typing import Any

import pandas as pd

from benchmarks.decoding.policies import policy_file
from benchmarks.decoding.presets import (
    CATALOGUES,
    DECODERS,
    LOAD,
    METHODS,  # noqa: F401, what `load_suite` reads
    PEERS,
    PRECISION,
    PRESETS,  # noqa: F401
    WIDTHS,
    WITH_POLICY,
    CatalogueSize,
    DecodingPreset,
)
from benchmarks.decoding.report import make_report
from benchmarks.decoding.timings import observed_file, read_observed
from benchmarks.reports.blocks import SuiteReport
from benchmarks.runs.files import write_text
from benchmarks.runs.tasks import Task
from benchmarks.settings import Settings
from benchmarks.worlds import open_world, world_tasks
from simulators.world.info import WorldInfo

_FUNCTIONS = {
    PEERS: "peers:measure_peers",
    WIDTHS: "widths:measure_widths",
    DECODERS: "decoders:measure_decoders",
    PRECISION: "precision:measure_precision",
}
_COSTS = {PEERS: 6.0, WIDTHS: 3.0, DECODERS: 2.0, PRECISION: 2.0, LOAD: 5.0}


def make_tasks(settings: Settings[DecodingPreset]) -> list[Task]:
    """Return the tasks, each needing the one before: none may share the machine with another."""
    sizes, first = settings.sizes, settings.seeds[0]
    with_policy = any(part in WITH_POLICY for part in settings.methods)
    tasks = world_tasks(settings, [first], cost=5.0) if with_policy else []
    world = {"out": settings.out, "world": settings.world, "world_seed": first}
    on_world: dict[str, Any] = {**world, "reward": settings.reward}

    def add(name: str, function: str, cost: float, **kwargs: Any) -> None:
        needs = (tasks[-1].name,) if tasks else ()
        function = f"decoding.{function}"
        tasks.append(settings.task(name, function, needs=needs, cost=cost, **kwargs))

    def add_catalogue(size: CatalogueSize, seed: int, number: int) -> None:
        name, cost = f"{size.num_ads} ads, seed {seed}", 0.5 * (1 + number)
        file = observed_file(settings.out, f"{CATALOGUES}-{size.num_ads}-seed{seed}")
        own = {"size": size, "seed": seed, "sizes": sizes, "file": file, "files": (file,)}
        add(name, "catalogues:measure_catalogue", cost, **own)

    if with_policy:
        trained = {**on_world, "config": sizes.warm_start, "files": (policy_file(settings.out),)}
        add("policy", "policies:train_policy", 6.0, **trained)
    for seed in settings.seeds:
        for part in settings.methods:
            own = {"seed": seed, "sizes": sizes} | (on_world if part in WITH_POLICY else {})
            if part == CATALOGUES:
                extra = sizes.catalogues.first_round if seed == first else ()
                for number, size in enumerate((*sizes.catalogues.sizes, *extra)):
                    add_catalogue(size, seed, number)
            elif part == LOAD:
                file = observed_file(settings.out, f"{LOAD}-seed{seed}")
                own |= {"file": file, "files": (file,)}
                add(f"{part}, seed {seed}", "load:measure_load", _COSTS[part], **own)
            else:
                add(f"{part}, seed {seed}", _FUNCTIONS[part], _COSTS[part], **own)
    return tasks


def finish(settings: Settings[DecodingPreset], results: pd.DataFrame) -> SuiteReport:
    """Return the report of a finished run, and gather `observed.csv`."""
    observed = read_observed(settings.out)
    write_text(settings.out / "observed.csv", observed.to_csv(index=False))
    info: WorldInfo | None = None
    if any(part in WITH_POLICY for part in settings.methods):
        info = open_world(settings.world, settings.seeds[0]).info
    found = pd.concat([results, observed], ignore_index=True)
    return make_report(found, methods=settings.methods, info=info, sizes=settings.sizes)
