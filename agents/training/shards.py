"""One training step on many processes: the same shards whatever rank computes them.

A step's requests are divided into S shards of equal size. A rank computes the shards that it owns;
what belongs to the whole batch (advantages, means, gradients) is put together from all shards in
their order. So the bits depend on S and not on how many ranks there are. Without a fixed S every
rank has one shard, and gradients meet in torch's DistributedDataParallel.

Dims: S shards, B requests, W ranks.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

_LARGE = ("context", "logits", "log_probs", "reference_log_probs", "request")
"""Entries of a rollout that stay with their shard; the rest is small and known to all ranks."""
Told = Callable[[int], dict[str, Tensor]]


def nothing(_: int) -> dict[str, Tensor]:
    """Tell nothing."""
    return {}


def shares(counts: Sequence[Tensor]) -> list[Tensor]:
    """Return all shards' counts [...] as shares of them together, float64."""
    total = added_up(counts).clamp_min(1).double()
    return [count / total for count in counts]


def added_up(values: Sequence[Tensor]) -> Tensor:
    """Return the sum of some tensors, in their order."""
    total = values[0].clone()
    for value in values[1:]:
        total += value
    return total


def weighted_mean(values: Sequence[Tensor], counts: Sequence[Tensor]) -> Tensor:
    """Return the mean of all terms, given means over `counts` of them; a single one as it is."""
    if len(values) == 1:
        return values[0]
    value, count = torch.stack(list(values)), torch.stack(list(counts)).to(values[0].dtype)
    return (value * count).sum() / count.sum().clamp_min(1)


def _bytes(x: Tensor) -> Tensor:
    # a copy: one element may have any stride, and `contiguous` leaves it
    return x.detach().reshape(-1).clone(memory_format=torch.contiguous_format).view(torch.uint8)


def _tensor(message: Tensor, like: Tensor) -> Tensor:
    return message.clone().view(like.dtype).view(like.shape)  # a copy begins where any type may


class Shards:
    """Which shards of a step are this rank's, and what all of them have found.

    Args:
        num_shards: S; None: one per rank.

    Raises:
        ValueError: The ranks can't share the shards out evenly.
    """

    def __init__(self, num_shards: int | None = None) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.world_size = dist.get_world_size() if together else 1
        self.rank = dist.get_rank() if together else 0
        self.is_fixed = num_shards is not None
        self.num_shards = num_shards or self.world_size
        if self.num_shards % self.world_size:
            raise ValueError(
                f"num_shards must be a multiple of the {self.world_size} ranks, got {num_shards}"
            )

    @property
    def own(self) -> range:
        """The numbers of this rank's shards."""
        size = self.num_shards // self.world_size
        return range(self.rank * size, (self.rank + 1) * size)

    def split(self, values: Tensor) -> list[Tensor]:
        """Return this rank's parts of what all ranks know, [B, ...]; shard s: every S-th from s on.

        So the first n of every shard are together the first n S of the batch, which is what a
        critic's update of n S requests takes.

        Raises:
            ValueError: B is no multiple of S.
        """
        if len(values) % self.num_shards:
            raise ValueError(
                f"num_requests must be a multiple of the {self.num_shards} shards, "
                f"got {len(values)}"
            )
        return [values[number :: self.num_shards] for number in self.own]

    def gather(self, values: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Return what all S shards have found, given what this rank's have.

        Shards have the same names, shapes and dtypes. All travels in one message.
        """
        if self.world_size == 1:
            return list(values)
        first = {name: values[0][name] for name in sorted(values[0])}
        mine = torch.cat([_bytes(value[name]) for value in values for name in first])
        found = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(found, mine)
        sizes = [x.numel() * x.element_size() for x in first.values()]
        taken = []
        for message in found:
            pieces = iter(message.split(sizes * len(values)))
            taken += [{name: _tensor(next(pieces), x) for name, x in first.items()} for _ in values]
        return taken

    def join(self, parts: Sequence[TensorDictBase]) -> TensorDictBase:
        """Return the rollout of the whole batch, of the shards' small entries, shard by shard.

        With one shard it is that shard's rollout itself.
        """
        if self.num_shards == 1:
            return parts[0]
        flat = [dict(part.exclude(*_LARGE).flatten_keys(".").items()) for part in parts]
        found = self.gather(flat)
        entries = {key: torch.cat([part[key] for part in found]) for key in found[0]}
        size = len(parts[0]) * self.num_shards
        return TensorDict(entries, batch_size=[size]).unflatten_keys(".")

    def spread(self, batch: TensorDictBase, parts: Sequence[TensorDictBase]) -> None:
        """Write the entries of a joined batch back into this rank's shards."""
        if self.num_shards > 1:
            pieces = batch.chunk(self.num_shards)
            for part, number in zip(parts, self.own, strict=True):
                part.update(pieces[number])

    def sum(self, values: Sequence[Tensor]) -> Tensor:
        """Return the sum over all shards, added up in their order."""
        return added_up([found["value"] for found in self.gather([{"value": x} for x in values])])

    def mean(self, values: Sequence[Tensor], counts: Sequence[Tensor]) -> Tensor:
        """Return the mean over all shards of numbers that are means over `counts` terms each."""
        parts = [{"value": x, "count": n} for x, n in zip(values, counts, strict=True)]
        found = self.gather(parts)
        return weighted_mean([x["value"] for x in found], [x["count"] for x in found])


class GradientSum:
    """The gradient of a sum of the shards' losses, on every rank.

    Args:
        parameters: What the losses are differentiated by.
        shards: Whose losses these are.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], shards: Shards) -> None:
        self._parameters, self._shards = list(parameters), shards
        self._module: DistributedDataParallel | None = None
        if not shards.is_fixed and shards.world_size > 1:
            self._module = DistributedDataParallel(
                _Called(self._parameters), find_unused_parameters=True
            )
            self._module.register_comm_hook(None, _added)

    def backward(self, losses: Sequence[Tensor], told: Told = nothing) -> list[dict[str, Tensor]]:
        """Set `.grad` of the parameters; return what all shards tell of themselves.

        Args:
            losses: What each of this rank's shards adds to the batch's loss: its mean times its
                share of the terms.
            told: Asked once the gradients of this rank's i-th shard are there; goes with them.
        """
        for parameter in self._parameters:
            parameter.grad = None
        if self._module is not None:
            (loss,) = losses
            self._module(loss).backward()
            return self._shards.gather([told(0)])
        mine = []
        for place, loss in enumerate(losses):
            loss.backward()
            gradient = {"": self._taken()} if self._shards.num_shards > 1 else {}
            mine.append(told(place) | gradient)
        found = self._shards.gather(mine)
        if self._shards.num_shards > 1:
            self._set(added_up([part.pop("") for part in found]))
        return found

    def _taken(self) -> Tensor:
        """Return the gradient as one vector and forget it."""
        parts = [
            torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
            for p in self._parameters
        ]
        for parameter in self._parameters:
            parameter.grad = None
        return torch.cat(parts)

    def _set(self, total: Tensor) -> None:
        sizes = [p.numel() for p in self._parameters]
        for parameter, part in zip(self._parameters, total.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter)


def _added(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Add gradients up, where DistributedDataParallel takes their mean."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


class _Called(nn.Module):
    """Parameters whose loss is computed elsewhere, as DistributedDataParallel wants a module."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.own = nn.ParameterList(parameters)

    def forward(self, loss: Tensor) -> Tensor:
        """Return the loss; its graph tells which parameters it needs."""
        return loss
