"""Our beam search against transformers' own constrained search, on the same T5.

Both get the same weights, requests, catalogue and number of beams, and give the same number of
paths. transformers is told what is legal by a look-up in a table made beforehand, the fastest way
that `prefix_allowed_tokens_fn` has.

Dims: B requests, S input ids, K paths (as many as beams), L levels, V codes.
"""

from functools import partial
from importlib.util import find_spec
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from benchmarks.decoding.inputs import input_spec, random_paths, random_requests
from benchmarks.decoding.presets import PEERS, DecodingPreset, PeerSizes
from benchmarks.decoding.timings import rate, repeated, rows
from benchmarks.decoding.work import useful_gflop
from benchmarks.measure.timing import product_rate, timed
from benchmarks.runs.tasks import log_progress
from gpr_rl.decoding import CodeTrie, beam_search
from gpr_rl.models.rivals.tiger import END_ID, PAD_ID, TIGER, TIGERConfig
from gpr_rl.schema import Candidates, Tokens

OURS, THEIRS = "ours", "transformers"
PRODUCT_ROWS = 1_280
"""Rows of the product that the machine's rate is taken from: 32 requests of 40 beams."""
PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}


def is_installed() -> bool:
    """Return whether there is a transformers to compare with."""
    return find_spec("transformers") is not None


def measure_peers(*, seed: int, sizes: DecodingPreset) -> pd.DataFrame:
    """Return speed and agreement of both searches; only `is_installed` without transformers."""
    if not is_installed():
        return rows(PEERS, seed, {"is_installed": 0.0}, mode=THEIRS)
    asked = sizes.peers
    peers = Peers(asked, seed)
    found = [
        rows(PEERS, seed, {"is_installed": 1.0}, mode=THEIRS),
        rows(PEERS, seed, agreement(peers, asked.num_compared)),
    ]
    for part, work in useful_gflop(asked).items():
        found.append(rows(PEERS, seed, {"work_gflop": work}, part=part))
    for name, dtype in PRECISIONS.items():
        rates = product_rate(PRODUCT_ROWS, asked.dim, asked.ffn_dim, dtype)
        found.append(rows(PEERS, seed, {"product_gflop_per_s": rates}, mode=name))
    for number, batch in enumerate(asked.batches):
        log_progress(number, len(asked.batches))
        tokens, (ids, mask) = peers.part(0, batch)
        runs = {
            OURS: timed(partial(peers.ours, tokens)),
            THEIRS: timed(partial(peers.theirs, ids, mask)),
        }
        for mode, seconds in repeated(runs, sizes).items():
            found.append(rows(PEERS, seed, rate(seconds, batch), mode=mode, batch=batch))
    return pd.concat(found)


def agreement(peers: "Peers", number: int) -> dict[str, float]:
    """Return in which share of requests both find the same paths, and how their scores differ.

    `largest_difference` is of the log-probabilities of paths that both find, in nats;
    `shared_share` is how many of a request's paths that are, on average.
    """
    same, shared, largest = [], [], 0.0
    step = min(peers.sizes.batches[-1], number)
    for start in range(0, number, step):
        tokens, (ids, mask) = peers.part(start, min(start + step, number))
        ours = peers.ours(tokens)
        codes, score = peers.scored(ids, mask)
        equal = (ours.codes[:, :, None] == codes[:, None]).all(-1)  # [B, K, K]
        difference = (ours.log_prob.sum(-1)[:, :, None] - score[:, None]).abs()
        shared += equal.any(-1).float().mean(-1).tolist()
        same += (equal.any(-1).all(-1) & equal.any(-2).all(-1)).tolist()
        if equal.any():
            largest = max(largest, float(difference[equal].max()))
    return {
        "same_paths_share": sum(same) / len(same),
        "shared_share": sum(shared) / len(shared),
        "largest_difference": largest,
    }


