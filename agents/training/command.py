"""Train one policy: `python -m agents.train METHOD --world tiny --out DIR`.

On several processes or machines: `torchrun --nproc-per-node 4 -m agents.train METHOD ...`. With
`--num-shards` the result is the same, bit for bit, for any number of processes that divides it.

DIR gets `start.safetensors` (the warm start), `policy.safetensors` (the trained policy),
`train.safetensors` (what `--resume` goes on from), `log.jsonl` (a line of measures per step) and
`config.json`.
"""

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.distributed as dist
import tyro

from agents.methods import method_config, method_names
from agents.placing import usable_device
from agents.rollout import NonFiniteError
from agents.train_config import TrainConfig
from agents.trainer import train
from agents.warm_start import WarmStartConfig, warm_start
from gpr_rl.dials import with_dials
from gpr_rl.files import write_text
from gpr_rl.models import HHD
from gpr_rl.policy import load_policy, save_policy
from simulators.make import load_world
from simulators.progress import silent, to_stderr

_LOST = (dist.DistError, ConnectionError)


@dataclass(frozen=True, kw_only=True)
class TrainArgs:
    """Train one policy by reinforcement learning."""

    method: Annotated[str, tyro.conf.Positional]
    """hepo, hepo_terminal, ppo, grpo, dpo, rspo, ...; a wrong name prints the whole list."""
    out: Path
    """Directory for the results; a new one unless `--resume`."""
    world: str = "tiny"
    """A world's name or directory."""
    seed: int = 0
    """Of the world (if it has a name), the warm start and all draws."""
    set: tuple[str, ...] = ()
    """Dials of training, each `field=value`, for instance `num_steps=200`."""
    reward: tuple[str, ...] = ()
    """What is optimised: names, `module:function`, each with `=weight`; default `final_value`."""
    initial_policy: Path | None = None
    """A policy to start from; None: the warm start is made here."""
    num_shards: int | None = None
    """Parts of a step with a fixed order: the same bits on 1 to so many processes."""
    checkpoint_every: int = 25
    """Steps between checkpoints."""
    device: str = "cpu"
    """`cpu`, `cuda` or `cuda:N`; with several processes `cuda` is each one's own."""
    precision: Literal["float32", "bf16"] = "float32"
    """What the model multiplies in."""
    timeout_s: float = 600.0
    """Seconds that a process waits for another before it gives up."""
    resume: bool = False
    """Go on from the last checkpoint in the directory."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 2 on a user's mistake, 1 where another process was lost."""
    args = tyro.cli(TrainArgs, args=arguments, description=__doc__)
    logging.getLogger("torchrl").setLevel(logging.WARNING)  # a line for every replay buffer
    with _processes(args.timeout_s, args.device) as rank:
        try:
            _run(args, rank)
        except (ValueError, OSError, NonFiniteError) as error:
            return _say(f"error: {error}", 2)
        except RuntimeError as error:
            if not isinstance(error, _LOST) and "Connection" not in str(error):
                raise
            saved = "go on with --resume" if _checkpoint(args).exists() else "nothing was saved yet"
            return _say(f"error: process {rank} lost the others ({_short(error)}); {saved}", 1)
    return 0


@contextmanager
def _processes(timeout_s: float, device: str) -> Iterator[int]:
    """Join the other processes that torchrun has started, if any; yield this one's rank."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0
        return
    backend = "nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()


def _run(args: TrainArgs, rank: int) -> None:
    if args.method not in method_names():
        raise ValueError(f"unknown method {args.method!r}; known: {', '.join(method_names())}")
    config = with_dials(method_config(args.method, TrainConfig()), args.set)
    config = replace(config, num_shards=args.num_shards, precision=args.precision)
    device = _device(args.device)
    _prepare(args, rank, config)
    world = load_world(args.world, args.seed, to_stderr if rank == 0 else silent).to(device)
    model = _start(args, rank, world).to(device)
    if dist.is_initialized():
        dist.barrier()
    log = args.out / "log.jsonl"
    kept = log.read_text().splitlines() if args.resume and log.exists() else []

    def on_step(step: int, measures: dict[str, float]) -> None:
        del kept[step:]  # a resumed run repeats what came after its checkpoint
        kept.append(json.dumps({"step": step + 1, **measures}))
        if (step + 1) % args.checkpoint_every == 0 or step + 1 == config.num_steps:
            write_text(log, "\n".join(kept) + "\n")
            print(
                f"step {step + 1:5d} of {config.num_steps}: reward {measures['reward']:.4g}, "
                f"kl {measures['kl']:.2f} nats, entropy {measures['entropy']:.2f} nats",
                file=sys.stderr,
            )

    train(
        model,
        world,
        args.method,
        config,
        args.seed,
        reward=list(args.reward) or None,
        on_step=on_step,
        checkpoint_path=_checkpoint(args),
        checkpoint_every=args.checkpoint_every,
        resume=args.resume,
    )
    if rank == 0:
        about = {"world": args.world, "method": args.method, "seed": args.seed}
        save_policy(model.eval(), args.out / "policy.safetensors", **about)
        print(args.out / "policy.safetensors")


def _device(name: str) -> torch.device:
    """Return the device of a name; `cuda` alone is the one of this process on its machine.

    Raises:
        ValueError: No such device here.
    """
    local = os.environ.get("LOCAL_RANK")
    try:
        return usable_device(f"cuda:{local}" if name == "cuda" and local else name)
    except ValueError as error:
        raise ValueError(f"--device {error}") from None


def _prepare(args: TrainArgs, rank: int, config: TrainConfig) -> None:
    """Make the directory, or see that it is of this run; the first process writes the settings."""
    settings = {
        "method": args.method,
        "world": args.world,
        "seed": args.seed,
        "reward": list(args.reward),
        "initial_policy": None if args.initial_policy is None else str(args.initial_policy),
        "config": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()},
    }
    path = args.out / "config.json"
    if not args.resume:
        if args.out.exists() and any(args.out.iterdir()):
            raise ValueError(f"--out {args.out} is not empty; --resume goes on with its run")
    elif not path.exists():
        raise ValueError(f"--resume: {path} does not exist")
    else:
        stored = json.loads(path.read_text())
        for name in settings:
            if name != "config" and stored.get(name) != settings[name]:
                raise ValueError(
                    f"{args.out} was made with {name}={stored.get(name)!r}, not {settings[name]!r}"
                )
        before = stored.get("config", {})
        for name, value in json.loads(json.dumps(settings["config"])).items():
            if name != "num_steps" and before.get(name) != value:  # a run may grow
                raise ValueError(
                    f"{args.out} was made with {name}={before.get(name)!r}, not {value!r}"
                )
    if dist.is_initialized():
        dist.barrier()  # all have looked before the first writes
    if rank == 0:
        args.out.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(settings, indent=1) + "\n")


def _start(args: TrainArgs, rank: int, world: object) -> HHD:
    """Return what training starts from; every process makes the same warm start by itself."""
    saved = args.initial_policy or args.out / "start.safetensors"
    if args.initial_policy is not None or (args.resume and saved.exists()):
        return load_policy(saved)
    model = warm_start(world, WarmStartConfig(), seed=args.seed)  # type: ignore[arg-type]
    if rank == 0:
        save_policy(model, saved, world=args.world, method="warm start", seed=args.seed)
    return model


def _checkpoint(args: TrainArgs) -> Path:
    return args.out / "train.safetensors"


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]


def _say(text: str, code: int) -> int:
    print(" ".join(text.split()), file=sys.stderr)
    return code
