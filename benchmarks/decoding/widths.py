"""Beams of several widths, and a tree search, with a trained policy on a world.

What a search should find are the requests' likeliest ads: those of a beam as wide as the catalogue,
which leaves nothing out.

Dims: B requests, K candidates, W beams, L levels.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from benchmarks.decoding.policies import Asked, Trained, recall
from benchmarks.decoding.presets import WIDTHS, DecodingPreset, WidthSizes
from benchmarks.decoding.timings import rate, repeated, rows
from benchmarks.measure.timing import timed
from gpr_rl.decoding import TreeSearchConfig, beam_search, tree_search
from gpr_rl.models.hhd import Unvalued
from gpr_rl.schema import Candidates

FLAT, GROWING, GUIDED, NARROW, TREE = "flat", "growing", "value_guided", "narrow", "tree_search"
FIRST_WIDTH = 8
"""Of the beam that a tree search begins with, where the budget has room for it (V-STAR)."""
_EXHAUSTIVE_BATCH = 8
Search = Callable[[Asked], Candidates]


def measure_widths(
    *,
    out: Path,
    world: str,
    world_seed: int,
    seed: int,
    reward: tuple[str, ...],
    sizes: DecodingPreset,
) -> pd.DataFrame:
    """Return speed, recall and value of every search."""
    trained, own = Trained(out, world, world_seed, reward), sizes.widths
    searches = Searches(trained, own, seed)
    ids = trained.drawn(seed, own.num_requests)
    batches, few = trained.asked(ids, own.batch), trained.asked(ids, _EXHAUSTIVE_BATCH)
    likeliest = torch.cat([searches.exhaustive(part) for part in few])
    first, found = batches[0], []
    runs = {name: timed(partial(search, first)) for name, search in searches.by_name.items()}
    seconds = repeated(runs, sizes)
    for name, search in searches.by_name.items():
        answers = torch.cat([search(part).ad_id for part in batches])
        metrics = {
            "recall": float(recall(answers, likeliest).mean()),
            "value_found": float(trained.reward(ids, answers).amax(-1).mean()),
            "model_steps": float(searches.model_steps(name)),
        }
        metrics |= rate(seconds[name], len(first.request_id))
        found.append(rows(WIDTHS, seed, metrics, mode=name))
    return pd.concat(found)


class Searches:
    """The searches that are compared, by name.

    The value-guided beam keeps as many prefixes as the growing one, so the decoder does the same
    work; the critic's comes on top. The other beams don't ask the critic.
    """

    def __init__(self, trained: Trained, sizes: WidthSizes, seed: int) -> None:
        self._trained, self._sizes, self._seed = trained, sizes, seed
        self._unvalued = Unvalued(trained.model)
        growing = trained.widths(*sizes.growing)
        flat, narrow = trained.widths(sizes.flat), trained.widths(sizes.narrow)
        self._widths = {FLAT: flat, GROWING: growing, GUIDED: growing, NARROW: narrow, TREE: narrow}
        self.by_name: dict[str, Search] = {
            name: partial(self._beam, self._unvalued, widths=self._widths[name])
            for name in (FLAT, GROWING, NARROW)
        }
        self.by_name[GUIDED] = partial(
            self._beam, trained.model, widths=growing, width_range=sizes.width_range
        )
        self.by_name[TREE] = self._tree

    def model_steps(self, name: str) -> int:
        """Return how many prefixes of a request a search asks the policy about.

        A beam asks about the empty prefix, and about those kept at every level but the last. A tree
        search gets as many as the narrow beam; among its steps are whole paths, whose value it
        wants.
        """
        return 1 + sum(self._widths[name][:-1])

    def exhaustive(self, asked: Asked) -> Int[Tensor, "B K"]:
        """Return each request's likeliest ads, -1 where it has fewer."""
        every = self._trained.widths(self._trained.world.trie.num_paths)
        return self._beam(self._unvalued, asked, widths=every).ad_id

    def _beam(self, policy: Any, asked: Asked, **options: Any) -> Candidates:
        number = min(self._sizes.num_candidates, options["widths"][-1])
        trie = self._trained.world.trie
        return beam_search(policy, asked.request, trie, number, asked.eligible, **options)

    def _tree(self, asked: Asked) -> Candidates:
        trie, budget = self._trained.world.trie, self.model_steps(TREE)
        config = TreeSearchConfig(width=min(FIRST_WIDTH, (budget - 1) // trie.num_levels))
        return tree_search(
            self._trained.model,
            asked.request,
            trie,
            self._sizes.num_candidates,
            budget,
            self._seed,
            draw=0,
            eligible=asked.eligible,
            config=config,
        )
