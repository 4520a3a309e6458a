"""The critic's updates between policy updates (GPR Eq. 10), also on past steps.

Dims: B requests, K candidates, L levels.
"""

import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import LazyTensorStorage, ReplayBuffer, RoundRobinWriter

from agents.actor_critic import ActorCriticModel, HTECritic, make_policy_head
from agents.critic import CriticConfig
from agents.objectives.surrogate import SurrogateLoss
from agents.rollout import check_finite
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
            storage=LazyTensorStorage(num_requests), writer=RoundRobinWriter()
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

    def __init__(self, model: ActorCriticModel, config: CriticConfig, seed: int) -> None:
        """Store the model (shared); `seed` is the root of the replay's draws."""
        self.loss = SurrogateLoss(make_policy_head(), HTECritic(model))
        self._config, self._seed = config, seed
        self.optimizer = torch.optim.Adam(
            list(model.hte_parameters()), lr=config.critic_learning_rate, fused=True
        )
        steps = config.critic_replay
        self.replay = CriticReplay((steps + 1) * config.num_requests) if steps else None

    def update(self, data: TensorDict, step: int) -> float:
        """Learn from a step's rollout; return the mean loss of the updates.

        Without a replay the updates walk through the step's own requests; with one they draw
        requests from the last `critic_replay` steps and this one. Replayed targets are those of the
        policy of their time.
        """
        config = self._config
        data = data.select(*_KEYS).detach()
        num_requests = min(config.critic_requests, config.num_requests)
        row = torch.arange(num_requests)
        if self.replay is not None:
            self.replay.extend(data)
        losses = []
        for update in range(config.critic_updates):
            if self.replay is None:
                part = data[(row + update * num_requests) % len(data)]
            else:
                keys = (torch.tensor(step), torch.tensor(update), row)
                draw = uniform(self._seed, Purpose.CRITIC_REPLAY, *keys)
                part = self.replay.read((draw * len(self.replay)).long(), data)
            loss = self.loss.loss_critic(part)
            check_finite("the critic loss", loss)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
        return sum(losses) / len(losses)
