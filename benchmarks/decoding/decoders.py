"""GR4AD's LazyAR against a decoder whose every layer waits for the codes, of the same sizes.

Dims: B requests, W beams, L levels.
"""

from dataclasses import replace
from functools import partial

import pandas as pd
import torch

from benchmarks.decoding.inputs import input_spec, random_paths, random_requests
from benchmarks.decoding.presets import DECODERS, DecoderSizes, DecodingPreset
from benchmarks.decoding.timings import rate, repeated, rows
from benchmarks.measure.timing import timed
from gpr_rl.decoding import CodeTrie, beam_search
from gpr_rl.models import HHD, HHDConfig
from gpr_rl.models.hhd import Unvalued
from gpr_rl.schema import Candidates, Request

PLAIN, LAZY = "plain", "lazy_ar"
_NUM_USERS = 100


def measure_decoders(*, seed: int, sizes: DecodingPreset) -> pd.DataFrame:
    """Return requests per second of beams with both decoders, encoder included."""
    asked = sizes.decoders
    bench = DecoderBench(asked, seed)
    runs = {name: timed(partial(bench.search, name)) for name in bench.models}
    found = [
        rows(DECODERS, seed, rate(seconds, asked.batch), mode=name)
        for name, seconds in repeated(runs, sizes).items()
    ]
    return pd.concat(found)


class DecoderBench:
    """Two models without training on one random catalogue, and requests for both."""

    def __init__(self, sizes: DecoderSizes, seed: int) -> None:
        self._width = sizes.num_beams
        generator = torch.Generator().manual_seed(seed)
        paths = random_paths(sizes.num_ads, sizes.num_codes, sizes.num_levels, generator)
        self.trie = CodeTrie(paths, sizes.num_codes)
        spec = input_spec(sizes.num_levels, sizes.num_codes, sizes.num_items, _NUM_USERS)
        self.request: Request = random_requests(spec, paths, sizes.batch, generator)
        plain = HHDConfig(dim=sizes.dim, num_ptd_layers=sizes.num_layers)
        lazy = replace(plain, decoder="lazy_ar", num_lazy_layers=sizes.num_lazy_layers)
        self.models: dict[str, Unvalued] = {}
        for name, config in {PLAIN: plain, LAZY: lazy}.items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.models[name] = Unvalued(HHD(config, spec).eval())

    def search(self, name: str) -> Candidates:
        """Search with a model, by its name."""
        return beam_search(self.models[name], self.request, self.trie, self._width)
