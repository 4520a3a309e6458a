"""Memory of the environments, and their scaling with the catalogue: in processes of their own.

A process that made other environments before has free memory to reuse, so every figure comes from
a fresh one.

Dims: B rows, N ads.
"""

import time

import torch

from benchmarks.environment.pieces import PIECES_BATCH, piece_seconds
from benchmarks.environment.play import (
    PREPARED,
    make_environment,
    make_play,
    time_plays,
)
from benchmarks.environment.presets import VECTOR, EnvironmentPreset
from benchmarks.environment.worlds import CatalogueSize, random_catalogue
from benchmarks.measure.memory import PeakMemory, free_bytes
from benchmarks.measure.timing import torch_threads
from gpr_rl.decoding import CodeTrie
from simulators.make import load_world
from simulators.progress import silent

BYTES_PER_CELL = 12
"""Of B * N, what making requests takes for a moment; more than is free is not tried."""


def environment_memory(
    *, method: str, world: str, world_seed: int, batch: int, day_requests: int
) -> dict[str, float]:
    """Return the MiB that the world, the environment and its first episodes take, in that order.

    Empty where the system does not say.
    """
    torch.set_num_threads(1)
    with PeakMemory() as of_world:
        loaded = load_world(world, seed=world_seed, progress=silent)
    with PeakMemory() as of_making:
        env = make_environment(method, loaded, batch, day_requests)
    with PeakMemory() as of_run:
        play = make_play(method, env, loaded.spec.num_levels, seed=0)
        for _ in range(2):
            play()
    stages = {"world": of_world, "make": of_making, "run": of_run}
    peaks = {stage: meter.peak_mib for stage, meter in stages.items()}
    return {stage: peak for stage, peak in peaks.items() if peak is not None}


def catalogue_figures(
    *, size: CatalogueSize, sizes: EnvironmentPreset, threads: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Measure the vector environment on a random catalogue.

    Returns:
        Seconds (`_s`) and milliseconds (`_ms`) by name: `world_s` (tables, drawn and read),
        `requests_s` (which requests have an eligible ad), `trie_s`, `pieces/..._ms` at
        B = `PIECES_BATCH`, and per B `batch{B}/make_s`, `batch{B}/choice_s` with its
        `fastest_choice_s` and `slowest_choice_s`; and MiB: `world`, `batch{B}/run` (making and
        playing). B beyond the caps or the free memory have none.
    """
    torch.set_num_threads(1)
    seconds: dict[str, float] = {}
    mib: dict[str, float | None] = {}
    with PeakMemory() as of_world:
        started = time.perf_counter()
        world = random_catalogue(size)
        seconds["world_s"] = time.perf_counter() - started
        started = time.perf_counter()
        world.request_ids("train")
        seconds["requests_s"] = time.perf_counter() - started
    mib["world"] = of_world.peak_mib
    started = time.perf_counter()
    CodeTrie(world.codes, num_codes=size.num_codes, ad_value=world.ad_value)
    seconds["trie_s"] = time.perf_counter() - started
    for batch in sizes.batches:
        cells = batch * size.num_ads
        if cells > sizes.max_cells or cells * BYTES_PER_CELL > free_bytes():
            continue
        with PeakMemory() as of_run, torch_threads(threads):
            started = time.perf_counter()
            env = make_environment(VECTOR, world, batch, sizes.day_requests)
            seconds[f"batch{batch}/make_s"] = time.perf_counter() - started
            play = make_play(VECTOR, env, world.spec.num_levels, seed=0)
            least = PREPARED if batch == 1 else 1
            rates = time_plays({VECTOR: play}, sizes, with_reset=True, least=least)[VECTOR]
        mib[f"batch{batch}/run"] = of_run.peak_mib
        seconds[f"batch{batch}/choice_s"] = 1.0 / rates.median
        seconds[f"batch{batch}/fastest_choice_s"] = 1.0 / max(rates.choices_per_s)
        seconds[f"batch{batch}/slowest_choice_s"] = 1.0 / min(rates.choices_per_s)
        del env, play
    with torch_threads(threads):
        if PIECES_BATCH * size.num_ads <= sizes.max_cells:
            pieces = piece_seconds(world, PIECES_BATCH, seed=0)
            seconds |= {f"pieces/{name}_ms": 1e3 * taken for name, taken in pieces.items()}
    return seconds, {name: value for name, value in mib.items() if value is not None}
