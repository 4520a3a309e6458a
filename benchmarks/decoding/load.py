"""A service under Poisson arrivals, from a tenth of what it can answer to half more than that.

Capacity is what full batches at full width, searched one after the other without a service, answer
per second. Nothing is cached, so every answer is a search.

Dims: B requests, K candidates, W beams.
"""

from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from benchmarks.decoding.arrivals import Ledger, drive, phase_figures, poisson_traffic, recovery_s
from benchmarks.decoding.policies import Asked, Trained
from benchmarks.decoding.presets import LOAD, DecodingPreset, LoadSizes
from benchmarks.decoding.timings import repeated, rows, write_observed
from benchmarks.measure.memory import resident_mib
from benchmarks.measure.timing import timed
from benchmarks.runs.results import applicable
from benchmarks.runs.tasks import log_progress
from gpr_rl.decoding import beam_search
from gpr_rl.models.hhd import Unvalued
from gpr_rl.schema import Candidates

SOAK = "soak"
TIE = 1e-4
"""Nats within which products of another batch size may change the order of two ads."""


def percent(load: float) -> str:
    """Return the mode that the figures of a load have."""
    return f"{round(100 * load)}"


def measure_load(
    *,
    out: Path,
    world: str,
    world_seed: int,
    seed: int,
    reward: tuple[str, ...],
    sizes: DecodingPreset,
    file: Path,
) -> pd.DataFrame:
    """Return rates and latencies by load; write what else was seen, which no run repeats."""
    bench, own = LoadBench(Trained(out, world, world_seed, reward), sizes, seed), sizes.load
    capacity = bench.capacity_per_s()
    kept, seen = [rows(LOAD, seed, {"capacity_per_s": capacity})], []
    highest = max(own.loads)
    for number, load in enumerate(own.loads):
        log_progress(number, len(own.loads))
        traffic = bench.traffic(load * capacity, own.phase_s, number)
        if load == highest:
            rest = bench.traffic(own.rest_load * capacity, own.rest_s, len(own.loads))
            traffic = traffic.then(rest, own.phase_s)
        ledger = bench.serve(Ledger(traffic, own.num_checked))
        figures = phase_figures(ledger, own.phase_s)
        if load == highest:
            recovered = recovery_s(ledger, own.phase_s, bench.width)
            figures |= {} if recovered is None else {"recovery_s": recovered}
        kept.append(rows(LOAD, seed, figures, mode=percent(load)))
        seen.append(rows(LOAD, seed, bench.quality(ledger, own.phase_s), mode=percent(load)))
    if own.soak_s:
        ledger = Ledger(bench.traffic(highest * capacity, own.soak_s, len(own.loads) + 1), 0)
        before = resident_mib()
        bench.serve(ledger)
        memory = {"memory_before_mib": before, "memory_after_mib": resident_mib()}
        more = {name: mib for name, mib in memory.items() if mib is not None}
        kept.append(rows(LOAD, seed, phase_figures(ledger, own.soak_s), mode=SOAK))
        seen.append(rows(LOAD, seed, bench.quality(ledger, own.soak_s) | more, mode=SOAK))
    write_observed(file, seen)
    return pd.concat(kept)


def is_same_list(found: Candidates, direct: Candidates) -> bool:
    """Return whether a request's list is the beginning of another, but for the order of ties."""
    total = direct.log_prob.sum(-1)[0]  # [W], falling
    close = total[:-1] - total[1:] < TIE
    tied = pad(close, (1, 0), value=False) | pad(close, (0, 1), value=False)
    length = min(found.ad_id.shape[1], len(total))
    same = found.ad_id[0, :length] == direct.ad_id[0, :length]
    return bool((same | tied[:length]).all())


def open_service(policy: Any, world: Any, sizes: LoadSizes, width: int) -> tuple[Any, Any]:
    """Return a `Recommender` without a cache, and the error with which it refuses a request."""
    from gpr_rl.decoding.serve import Overloaded, Recommender

    recommender = Recommender(
        policy,
        world,
        max_batch=sizes.max_batch,
        deadline_ms=sizes.deadline_ms,
        cache_s=0,
        num_candidates=sizes.num_candidates,
        width=width,
        min_width=sizes.min_width,
    )
    return recommender, Overloaded


