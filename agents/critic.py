"""The critic's loss and its updates between policy updates (GPR Eq. 10), also on past steps.

Dims: B requests, K candidates, L levels.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import LazyTensorStorage, ReplayBuffer, RoundRobinWriter

from agents.actor_critic import ActorCriticModel, HTECritic
from agents.candidates import (
    check_above,
    check_range,
    check_shape,
    keep_valid,
    mean_over_candidates,
    resolve_valid,
)
from agents.rollout import check_finite
from agents.shared_config import SharedConfig
from gpr_rl.random import Purpose, uniform

_KEYS = ("context", "codes", "value_target", "valid")


@dataclass(frozen=True, kw_only=True)
class CriticConfig(SharedConfig):
    """The dials of methods with a critic: hepo, hepo_terminal and ppo."""

    discount: float = 1.0
    """gamma of Eq. 8. Not given in the paper; an episode is only L steps long."""
    gae_lambda: float = 0.95
    """lambda of Eq. 8. Not given in the paper."""
    critic_learning_rate: float = 1e-3
    """Adam's, for the HTE. Not given in the paper."""
    critic_updates: int = 4
    """Critic updates per step. Not given in the paper."""
    critic_requests: int = 16
    """Requests per critic update, with all their candidates; the updates walk through the batch. A
    batch of fewer (`num_requests`) is taken whole, and methods without a critic read nothing of
    it. Not given in the paper."""
    critic_warmup_steps: int = 15
    """First steps that train the critic only, for methods with a critic; they count in
    num_steps. Departs from the paper, which trains the HTE before RL and is silent on this."""
    critic_replay: int = 0
    """Earlier steps whose requests the critic's updates draw from as well. Not in the paper."""
    critic_moves_trunk: bool = False
    """Let the value loss move the HSD too; the paper stops that gradient."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("discount", "gae_lambda"):
            check_range(name, getattr(self, name), 0.0, 1.0)
        for name in ("critic_updates", "critic_requests"):
            check_range(name, getattr(self, name), 1)
        for name in ("critic_warmup_steps", "critic_replay"):
            check_range(name, getattr(self, name), 0)
        check_above("critic_learning_rate", self.critic_learning_rate)


def value_loss(
    value: Float[Tensor, "B K L"],
    value_target: Float[Tensor, "B K L"],
    valid: Bool[Tensor, "B K"] | None = None,
) -> Float[Tensor, ""]:
    """Return the mean over valid candidates of sum_l (V(s, z_{1:l-1}) - G_l)^2 (Eq. 10).

    Raises:
        ValueError: A wrong shape.
    """
    check_shape("value", value, "B, K, L")
    check_shape("value_target", value_target, "B, K, L", value.shape)
    mask = resolve_valid(valid, value)
    error = keep_valid(value, mask) - keep_valid(value_target.detach(), mask)
    return mean_over_candidates(error.square(), mask)


def attached_value_loss(model: ActorCriticModel, batch: TensorDict) -> Tensor:
    """Return Eq. 10's loss with the gradient let through to the HSD (an ablation)."""
    hte = model.hte
    if not hasattr(hte, "stop_gradient"):
        raise ValueError("critic_moves_trunk needs a critic with `stop_gradient`, as the HTE's")
    hte.stop_gradient = False
    try:
        value = hte(batch["context"], batch["codes"]).value
    finally:
        hte.stop_gradient = True
    return value_loss(value, batch["value_target"].squeeze(-1), batch["valid"])


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
        self._critic = HTECritic(model)
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
            value = self._critic(part)["state_value"].squeeze(-1)
            loss = value_loss(value, part["value_target"].squeeze(-1), part["valid"])
            check_finite("the critic loss", loss)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
        return sum(losses) / len(losses)
