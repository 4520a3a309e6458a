"""How fast the environments are: code choices per second by interface, batch and catalogue.

Every figure is measured alone: tasks run one after the other whatever `--workers` says, with one
thread and with two. A seed is a round of measurements; all rounds share one world.
"""

from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from benchmarks.environment.memory import catalogue_figures, environment_memory
from benchmarks.environment.pieces import piece_seconds
from benchmarks.environment.play import PREPARED, Timing, make_environment, make_play, time_plays
from benchmarks.environment.presets import (
    DAYS,
    METHODS,  # noqa: F401, what `load_suite` reads
    PRESETS,  # noqa: F401
    SINGLES,
    SUITE,
    SYNC,
    TARGET_BATCH,
    VECTOR,
    EnvironmentPreset,
)
from benchmarks.environment.report import make_report
from benchmarks.environment.worlds import CatalogueSize, without_rankers
from benchmarks.measure.memory import in_fresh_process
from benchmarks.measure.timing import matrix_rate, torch_threads
from benchmarks.reports.blocks import SuiteReport
from benchmarks.runs.files import write_text
from benchmarks.runs.results import Conditions, tidy
from benchmarks.runs.tasks import PARTS, Task, log_progress
from benchmarks.settings import Settings
from benchmarks.worlds import open_world, world_tasks

MACHINE = "machine"
_MEMORY_COLUMNS = ["interface", "num_ads", "batch", "what", "mib"]


def batches_of(method: str, sizes: EnvironmentPreset) -> list[int]:
    """Return the B that an interface is measured at."""
    if method in SINGLES:
        return [1]
    caps = {SYNC: sizes.max_sync_batch, **dict.fromkeys(DAYS, sizes.max_day_batch)}
    return [batch for batch in sizes.batches if batch <= caps.get(method, batch)]


def _rows(method: str, seed: int, metrics: dict[str, float], **at: str | int) -> pd.DataFrame:
    return tidy(SUITE, method, seed, metrics, step=0, split="train", **at)


def _rates(timing: Timing, num_levels: int) -> dict[str, float]:
    middle = median(timing.choices_per_s)
    return {
        "choices_per_s": middle,
        "fastest_choices_per_s": max(timing.choices_per_s),
        "slowest_choices_per_s": min(timing.choices_per_s),
        "requests_per_s": middle / num_levels,
        "draw_s": timing.draw_s,
        "reset_s": timing.reset_s,
    }


def measure_machine(*, seed: int, sizes: EnvironmentPreset) -> pd.DataFrame:
    """Return the machine's matrix-product rate in GFLOP per second."""
    rows = []
    for number in sizes.threads:
        with torch_threads(number):
            rate = {"matrix_gflop_per_s": matrix_rate()}
        rows.append(_rows(MACHINE, seed, rate, threads=number))
    return pd.concat(rows)


def measure_method(
    *,
    world: str,
    world_seed: int,
    seed: int,
    method: str,
    reward: tuple[str, ...],
    sizes: EnvironmentPreset,
) -> pd.DataFrame:
    """Return how many code choices an interface makes per second.

    `SyncVectorEnv` is played in turn with the native vector environment, always with rankers; the
    quotient of the two is `native_over_sync_choices_per_s`.
    """
    loaded = open_world(world, world_seed)
    worlds = {"rankers": loaded}
    if method != SYNC:
        worlds["free"] = without_rankers(loaded)
    batches, levels = batches_of(method, sizes), loaded.spec.num_levels
    compared = (VECTOR, SYNC) if method == SYNC else (method,)
    rows = []
    for number, batch in enumerate(batches):
        log_progress(number, len(batches))
        least = PREPARED if batch == 1 and method not in DAYS else 1
        for mode, played in worlds.items():
            plays = {
                name: make_play(
                    name,
                    make_environment(name, played, batch, sizes.day_requests, reward),
                    levels,
                    seed,
                )
                for name in compared
            }
            for threads in sizes.threads:
                with torch_threads(threads):
                    found = time_plays(plays, sizes, with_reset=method not in DAYS, least=least)
                metrics = _rates(found[method], levels)
                if method == SYNC:
                    metrics |= _quotients(found[VECTOR], found[SYNC])
                at: Conditions = {"mode": mode, "threads": threads, "batch": batch}
                rows.append(_rows(method, seed, metrics, **at))
    return pd.concat(rows)


def _quotients(native: Timing, sync: Timing) -> dict[str, float]:
    rates = native.choices_per_s, sync.choices_per_s
    quotients = [ours / theirs for ours, theirs in zip(*rates, strict=True)]
    ours, theirs = map(median, rates)
    return {
        "native_choices_per_s": ours,
        "native_over_sync_choices_per_s": ours / theirs,
        "fastest_native_over_sync_choices_per_s": max(quotients),
        "slowest_native_over_sync_choices_per_s": min(quotients),
    }


