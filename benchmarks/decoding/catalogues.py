"""Catalogues of random paths: building, files, legal steps, whole searches, updates.

Every catalogue is measured in a process of its own, which has no free memory to use again. The
policy of a search costs nothing, so what grows is decoding.

Dims: B requests, W beams, N ads, L levels, V codes per level, S signatures.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pandas as pd
import torch
from torch import Tensor

from benchmarks.decoding.inputs import random_paths
from benchmarks.decoding.policies import TablePolicy
from benchmarks.decoding.presets import CATALOGUES, CatalogueSize, DecodingPreset
from benchmarks.decoding.timings import repeated, rows, spread, write_observed
from benchmarks.measure.memory import PeakMemory, free_bytes, in_fresh_process
from benchmarks.measure.timing import limited_seconds, timed
from benchmarks.runs.results import Conditions, empty_results
from gpr_rl.decoding import CodeTrie, LegalTrie, beam_search
from gpr_rl.decoding.beam import _top
from gpr_rl.decoding.options import options_of

ALL, MASKED, SIGNATURE = "all", "eligible", "signature"
MODES = {
    ALL: "all ads",
    MASKED: "a row of eligible ads per request",
    SIGNATURE: "cached signatures",
}
"""How requests say which ads they may show."""
BYTES_PER_AD = 110
"""What building takes for a moment, at most; larger catalogues than there is memory for are left
out."""
NUM_SETS = 16
"""Sets of prefixes that a step is timed with in turn, so that their nodes are not all cached."""
Found = list[tuple[dict[str, float], Conditions]]


def measure_catalogue(
    *, size: CatalogueSize, seed: int, sizes: DecodingPreset, file: Path
) -> pd.DataFrame:
    """Return the figures of one catalogue, and write its peak memory; nothing if it is too large.

    Peak memory is not the same in every run, so it has a file of its own.
    """
    found: Found = []
    if has_memory(size):
        found = in_fresh_process(catalogue_figures, size=size, seed=seed, sizes=sizes)
    at: Conditions = {"num_ads": size.num_ads}
    kept: list[pd.DataFrame] = [empty_results()]
    beside: list[pd.DataFrame] = []
    for metrics, conditions in found:
        table = beside if "peak_mib" in metrics else kept
        table.append(rows(CATALOGUES, seed, metrics, **at, **conditions))
    write_observed(file, beside)
    return pd.concat(kept)


def has_memory(size: CatalogueSize) -> bool:
    """Return whether there is memory to build a catalogue."""
    return size.num_ads * BYTES_PER_AD <= free_bytes()


def catalogue_figures(*, size: CatalogueSize, seed: int, sizes: DecodingPreset) -> Found:
    """Return the figures of a catalogue with what they were measured under."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    codes = random_paths(size.num_ads, size.num_codes, size.num_levels, generator)
    trie, found = _built(codes, size, sizes)
    found += _files(trie, sizes)
    bench = Bench(trie, sizes, seed, generator)
    for mode in MODES:
        if mode == MASKED and size.num_ads > sizes.catalogues.max_masked:
            continue
        found += bench.steps(mode)
        found += bench.searches(mode)
    found += bench.signatures()
    found += bench.updates()
    return found


def _built(codes: Tensor, size: CatalogueSize, sizes: DecodingPreset) -> tuple[CodeTrie, Found]:
    """Build, and again while there is time for repeats."""

    def build() -> CodeTrie:
        return CodeTrie(codes, size.num_codes)

    begun = time.perf_counter()
    with PeakMemory() as memory:
        trie = build()
    seconds = [time.perf_counter() - begun]
    while len(seconds) < sizes.num_repeats and sum(seconds) < sizes.limit_s:
        seconds.append(timed(build)())
    metrics = spread("build_s", seconds) | {"array_mib": trie.tree.num_bytes / 2**20}
    found: Found = [(metrics, {})]
    if memory.peak_mib is not None:
        found.append(({"peak_mib": memory.peak_mib}, {"part": "build"}))
    return trie, found


def _files(trie: CodeTrie, sizes: DecodingPreset) -> Found:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "catalogue"
        save_s = timed(lambda: trie.save(path))()
        load = {"load": timed(lambda: CodeTrie.load(path))}
        load_s = repeated(load, sizes)["load"]
    return [({"save_s": save_s} | spread("load_s", load_s), {})]


