"""How fast the HHD's parts are, beside a plain transformer and the machine's matrix product.

Calls that are compared take turns, so that what else the machine does meets them alike.

Dims: B sequences, T tokens, M real tokens, D width, R recursions, L levels, V codes.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor, nn

from benchmarks.architecture.presets import MACHINE, OFF, SUITE, ArchitecturePreset
from benchmarks.measure.memory import in_fresh_process
from benchmarks.measure.timing import matrix_rate, median_seconds, timed, torch_threads
from benchmarks.runs.results import Conditions, tidy
from gpr_rl.decoding import CodeTrie, beam_search
from gpr_rl.models import HHD, HHDConfig, Unvalued
from gpr_rl.models.hsd import HSD
from gpr_rl.models.layers.grouping import NUM_TYPES, GroupedFFN, TokenLayout
from gpr_rl.schema import InputSpec, Tokens, TokenType

DIM = NUM_TOKENS = 128
NUM_HEADS, NUM_LAYERS = 4, 2
_PROMPT = 24
DEPTHS = (1, 2, 3, 4)
"""Mean depths of the recursion's timing; R is the last."""
DECODER_LAYERS = (3, 6)
"""L_d; two thirds of them are LazyAR's trunk."""
NUM_BEAMS, NUM_CODES, NUM_LEVELS = 256, 256, 3
THREADS = (1, 2)
SPEC = InputSpec(
    num_levels=NUM_LEVELS,
    num_codes=NUM_CODES,
    user_cardinalities=(6, 2, 8),
    context_cardinalities=(24, 5),
    max_tokens=NUM_TOKENS,
)
Calls = Mapping[str, Callable[[], object]]
Found = list[tuple[dict[str, float], Conditions]]
"""Metrics with what they were measured under."""


def measure_speed(*, seed: int, sizes: ArchitecturePreset) -> pd.DataFrame:
    """Return the figures of the machine, as tidy rows: each number of threads in a new process."""
    rows = []
    for threads in THREADS:
        found = in_fresh_process(time_parts, seed=seed, threads=threads, sizes=sizes)
        for metrics, at in found:
            rows.append(tidy(SUITE, MACHINE, seed, metrics, step=0, threads=threads, **at))
    return pd.concat(rows)


