"""A trained policy in fewer bits: how much faster, and what it finds otherwise.

bf16 is what rollouts use: products of matrices in bfloat16, sums over levels in float32. int8 is
torch's dynamic quantisation of the linear layers of both code decoders; the sequence model, whose
weights are read in parts, stays in float32.

Dims: B requests, K candidates, L levels.
"""

import copy
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from agents.actor_critic import lowered, restored
from benchmarks.decoding.policies import Asked, Trained, recall
from benchmarks.decoding.presets import PRECISION, DecodingPreset
from benchmarks.decoding.timings import rate, repeated, rows
from benchmarks.measure.timing import timed
from gpr_rl.decoding import beam_search
from gpr_rl.models import HHD
from gpr_rl.models.hhd import Unvalued
from gpr_rl.schema import Candidates

FLOAT32, BF16, INT8 = "float32", "bf16", "int8"
INSTRUCTIONS = {
    BF16: ("avx512_bf16", "amx_bf16", "bf16"),
    INT8: ("avx512_vnni", "avx_vnni", "amx_int8", "i8mm", "asimddp"),
}
"""What the system calls a processor's instructions for products in few bits."""
_PROCESSOR = Path("/proc/cpuinfo")


def measure_precision(
    *,
    out: Path,
    world: str,
    world_seed: int,
    seed: int,
    reward: tuple[str, ...],
    sizes: DecodingPreset,
) -> pd.DataFrame:
    """Return speed in every precision, and agreement with float32."""
    trained, own = Trained(out, world, world_seed, reward), sizes.precision
    batches = trained.asked(trained.drawn(seed, own.num_requests), own.batch)
    widths = trained.widths(own.num_beams)
    number = min(own.num_candidates, widths[-1])

    def search(policy: Any, asked: Asked) -> Candidates:
        given = asked.request, trained.world.trie, number, asked.eligible
        return beam_search(policy, *given, widths=widths)

    policies = policies_of(trained.model)
    runs = {name: timed(partial(search, policy, batches[0])) for name, policy in policies.items()}
    answers: dict[str, Any] = {
        name: torch.cat([search(policy, asked) for asked in batches])
        for name, policy in policies.items()
    }
    eligible = torch.cat([asked.eligible for asked in batches])
    found = [
        rows(PRECISION, seed, {"has_instructions": float(there)}, mode=name)
        for name, there in has_instructions().items()
    ]
    for name, seconds in repeated(runs, sizes).items():
        metrics = agreement(answers[name], answers[FLOAT32], eligible)
        metrics |= rate(seconds, len(batches[0].request_id))
        found.append(rows(PRECISION, seed, metrics, mode=name))
    return pd.concat(found)


def policies_of(model: HHD) -> dict[str, Any]:
    """Return the policy in every precision that this torch has."""
    found: dict[str, Any] = {FLOAT32: Unvalued(model), BF16: InBF16(Unvalued(model))}
    if can_quantise():
        found[INT8] = Unvalued(quantised(model))
    return found


class InBF16:
    """A policy that multiplies as in rollouts; what a search reads of it is float32."""

    def __init__(self, policy: Unvalued) -> None:
        self._policy = policy

    def encode(self, request: Any) -> Any:
        """Return the policy's context, made in bfloat16."""
        with lowered(BF16, torch.device("cpu")):
            context = self._policy.encode(request)
        return restored(context, BF16)

    def begin(self, context: Any) -> tuple[Tensor, Tensor, Any]:
        """Return what the policy says of the empty prefix."""
        return self._lowered(self._policy.begin, context)

    def extend(self, *given: Any) -> tuple[Tensor, Tensor, Any]:
        """Return what the policy says after further codes."""
        return self._lowered(self._policy.extend, *given)

    def _lowered(self, call: Any, *given: Any) -> tuple[Tensor, Tensor, Any]:
        with lowered(BF16, torch.device("cpu")):
            log_prob, value, cache = call(*given)
        return restored(log_prob, BF16), restored(value, BF16), cache


def can_quantise() -> bool:
    """Return whether this torch has dynamic quantisation, and kernels for it."""
    quantisation = getattr(torch.ao, "quantization", None)
    engines = [name for name in torch.backends.quantized.supported_engines if name != "none"]
    return bool(engines) and hasattr(quantisation, "quantize_dynamic")


def quantised(model: HHD) -> HHD:
    """Return a copy whose decoders multiply in int8."""
    made = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that this will move to a package torchao
        for part in (made.ptd, made.hte):
            part.decoder = torch.ao.quantization.quantize_dynamic(part.decoder, {nn.Linear})
    return made


def agreement(found: Candidates, wanted: Candidates, eligible: Tensor) -> dict[str, float]:
    """Return how the lists of one precision agree with those of float32.

    `top_1_share` and `top_k_share` are shares of requests and of ads, `largest_difference` is of
    the log-probabilities of ads in both lists, in nats, `illegal_ads` a count.
    """
    same = (found.ad_id[:, :, None] == wanted.ad_id[:, None]) & found.valid[:, :, None]
    total = found.log_prob.sum(-1)[:, :, None] - wanted.log_prob.sum(-1)[:, None]
    legal = eligible.gather(1, found.ad_id.clamp_min(0)) | ~found.valid
    return {
        "top_1_share": float((found.ad_id[:, 0] == wanted.ad_id[:, 0]).float().mean()),
        "top_k_share": float(recall(found.ad_id, wanted.ad_id).mean()),
        "largest_difference": float(total[same].abs().max()) if same.any() else 0.0,
        "illegal_ads": float((~legal).sum()),
    }


def has_instructions() -> dict[str, bool]:
    """Return whether the processor multiplies in few bits by itself; empty if nobody says."""
    if not _PROCESSOR.is_file():
        return {}
    words = set(_PROCESSOR.read_text().split())
    return {name: bool(words.intersection(known)) for name, known in INSTRUCTIONS.items()}