class LoadBench:
    """A trained policy with a pool of requests, and what full beams find for them."""

    def __init__(self, trained: Trained, sizes: DecodingPreset, seed: int) -> None:
        self._trained, self._sizes, self._own, self._seed = trained, sizes, sizes.load, seed
        self.policy = Unvalued(trained.model)
        self.width = sizes.load.width
        self.request_id = trained.drawn(seed, sizes.load.num_requests)
        batches = trained.asked(self.request_id, sizes.load.max_batch)
        self._first = batches[0]
        self.requests = [
            batch.request[i : i + 1] for batch in batches for i in range(len(batch.request_id))
        ]
        best = torch.cat([self.search(batch, self.width).ad_id[:, :1] for batch in batches])
        self._full_value = self._value(self.request_id, best[:, 0])

    def search(self, asked: Asked, width: int) -> Candidates:
        """Search with a beam of some width, all of which are candidates."""
        trie = self._trained.world.trie
        return beam_search(self.policy, asked.request, trie, width, asked.eligible)

    def capacity_per_s(self) -> float:
        """Return how many requests full batches at full width answer per second."""
        run = timed(partial(self.search, self._first, self.width))
        return len(self._first.request_id) / median(repeated({"full": run}, self._sizes)["full"])

    def traffic(self, rate_per_s: float, seconds: float, number: int) -> Any:
        """Return arrivals of the bench's requests; `number` tells phases of a round apart."""
        own = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        return poisson_traffic(rate_per_s, seconds, len(self.requests), own)

    def serve(self, ledger: Ledger) -> Ledger:
        """Let a new service answer the ledger's traffic, after one request to warm up."""
        service, refusal = open_service(self.policy, self._trained.world, self._own, self.width)
        try:
            service.recommend(self.requests[0]).result()
            drive(service.recommend, self.requests, ledger, refusal)
        finally:
            service.close()
        return ledger

    def quality(self, ledger: Ledger, seconds: float) -> dict[str, float]:
        """Return what a load did to the answers to what was due in the first `seconds`.

        `value_share` is the rankers' reward of the first ads over that of full beams' first ads
        for the same requests; the other shares are of requests.
        """
        due = ledger.traffic.due_s < seconds
        answered = due & ~ledger.refused
        found = {"refused_share": float(ledger.refused[due].mean()) if due.any() else 0.0}
        if not answered.any():
            return found
        asked = torch.from_numpy(ledger.traffic.request[answered])
        first = torch.from_numpy(ledger.first_ad[answered])
        value = self._value(self.request_id[asked], first)
        found["mean_width"] = float(ledger.width[answered].mean())
        found["value_share"] = float(value.mean() / self._full_value[asked].mean())
        return applicable(found | self._checked(ledger))

    def _checked(self, ledger: Ledger) -> dict[str, float]:
        """Compare the answers that were kept with direct searches at the same width."""
        same, largest = [], 0.0
        for index, (found, width) in ledger.kept.items():
            number = int(ledger.traffic.request[index])
            (asked,) = self._trained.asked(self.request_id[number : number + 1], 1)
            direct = self.search(asked, width)
            same.append(is_same_list(found, direct))
            length = min(found.ad_id.shape[1], width)
            ours, theirs = (x.log_prob[:, :length].sum(-1) for x in (found, direct))
            largest = max(largest, float((ours - theirs).nan_to_num(0.0).abs().max()))
        if not same:
            return {}
        return {"same_list_share": sum(same) / len(same), "largest_difference": largest}

    def _value(
        self, request_id: Int[Tensor, " B"], ad_id: Int[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        """Return the rankers' reward of an ad per request; 0 where there is none."""
        value = self._trained.reward(request_id, ad_id[:, None])[:, 0]
        return value.masked_fill(ad_id < 0, 0.0)