class Bench:
    """Steps and searches in one catalogue, for B requests of W beams."""

    def __init__(
        self, trie: CodeTrie, sizes: DecodingPreset, seed: int, generator: torch.Generator
    ) -> None:
        self.trie, self.sizes, self.asked = trie, sizes, sizes.catalogues
        self._generator = generator
        batch = self.asked.batch
        self.policy = TablePolicy(batch, trie.num_levels, trie.num_codes, seed)
        self.request = torch.arange(batch)
        kinds = self.asked.num_signatures
        self._may_show = torch.rand(kinds, trie.num_ads, generator=generator) < 0.5
        self._signature = self.request % kinds
        trie.signatures(self._may_show)

    def restriction(self, mode: str) -> dict[str, Tensor]:
        """Return what a search is given to know which ads it may show."""
        if mode == MASKED:
            return {"eligible": self._may_show[self._signature]}
        return {"signature": self._signature} if mode == SIGNATURE else {}

    def search(self, **restriction: Tensor) -> object:
        """Search for all requests."""
        trie, beams = self.trie, self.asked.num_beams
        return beam_search(self.policy, self.request, trie, beams, **restriction)  # type: ignore[arg-type]

    def steps(self, mode: str) -> Found:
        """Time the options and the best W of them at the last level, from random prefixes.

        `step_ms` is with what is kept for the requests; `prepare_ms` is making it, for all B:
        every search pays it for rows of eligible ads, and finds it made for signatures.
        """
        trie, asked = self.trie, self.asked
        level = trie.num_levels - 1
        shape = NUM_SETS, asked.batch, asked.num_beams
        num_nodes = len(trie.tree.first[level]) - 2
        nodes = 1 + torch.randint(num_nodes, shape, generator=self._generator, dtype=torch.int32)
        blank = torch.zeros(*shape[1:], level, dtype=torch.int64)
        log_prob, _ = self.policy.step(self.request, blank)
        given = self.restriction(mode)

        def prepared() -> LegalTrie:
            legal = trie.restrict(given.get("eligible"), given.get("signature"))
            legal.is_legal(trie.num_levels, nodes[0])  # rows of eligible ads make tables here
            return legal

        legal = prepared()

        def step() -> None:
            for node in nodes:
                options = options_of(legal, level, node, log_prob)
                _top(options.log_prob.flatten(1), asked.num_beams)

        seconds = repeated({"prepare": timed(prepared), "step": timed(step)}, self.sizes)
        each = [1e3 * taken / NUM_SETS for taken in seconds["step"]]
        metrics = spread("step_ms", each) | {"prepare_ms": 1e3 * median(seconds["prepare"])}
        return [(metrics, {"mode": mode})]

    def searches(self, mode: str) -> Found:
        """Time whole searches of B requests; ms are per request."""
        given = self.restriction(mode)
        taken = repeated({"search": timed(lambda: self.search(**given))}, self.sizes)["search"]
        each = [1e3 * seconds / self.asked.batch for seconds in taken]
        return [(spread("search_ms", each), {"mode": mode})]

    def signatures(self) -> Found:
        """Time what making a signature takes, of ads that are known."""
        kinds, numbers = self.asked.num_signatures, iter(range(1 << 62))
        self.trie.signatures(lambda number: self._may_show[number % kinds])

        def make() -> None:
            self.trie.restrict(signature=torch.tensor([next(numbers)]))

        taken = repeated({"make": timed(make)}, self.sizes)["make"]
        self.trie.signatures(self._may_show)
        return [(spread("signature_ms", [1e3 * seconds for seconds in taken]), {})]

    def updates(self) -> Found:
        """Time updates of a thousand ads, and the first search after one."""
        trie, number = self.trie, self.asked.num_updated
        added = _Updates(trie, number, self._generator)
        runs: dict[str, Callable[[], float]] = {
            "add": added.add,
            "retire": added.retire,
            "set_active": added.set_active,
            "search_after": timed(lambda: self.search(signature=self._signature)),
        }
        taken = limited_seconds(runs, self.sizes.num_repeats, self.sizes.limit_s)
        after = [1e3 * seconds / self.asked.batch for seconds in taken.pop("search_after")]
        found: Found = [(spread("search_after_ms", after), {"mode": SIGNATURE})]
        for name, seconds in taken.items():
            times = [1e3 * each for each in seconds]
            found.append((spread("update_ms", times), {"part": name}))
        return found


class _Updates:
    """Updates of so many ads; each says how many seconds the call to the catalogue took."""

    def __init__(self, trie: CodeTrie, number: int, generator: torch.Generator) -> None:
        self._trie, self._number, self._generator = trie, number, generator
        self._present = torch.randperm(trie.num_ads, generator=generator)

    def add(self) -> float:
        """Add ads with random paths under new ids."""
        trie = self._trie
        codes = random_paths(self._number, trie.num_codes, trie.num_levels, self._generator)
        ids = torch.arange(trie.num_ads, trie.num_ads + self._number)
        self._present = torch.cat([self._present, ids])
        return timed(lambda: trie.add(codes, ids))()

    def retire(self) -> float:
        """Take out ads that came long ago."""
        gone, self._present = self._present.tensor_split([self._number])
        return timed(lambda: self._trie.retire(gone))()

    def set_active(self) -> float:
        """Let other ads rest than before."""
        active = torch.ones(self._trie.num_ads, dtype=torch.bool)
        resting = torch.randint(len(active), (self._number,), generator=self._generator)
        active[resting] = False
        return timed(lambda: self._trie.set_active(active))()