def measure_pieces(
    *, world: str, world_seed: int, seed: int, sizes: EnvironmentPreset
) -> pd.DataFrame:
    """Return what the pieces of an episode of about 1,024 requests take."""
    loaded = open_world(world, world_seed)
    batch = max((b for b in sizes.batches if b <= TARGET_BATCH), default=min(sizes.batches))
    rows = []
    for threads in sizes.threads:
        with torch_threads(threads):
            found = piece_seconds(loaded, batch, seed)
        rows += [
            _rows(VECTOR, seed, {"part_ms": 1e3 * s}, part=part, threads=threads, batch=batch)
            for part, s in found.items()
        ]
    return pd.concat(rows)


def measure_memory(
    *, world: str, world_seed: int, methods: tuple[str, ...], sizes: EnvironmentPreset, file: Path
) -> None:
    """Write what the interfaces take, each in a process of its own."""
    found = []
    asked = [
        (method, batch)
        for method in methods
        for batch in batches_of(method, sizes)
        if method in SINGLES or batch in sizes.memory_batches
    ]
    for number, (method, batch) in enumerate(asked):
        log_progress(number, len(asked))
        stages = in_fresh_process(
            environment_memory,
            method=method,
            world=world,
            world_seed=world_seed,
            batch=batch,
            day_requests=sizes.day_requests,
        )
        found += [(method, -1, batch, stage, mib) for stage, mib in stages.items()]
    _write_memory(file, found)


def measure_catalogue(
    *, size: CatalogueSize, seed: int, sizes: EnvironmentPreset, file: Path
) -> pd.DataFrame:
    """Return how the vector environment does on a catalogue of this size; write its memory."""
    seconds, mib = in_fresh_process(
        catalogue_figures, size=size, sizes=sizes, threads=min(sizes.threads)
    )
    used = [(VECTOR, size.num_ads, batch, what, peak) for batch, what, peak in mib]
    _write_memory(file, used)
    rows = [_rows(VECTOR, seed, metrics, num_ads=size.num_ads, **at) for metrics, at in seconds]
    return pd.concat(rows)


def _write_memory(file: Path, rows: list[tuple[str, int, int, str, float]]) -> None:
    write_text(file, pd.DataFrame(rows, columns=_MEMORY_COLUMNS).to_csv(index=False))


def make_tasks(settings: Settings[EnvironmentPreset]) -> list[Task]:
    """Return the tasks, each needing the one before: none may share the machine with another."""
    sizes, first = settings.sizes, settings.seeds[0]
    tasks = world_tasks(settings, [first], cost=5.0)

    def add(name: str, function: str, cost: float, **kwargs: Any) -> None:
        needs = (tasks[-1].name,) if tasks else ()
        function = f"environment.suite:{function}"
        tasks.append(settings.task(name, function, needs=needs, cost=cost, sizes=sizes, **kwargs))

    at = {"world": settings.world, "world_seed": first}
    for seed in settings.seeds:
        add(f"{MACHINE}, seed {seed}", "measure_machine", 0.2, seed=seed)
        for method in settings.methods:
            cost, own = float(len(batches_of(method, sizes))), {"method": method, "seed": seed}
            reward = settings.reward
            add(f"{method}, seed {seed}", "measure_method", cost, reward=reward, **own, **at)
        if VECTOR in settings.methods:
            add(f"pieces, seed {seed}", "measure_pieces", 0.5, **at, seed=seed)
    folder = settings.out / PARTS
    for size in sizes.catalogues if VECTOR in settings.methods else ():
        file, name = folder / f"memory-{size.num_ads}.csv", f"{size.num_ads} ads"
        add(name, "measure_catalogue", 4.0, size=size, seed=first, files=(file,), file=file)
    measured = tuple(m for m in settings.methods if m in sizes.memory_methods)
    if measured:
        file, cost = folder / "memory.csv", 4.0 * len(measured)
        add("memory", "measure_memory", cost, **at, methods=measured, files=(file,), file=file)
    return tasks


def finish(settings: Settings[EnvironmentPreset], results: pd.DataFrame) -> SuiteReport:
    """Return the report of a finished run, and gather `memory.csv`."""
    files = sorted((settings.out / PARTS).glob("memory*.csv"))
    tables = [table for file in files if len(table := pd.read_csv(file))]
    memory = pd.concat(tables) if tables else pd.DataFrame(columns=_MEMORY_COLUMNS)
    write_text(settings.out / "memory.csv", memory.to_csv(index=False))
    info = open_world(settings.world, settings.seeds[0]).info
    methods, sizes = settings.methods, settings.sizes
    return make_report(results, memory, methods=methods, info=info, sizes=sizes)
