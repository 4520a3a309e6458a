"""A remedy against reward hacking: many rankers, and the mean less their spread as the reward.

Where the rankers know little they disagree; a policy that is paid the mean less a multiple of the
spread has nothing to gain from their errors. Training only: results are measured by the world's own
rankers and by the truth.

Dims: B requests, K candidates, M rankers.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from gpr_rl.checkpoint import below, load_checkpoint, save_checkpoint
from gpr_rl.checks import check_at_least
from gpr_rl.random import Purpose, random_bits, uniform
from simulators.rankers.frozen import FrozenRankers, ranker_tensors, restore_rankers
from simulators.rankers.training import RankerLog, RankerTraining
from simulators.world import World
from simulators.world.features import Counts, RankerInput


class PessimisticRankers(nn.Module):
    """pCTR and pCVR as the mean over members less `pessimism` standard deviations, at least 0."""

    def __init__(self, members: Sequence[FrozenRankers], pessimism: float) -> None:
        super().__init__()
        if len(members) < 2:
            raise ValueError(f"an ensemble needs at least 2 rankers, got {len(members)}")
        check_at_least(0, pessimism=pessimism)
        self.members = nn.ModuleList(members)
        self.pessimism = pessimism

    def forward(
        self, inputs: RankerInput, past: Counts, ad_id: Tensor, *, exact: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return pCTR and pCVR, float32 [B, K] each."""
        said = [member(inputs, past, ad_id, exact=exact) for member in self.members]
        parts = [torch.stack(part) for part in zip(*said, strict=True)]
        spreads = [part.std(0, correction=0) for part in parts]
        pctr, pcvr = (
            (part.mean(0) - self.pessimism * spread).clamp_min(0.0)
            for part, spread in zip(parts, spreads, strict=True)
        )
        return pctr, pcvr


def pessimistic(
    world: World,
    *,
    seed: int,
    num_rankers: int = 4,
    pessimism: float = 1.0,
    training: RankerTraining | None = None,
    path: Path | None = None,
) -> World:
    """Return the world with an ensemble in the place of its built-in rankers; the rest is shared.

    The seed is the root of the initial weights and of the resamples of users. A safetensors file
    at `path` is read if it is there, else written.

    Raises:
        ValueError: Fewer than 2 rankers, or a negative pessimism.
    """
    if path is not None and path.exists():
        stored, _ = load_checkpoint(path)
        members = [restore_rankers(world, below(f"{m}/", stored)) for m in range(num_rankers)]
        return world.replace(rankers=PessimisticRankers(members, pessimism))
    log = RankerLog.of(world, training or RankerTraining())
    members = [_train_member(log, member, seed) for member in range(num_rankers)]
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{m}/{k}": v for m, f in enumerate(members) for k, v in ranker_tensors(f).items()
        }
        save_checkpoint(path, tensors, {"num_rankers": num_rankers, "seed": seed})
    return world.replace(rankers=PessimisticRankers(members, pessimism))


def _train_member(log: RankerLog, member: int, seed: int) -> FrozenRankers:
    """Fit rankers on a resample of the users, and calibrate them as the world's own are."""
    number, num_users = torch.tensor(member), len(log.world.users)
    drawn = uniform(seed, Purpose.RANKER_ENSEMBLE, number, torch.arange(num_users))
    weight = torch.bincount((drawn * num_users).long(), minlength=num_users)
    user = torch.tensor(log.world.request_user[log.first :][: log.num_fitted])
    rows = torch.arange(log.num_fitted).repeat_interleave(weight[user])
    own_seed = int(random_bits(seed, Purpose.RANKER_ENSEMBLE, number) & 0x7FFFFFFF)
    return log.fit(own_seed, log.rows[rows])[0]
