"""Memory of the environments, and their scaling with the catalogue: in processes of their own.

A process that made other environments before has free memory to reuse, so every figure comes from
a fresh one.

Dims: B rows, N ads.
"""

import time
from functools import partial
from statistics import median

import torch

from benchmarks.environment.pieces import PIECES_BATCH, piece_seconds
from benchmarks.environment.play import PREPARED, make_environment, make_play, time_plays
from benchmarks.environment.presets import VECTOR, EnvironmentPreset
from benchmarks.environment.worlds import CatalogueSize, random_catalogue
from benchmarks.measure.memory import PeakMemory, free_bytes
from benchmarks.measure.timing import timed, torch_threads
from benchmarks.runs.results import Conditions
from benchmarks.worlds import open_world
from gpr_rl.decoding import CodeTrie

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
        loaded = open_world(world, world_seed)
    with PeakMemory() as of_making:
        env = make_environment(method, loaded, batch, day_requests)
    with PeakMemory() as of_run:
        play = make_play(method, env, loaded.spec.num_levels, seed=0)
        for _ in range(2):
            play()
    meters = {"world": of_world, "make": of_making, "run": of_run}
    return {stage: m.peak_mib for stage, m in meters.items() if m.peak_mib is not None}


def catalogue_figures(
    *, size: CatalogueSize, sizes: EnvironmentPreset, threads: int
) -> tuple[list[tuple[dict[str, float], Conditions]], list[tuple[int, str, float]]]:
    """Measure the vector environment on a random catalogue.

    Returns:
        Metrics with their conditions: `world_s` (tables, drawn and read), `requests_s` (which
        requests have an eligible ad) and `trie_s`; by batch `make_s`, `choice_s`,
        `fastest_choice_s` and `slowest_choice_s`; by part `part_ms` at B = `PIECES_BATCH`. And
        (batch, what, MiB): 0 and `world`, B and `run` (making and playing). B beyond the caps or
        the free memory have none.
    """
    torch.set_num_threads(1)
    seconds: dict[str, float] = {}
    mib: list[tuple[int, str, float | None]] = []
    with PeakMemory() as of_world:
        started = time.perf_counter()
        world = random_catalogue(size)
        seconds["world_s"] = time.perf_counter() - started
        seconds["requests_s"] = timed(lambda: world.request_ids("train"))()
    mib.append((0, "world", of_world.peak_mib))
    tree = partial(CodeTrie, world.codes, num_codes=size.num_codes, ad_value=world.ad_value)
    seconds["trie_s"] = timed(tree)()
    found: list[tuple[dict[str, float], Conditions]] = [(seconds, {})]
    for batch in sizes.batches:
        cells = batch * size.num_ads
        if cells > sizes.max_cells or cells * BYTES_PER_CELL > free_bytes():
            continue
        with PeakMemory() as of_run, torch_threads(threads):
            started = time.perf_counter()
            env = make_environment(VECTOR, world, batch, sizes.day_requests)
            make_s = time.perf_counter() - started
            play = make_play(VECTOR, env, world.spec.num_levels, seed=0)
            least = PREPARED if batch == 1 else 1
            timing = time_plays({VECTOR: play}, sizes, with_reset=True, least=least)[VECTOR]
        mib.append((batch, "run", of_run.peak_mib))
        rates = timing.choices_per_s
        of_batch = {
            "make_s": make_s,
            "choice_s": 1.0 / median(rates),
            "fastest_choice_s": 1.0 / max(rates),
            "slowest_choice_s": 1.0 / min(rates),
        }
        found.append((of_batch, {"batch": batch}))
        del env, play
    with torch_threads(threads):
        if PIECES_BATCH * size.num_ads <= sizes.max_cells:
            pieces = piece_seconds(world, PIECES_BATCH, seed=0)
            found += [({"part_ms": 1e3 * taken}, {"part": k}) for k, taken in pieces.items()]
    return found, [(batch, what, peak) for batch, what, peak in mib if peak is not None]
