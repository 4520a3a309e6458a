"""The critic's updates between policy updates (GPR Eq. 10), also on past steps.

Dims: B requests, K candidates, L levels.
"""

from collections.abc import Sequence

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import LazyTensorStorage, ReplayBuffer, RoundRobinWriter

from agents.actor_critic import ActorCriticModel, HTECritic, make_policy_head
from agents.critic import CriticConfig
from agents.objectives.surrogate import SurrogateLoss
from agents.rollout import check_finite
from agents.training.shards import GradientSum, Shards, added_up, shares
from gpr_rl.random import Purpose, uniform

_KEYS = ("context", "codes", "value_target", "valid")


class CriticReplay:
    """torchrl's replay buffer over the requests of the last steps, the oldest leave first.

    It is read at keyed indices, so that runs are the same bit for bit: torchrl's samplers draw from
    the global generator.
    """

    def __init__(self, num_requests: int) -> None:
        """Make an empty buffer for `num_requests` requests with their candidates."""
        self._buffer = ReplayBuffer(
            storage=LazyTensorStorage(num_requests, device="auto"), writer=RoundRobinWriter()
        )

    def __len__(self) -> int:
        return len(self._buffer)

    def extend(self, data: TensorDict) -> None:
        """Add requests, batch [B]."""
        self._buffer.extend(data.to_tensordict())

    def read(self, index: Tensor, like: TensorDict) -> TensorDict:
        """Return the requests at int64 [n] indices, in the types that `like` has."""
        part = self._buffer[index]
        part["context"] = type(like["context"]).from_tensordict(part["context"])
        return part

    def tensors(self) -> tuple[dict[str, Tensor], int]:
        """Return the content, flat, and where the next request goes."""
        flat = self._buffer[:].flatten_keys(".")
        return dict(flat.items()), self._buffer.writer.state_dict()["_cursor"]

    def load(self, tensors: dict[str, Tensor], cursor: int) -> None:
        """Take in what `tensors` returned; the buffer must be empty."""
        size = len(next(iter(tensors.values())))
        self._buffer.extend(TensorDict(tensors, batch_size=[size]).unflatten_keys("."))
        self._buffer.writer.load_state_dict({"_cursor": cursor})


class CriticLearner:
    """Fits the HTE to the value targets (Eq. 10), with a replay where the configuration asks so."""

    def __init__(
        self, model: ActorCriticModel, config: CriticConfig, seed: int, shards: Shards
    ) -> None:
        """Store the model (shared); `seed` is the root of the replay's draws."""
        critic = HTECritic(model, precision=config.precision)
        self.loss = SurrogateLoss(make_policy_head(), critic)
        self._config, self._seed, self._shards = config, seed, shards
        parameters = list(model.hte_parameters())
        self.optimizer = torch.optim.Adam(parameters, lr=config.critic_learning_rate, fused=True)
        self._gradient = GradientSum(parameters, shards)
        size = (config.critic_replay + 1) * config.num_requests // shards.num_shards
        self._replays = [CriticReplay(size) for _ in shards.own] if config.critic_replay else None

    def update(self, parts: Sequence[TensorDict], batch: TensorDictBase, step: int) -> float:
        """Learn from this rank's shards of a step; return the mean loss of the updates.

        Without a replay the updates walk through each shard's own requests; with one they draw
        requests from the last `critic_replay` steps and this one. Replayed targets are those of the
        policy of their time. `batch` are all shards' small entries (`Shards.join`).
        """
        config, shards = self._config, self._shards
        parts = [part.select(*_KEYS).detach() for part in parts]
        if self._replays is not None:
            for replay, part in zip(self._replays, parts, strict=True):
                replay.extend(part)
        done = []
        for update in range(config.critic_updates):
            taken = [self._part(place, part, step, update) for place, part in enumerate(parts)]
            losses = [self.loss.loss_critic(part) for part in taken]
            if shards.num_shards > 1:
                share = self._shares(taken, batch, update)
                losses = [loss * part for loss, part in zip(losses, share, strict=True)]
            for loss in losses:
                check_finite("the critic loss", loss)
            told = [{"loss": loss.detach()} for loss in losses]
            found = self._gradient.backward(losses, told.__getitem__)
            self.optimizer.step()
            done.append(added_up([part["loss"] for part in found]).item())
        return sum(done) / len(done)

    def _shares(
        self, taken: Sequence[TensorDict], batch: TensorDictBase, update: int
    ) -> list[Tensor]:
        """Return which share of an update's candidates each of this rank's shards has."""
        shards = self._shards
        if self._replays is None:  # everybody knows which requests the others take
            pieces = batch.select("valid").chunk(shards.num_shards)
            every = [piece["valid"][self._rows(len(piece), update)].sum() for piece in pieces]
            found = shares(every)
            return [found[number] for number in shards.own]
        counts = shards.gather([{"count": part["valid"].sum()} for part in taken])
        found = shares([part["count"] for part in counts])
        return [found[number] for number in shards.own]

    def _rows(self, length: int, update: int) -> Tensor:
        """Return the requests of a shard that an update without a replay takes, int64 [n]."""
        size = min(self._config.critic_requests, self._config.num_requests)
        row = torch.arange(max(1, size // self._shards.num_shards))
        return (row + update * len(row)) % length

    def _part(self, place: int, part: TensorDict, step: int, update: int) -> TensorDict:
        """Return the requests of a shard's next update; `place` is its place among this rank's."""
        rows = self._rows(len(part), update)
        if self._replays is None:
            return part[rows]
        replay, number = self._replays[place], self._shards.own[place]
        row = torch.arange(len(rows)) + number * len(rows)
        draw = uniform(
            self._seed, Purpose.CRITIC_REPLAY, torch.tensor(step), torch.tensor(update), row
        )
        return replay.read((draw * len(replay)).long(), part)

    def replayed(self) -> tuple[dict[str, Tensor], int] | None:
        """Return what all shards' replays hold, shard by shard, and where the next request goes."""
        if self._replays is None or not len(self._replays[0]):
            return None
        contents = [replay.tensors() for replay in self._replays]
        names = contents[0][0]
        found = self._shards.gather([tensors for tensors, _ in contents])
        return {name: torch.stack([x[name] for x in found]) for name in names}, contents[0][1]

    def load_replay(self, tensors: dict[str, Tensor], cursor: int) -> None:
        """Take in what `replayed` returned; the replays must be empty."""
        device = self.optimizer.param_groups[0]["params"][0].device
        for replay, number in zip(self._replays or (), self._shards.own, strict=True):
            replay.load({name: x[number].to(device) for name, x in tensors.items()}, cursor)
