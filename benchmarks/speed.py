"""How fast the parts are on this machine, on one core: `python -m benchmarks.speed [WORLD]`.

Every figure is the median of several runs; the first lines give the machine's matrix-product rate,
which bounds the rest.
"""

import statistics
import sys
from collections.abc import Callable
from functools import partial

import torch
from rich.console import Console

from agents.methods import TrainConfig
from agents.rollout import rollout
from agents.trainer import train
from benchmarks.measure.timing import matrix_rate, median_s
from benchmarks.reports.blocks import Table, print_tables
from gpr_rl.decoding import beam_search, sample_paths
from gpr_rl.models import HHD, HHDConfig
from simulators.make import load_world
from simulators.rewards import RewardMix
from simulators.world import World
from simulators.world.supervision import WindowBatches

Row = tuple[str, float, str]
"""What, median, unit."""


def ranker_rows(world: World) -> list[Row]:
    """Return candidate scores per second with the inputs at hand, and with building them."""
    rows: list[Row] = []
    for name, b, k in (("a user each", 2_048, 1), ("40 candidates a user", 64, 40)):
        ids = world.request_ids("train")[:b]
        ads = torch.randint(0, world.num_ads, (len(ids), k))
        inputs, past = world.features(ids)
        count = len(ids) * k
        bare = median_s(partial(world.rankers, inputs, past, ads))
        whole = median_s(partial(world.outcome, ids, ads))
        rows.append((f"rankers, {name}", count / bare, "scores/s"))
        rows.append((f"rankers and their inputs, {name}", count / whole, "scores/s"))
    return rows


def model_rows(world: World, rate: float) -> list[Row]:
    """Return milliseconds of the model's main calls at RL and serving sizes."""
    torch.manual_seed(0)
    model = HHD(HHDConfig(), world.spec).eval()
    ids = world.request_ids("train")[:64]
    request, legal = world.request(ids), world.eligible(ids)
    context = model.encode(request)
    codes = world.codes[torch.randint(0, world.num_ads, (len(ids), 16))]
    mask = world.trie.restrict(legal).path_masks(codes) | True
    batches = WindowBatches(world, seed=0)
    tokens, targets = batches(0)

    def update() -> None:
        model.zero_grad()
        model.log_prob(model.encode(request), codes, mask).sum().backward()

    def pretrain() -> None:
        model.zero_grad()
        model.mtp_logits(tokens, targets).square().mean().backward()

    def without_gradient(call: Callable[[], object]) -> Callable[[], object]:
        def inner() -> object:
            with torch.no_grad():
                return call()

        return inner

    encode = without_gradient(lambda: model.encode(request))
    flops = _linear_flops(model, encode)
    encode_s = median_s(encode)
    serve = without_gradient(
        lambda: beam_search(model, request, world.trie, 40, legal, renormalize=True)
    )
    sample = without_gradient(lambda: sample_paths(model, request, world.trie, 16, 0, 0, legal))
    return [
        ("encode 64 requests", encode_s * 1e3, "ms"),
        ("  linear layers' share of the matrix-product rate", flops / encode_s / 1e9 / rate, ""),
        ("score 64 x 16 known paths", median_s(
            without_gradient(lambda: model.log_prob(context, codes, mask))) * 1e3, "ms"),
        ("policy update, forward and backward, 64 x 16", median_s(update) * 1e3, "ms"),
        ("pre-training step, forward and backward", median_s(pretrain) * 1e3, "ms"),
        ("make a pre-training batch", median_s(lambda: batches(1)) * 1e3, "ms"),
        ("make 64 requests", median_s(lambda: world.request(ids)) * 1e3, "ms"),
        ("sample 64 x 16 paths", median_s(sample) * 1e3, "ms"),
        ("beam of 40 for 64 requests", median_s(serve) * 1e3, "ms"),
    ]  # fmt: skip


def _linear_flops(model: HHD, call: Callable[[], object]) -> float:
    """Return the floating-point operations of linear layers in one call."""
    total = 0.0

    def count(module: torch.nn.Linear, args: tuple, output: torch.Tensor) -> None:
        nonlocal total
        total += 2.0 * output.numel() * module.in_features

    hooks = [m.register_forward_hook(count) for m in model.modules()
             if isinstance(m, torch.nn.Linear)]  # fmt: skip
    call()
    for hook in hooks:
        hook.remove()
    return total


def training_rows(world: World) -> list[Row]:
    """Return seconds per training step of every method, and of the rollout alone."""
    torch.manual_seed(0)
    config = TrainConfig(num_steps=8, critic_warmup_steps=0)
    mix = RewardMix.from_specs([])
    model = HHD(HHDConfig(), world.spec).eval()
    ids = world.request_ids("train")[:64]
    rolled = median_s(lambda: rollout(model, world, ids, mix, config, 0, 0), 7)
    rows: list[Row] = [("rollout, 64 x 16", rolled * 1e3, "ms")]
    for method in ("hepo", "ppo", "grpo", "dpo"):
        torch.manual_seed(0)
        history = train(HHD(HHDConfig(), world.spec).eval(), world, method, config, 0)
        step = statistics.median(measures["step_s"] for measures in history[2:])
        rows.append((f"training step, {method}", step * 1e3, "ms"))
    return rows


def main() -> int:
    """Print the table."""
    torch.set_num_threads(1)
    world = load_world(sys.argv[1] if len(sys.argv) > 1 else "small")
    rate = matrix_rate()
    rows: list[Row] = [("matrix product, float32, one core", rate, "GFLOPS")]
    rows += [*ranker_rows(world), *model_rows(world, rate), *training_rows(world)]
    shown = [[name, f"{value:,.3g}" if value < 1e4 else f"{value:,.0f}", unit]
             for name, value, unit in rows]  # fmt: skip
    console = Console(width=120)
    print_tables([Table("Speed, one core", ["what", "median", "unit"], shown)], console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