def time_parts(*, seed: int, threads: int, sizes: ArchitecturePreset) -> Found:
    """Time all parts with so many threads."""
    batch, repeats = sizes.speed_batch, sizes.speed_repeats
    torch.manual_seed(seed)
    with torch_threads(threads):
        found: Found = [({"matrix_gflop_per_s": matrix_rate()}, {})]
        found.append((time_training(batch, repeats), {"part": "train"}))
        found += time_recursions(batch, repeats)
        found += time_decoders(max(1, batch // 4), repeats)
    return found


def taking_turns(calls: Calls, repeats: int) -> dict[str, float]:
    """Return the median seconds of each call, after one round to warm up."""
    return median_seconds({name: timed(call) for name, call in calls.items()}, repeats, 1)


def random_tokens(batch: int, num_tokens: int) -> Tokens:
    """Return sequences of one USER token, organic items to the prompt's end, then E-I pairs."""
    kind = torch.full((batch, num_tokens), int(TokenType.ITEM))
    kind[:, 0] = TokenType.USER
    kind[:, 1:_PROMPT] = TokenType.ORGANIC
    kind[:, _PROMPT::2] = TokenType.ENVIRONMENT
    zeros = torch.zeros_like(kind)
    context = len(SPEC.context_cardinalities)
    return Tokens(
        kind=kind,
        codes=torch.randint(0, SPEC.num_codes, (batch, num_tokens, SPEC.num_levels)),
        action=zeros,
        time_gap=zeros,
        context=zeros[..., None].expand(-1, -1, context),
        user=torch.zeros(batch, len(SPEC.user_cardinalities), dtype=torch.int64),
        preference=torch.rand(batch, SPEC.num_levels, SPEC.num_codes),
        prompt_length=torch.full((batch,), _PROMPT),
        batch_size=[batch],
    )


def time_training(batch: int, repeats: int) -> dict[str, float]:
    """Time forward and backward of the HSD's blocks, of a plain encoder, and of both FFNs.

    The plain stack is torch's TransformerEncoderLayer, with a feed-forward network so wide (2.5 D)
    that a token costs as many multiply-adds as in a block of the HSD.
    """
    tokens = random_tokens(batch, NUM_TOKENS)
    layout = TokenLayout.of(tokens.kind)
    x = torch.randn(batch, NUM_TOKENS, DIM, requires_grad=True)
    packed = torch.randn(batch * NUM_TOKENS, DIM, requires_grad=True)
    config = HHDConfig(dim=DIM, num_heads=NUM_HEADS, num_hsd_layers=NUM_LAYERS)
    hsd, base = HSD(config, SPEC), HSD(replace(config, **OFF), SPEC)  # type: ignore[arg-type]
    layer = nn.TransformerEncoderLayer(
        DIM, NUM_HEADS, 5 * DIM // 2, dropout=0.0, batch_first=True, norm_first=True
    )
    plain = nn.TransformerEncoder(layer, NUM_LAYERS, nn.LayerNorm(DIM), enable_nested_tensor=False)
    grouped = GroupedFFN(DIM, 2 * DIM, NUM_TYPES)
    shared = GroupedFFN(DIM, 2 * DIM, 1)

    def both_ways(module: nn.Module, forward: Callable[[], Tensor]) -> Callable[[], None]:
        def call() -> None:
            module.zero_grad()
            forward().sum().backward()

        return call

    seconds = taking_turns(
        {
            "plain": both_ways(plain, lambda: plain(x)),
            "hsd": both_ways(hsd, lambda: hsd.transform(packed, tokens, layout)[0]),
            "base": both_ways(base, lambda: base.transform(packed, tokens, layout)[0]),
            "ffn_grouped": both_ways(grouped, lambda: grouped(packed, layout.sizes)),
            "ffn_shared": both_ways(shared, lambda: shared(packed, layout.sizes)),
        },
        repeats,
    )
    rate = matrix_rate()
    # multiply-adds per token and block, linear and attention; the backward pass counts twice
    per_token = 9 * DIM * DIM + 2 * NUM_TOKENS * DIM
    flop = 3.0 * 2.0 * batch * NUM_TOKENS * NUM_LAYERS * per_token
    found = {}
    for name in ("plain", "hsd", "base"):
        found[f"{name}_tokens_per_s"] = batch * NUM_TOKENS / seconds[name]
        found[f"{name}_share_of_matrix_per_s"] = flop / seconds[name] / 1e9 / rate
    for name in ("hsd", "base"):
        found[f"{name}_over_plain_per_s"] = seconds["plain"] / seconds[name]
    return found | {"ffn_grouped_over_shared_s": seconds["ffn_grouped"] / seconds["ffn_shared"]}


def time_recursions(batch: int, repeats: int) -> Found:
    """Time the HSD's inference at given mean depths, all tokens alike."""
    tokens = random_tokens(batch, NUM_TOKENS)
    layout = TokenLayout.of(tokens.kind)
    config = HHDConfig(
        dim=DIM, num_heads=NUM_HEADS, num_hsd_layers=NUM_LAYERS, num_recursions=DEPTHS[-1]
    )
    hsd = HSD(config, SPEC).eval()
    assert hsd.router is not None
    bias = hsd.router.output.bias
    packed = torch.randn(batch * NUM_TOKENS, DIM)

    def at(depth: int) -> Callable[[], object]:
        @torch.no_grad()
        def call() -> object:
            bias.zero_()
            bias[depth - 1] = 1e6
            return hsd.transform(packed, tokens, layout)

        return call

    seconds = taking_turns({str(depth): at(depth) for depth in DEPTHS}, repeats)
    return [
        ({"inference_ms": 1e3 * seconds[str(depth)]}, {"part": "inference", "depth": depth})
        for depth in DEPTHS
    ]


def time_decoders(batch: int, repeats: int) -> Found:
    """Time beam search by LazyAR and by plain layers, from encoded histories to ranked ads.

    What does not depend on the decoder's layers (choosing beams, logits, keys and values of the
    history) is the larger part of LazyAR's time the fewer layers there are.
    """
    paths = torch.cartesian_prod(*[torch.arange(NUM_CODES)] * 2)
    last = torch.randint(0, NUM_CODES, (len(paths), 1))
    trie = CodeTrie(torch.cat([paths, last], dim=1), num_codes=NUM_CODES)
    h = torch.randn(batch, NUM_TOKENS, DIM)
    key_mask = torch.ones(batch, NUM_TOKENS, dtype=torch.bool)
    position = torch.full((batch, 1), NUM_TOKENS - 1)
    tokens = random_tokens(batch, 1 + _PROMPT)

    def search(config: HHDConfig) -> Callable[[], object]:
        model = HHD(config, SPEC).eval()
        policy = Unvalued(model)
        policy.encode = lambda request: model.context_of(h, key_mask, position)
        return lambda: beam_search(policy, tokens, trie, NUM_BEAMS)

    found: Found = []
    for layers in DECODER_LAYERS:
        plain = HHDConfig(dim=DIM, num_heads=NUM_HEADS, num_ptd_layers=layers)
        lazy = replace(plain, decoder="lazy_ar", num_lazy_layers=2 * layers // 3)
        seconds = taking_turns({"plain": search(plain), "lazy_ar": search(lazy)}, repeats)
        rates = {f"{name}_per_s": batch / value for name, value in seconds.items()}
        rates["lazy_ar_over_plain_per_s"] = seconds["plain"] / seconds["lazy_ar"]
        found.append((rates, {"part": "decode", "depth": layers}))
    return found
