"""Serve a policy over HTTP: `python -m gpr_rl.serve POLICY --world DIR --port 8000`.

`POST /recommend` with `{"user_id": 3}` or `{"request_id": 17}` gives the ads for a user's latest
request or a request of the world; `GET /healthz` and `GET /metrics` say how the service is. SIGTERM
stops it once all that it accepted is answered.
"""

import importlib
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from gpr_rl.checks import check_finite
from gpr_rl.decoding import Recommender, beam_search
from gpr_rl.models import HHD
from gpr_rl.policy import load_policy

_EXTRA = ("fastapi", "pydantic", "prometheus_client", "starlette", "uvicorn")


@dataclass(frozen=True, kw_only=True)
class ServeArgs:
    """Serve a policy over HTTP."""

    policy: Annotated[Path, tyro.conf.Positional]
    """What `save_policy` wrote, e.g. DIR/policy.safetensors of `python -m agents.train`."""
    world: str
    """A world's directory or name."""
    host: str = "127.0.0.1"
    """Address to listen on. There is neither encryption nor a login: open it to a network only
    behind something that has both."""
    port: int = 8_000
    """0: any free one, which the first line says."""
    num_candidates: int = 40
    """K, ads in a list, at most."""
    width: int | None = None
    """Of the beam when idle; K if not given."""
    min_width: int | None = None
    """Of the beam when the queue is full; half of K if not given."""
    max_batch: int = 64
    """Requests searched together, at most."""
    deadline_ms: float = 5.0
    """How long the first request of a batch waits for others."""
    max_queue: int | None = None
    """Requests that may wait; four batches if not given."""
    cache_s: float = 60.0
    """Seconds that an answer is used again; 0: never."""
    precision: Literal["float32", "bf16"] = "float32"
    """What the model multiplies in."""
    max_body_bytes: int = 65_536
    """Of an HTTP request."""
    grace_s: float = 30.0
    """Seconds after SIGTERM at which connections that are still open are cut."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 2 on a user's mistake."""
    args = tyro.cli(ServeArgs, args=arguments, description=__doc__)
    try:
        _serve(args)
    except (ValueError, OSError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


def _serve(args: ServeArgs) -> None:
    check_finite(0, grace_s=args.grace_s)
    if not 0 <= args.port < 65_536:
        raise ValueError(f"--port must lie in 0..65535, got {args.port}")
    try:
        from gpr_rl.serve.app import make_app
        from gpr_rl.serve.server import listen, run
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        raise ValueError(f"{error.name} is not installed: pip install 'gpr_rl[serve]'") from error
    policy = load_policy(args.policy)
    # gpr_rl imports no simulator; the command only opens what the user names
    world = importlib.import_module("simulators.make").load_world(args.world)
    _check_same_vocabulary(args, policy, world)
    recommender = Recommender(
        policy,
        world,
        args.max_batch,
        args.deadline_ms,
        args.cache_s,
        args.precision,
        num_candidates=args.num_candidates,
        width=args.width,
        min_width=args.min_width,
        max_queue=args.max_queue,
    )
    with recommender:
        first = torch.tensor([0])
        # so that the first caller doesn't wait for the tables that this makes
        beam_search(policy, world.request(first), world.trie, 1, world.eligible(first))
        world.outcome(first, torch.zeros_like(first)[:, None])
        app = make_app(recommender, world, max_body_bytes=args.max_body_bytes)
        listener = listen(args.host, args.port)
        host, port = listener.getsockname()[:2]
        print(f"serving {args.policy} on http://{host}:{port}", flush=True)
        run(app, recommender, listener, args.grace_s)


def _check_same_vocabulary(args: ServeArgs, policy: HHD, world: Any) -> None:
    ours, theirs = asdict(policy.spec), asdict(world.spec)
    for name, value in ours.items():
        if value != theirs[name]:
            raise ValueError(
                f"{args.policy} was made for another world: its {name} is {value},"
                f" that of {args.world} is {theirs[name]}"
            )


if __name__ == "__main__":
    sys.exit(main())