class Peers:
    """One T5 with random weights, and both ways to search with it."""

    def __init__(self, sizes: PeerSizes, seed: int) -> None:
        self.sizes = sizes
        generator = torch.Generator().manual_seed(seed)
        levels, codes = sizes.num_levels, sizes.num_codes
        paths = random_paths(sizes.num_ads, codes, levels, generator)
        self.trie = CodeTrie(paths, codes)
        spec = input_spec(levels, codes, sizes.num_items, sizes.num_users)
        config = TIGERConfig(
            dim=sizes.dim,
            num_heads=1,
            num_user_tokens=sizes.num_users,
            max_items=sizes.num_items,
            num_encoder_layers=1,
            num_decoder_layers=1,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = TIGER(config, spec, self.trie)
            self.model.t5 = published_t5(sizes)  # whose heads are wider than D / H
        self.model.eval()
        most = max(*sizes.batches, sizes.num_compared)
        self._tokens = random_requests(spec, paths, most, generator).tokens
        self._legal = self._legal_ids()

    def _legal_ids(self) -> dict[tuple[int, ...], list[int]]:
        """Return the vocabulary ids that may follow every legal prefix of ids."""
        found: dict[tuple[int, ...], list[int]] = {}
        paths = (self.trie.paths + self.model.offset).tolist()
        for path in paths:
            for level, code in enumerate(path):
                after = found.setdefault(tuple(path[:level]), [])
                if not after or after[-1] != code:  # paths are in order
                    after.append(code)
        return found

    def part(
        self, start: int, stop: int
    ) -> tuple[Tokens, tuple[Int[Tensor, "B S"], Bool[Tensor, "B S"]]]:
        """Return some of the requests, and what T5 reads of them."""
        tokens = self._tokens[start:stop]
        last = torch.full((len(tokens),), tokens.kind.shape[1] - 1)
        return tokens, self.model.input_ids(tokens, torch.arange(len(tokens)), last)

    def ours(self, tokens: Tokens) -> Candidates:
        """Search with `beam_search`."""
        return beam_search(self.model, tokens, self.trie, self.sizes.num_beams)

    def theirs(self, ids: Int[Tensor, "B S"], mask: Bool[Tensor, "B S"], **more: Any) -> Any:
        """Search with transformers' `generate`."""
        return self.model.t5.generate(
            input_ids=ids,
            attention_mask=mask.long(),
            num_beams=self.sizes.num_beams,
            num_return_sequences=self.sizes.num_beams,
            max_new_tokens=self.sizes.num_levels,
            prefix_allowed_tokens_fn=lambda _, prefix: self._legal[tuple(prefix[1:].tolist())],
            do_sample=False,
            length_penalty=0.0,  # scores are sums
            **more,
        )

    def scored(
        self, ids: Int[Tensor, "B S"], mask: Bool[Tensor, "B S"]
    ) -> tuple[Int[Tensor, "B K L"], Float[Tensor, "B K"]]:
        """Return transformers' paths with their log-probabilities."""
        made = self.theirs(ids, mask, return_dict_in_generate=True, output_scores=True)
        shape = len(ids), self.sizes.num_beams
        codes = made.sequences[:, 1:] - self.model.offset
        return codes.unflatten(0, shape), made.sequences_scores.view(shape)


def published_t5(sizes: PeerSizes) -> Any:
    """Return a T5 of the published sizes with random weights."""
    from transformers import T5Config, T5ForConditionalGeneration

    config: dict[str, Any] = {
        "vocab_size": sizes.num_ids,
        "d_model": sizes.dim,
        "d_kv": sizes.head_dim,
        "d_ff": sizes.ffn_dim,
        "num_layers": sizes.num_layers,
        "num_decoder_layers": sizes.num_layers,
        "num_heads": sizes.num_heads,
        "pad_token_id": PAD_ID,
        "decoder_start_token_id": PAD_ID,
        "eos_token_id": END_ID,
    }
    return T5ForConditionalGeneration(T5Config(**config))
