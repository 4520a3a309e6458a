"""The critic's updates between policy updates (GPR Eq. 10), with an optional replay of past steps.

Dims: B requests, K candidates, L levels.
"""

import torch
from tensordict import TensorDict

from agents.actor_critic import HTECritic
from agents.objectives.surrogate_loss import value_loss
from agents.rollout import NonFiniteError
from agents.train_config import TrainConfig
from agents.train_state import TrainState
from gpr_rl.random import Purpose, uniform

_KEYS = ("context", "codes", "value_target", "valid")


def update_critic(state: TrainState, data: TensorDict, config: TrainConfig, seed: int) -> float:
    """Fit the HTE to the value targets (Eq. 10); return the mean loss of the updates.

    Without a replay the updates walk through the step's own requests; with one they draw requests
    from the last `critic_replay` steps and this one. Replayed targets are those of the policy of
    their time.
    """
    critic = HTECritic(state.model)
    data = data.select(*_KEYS).detach()
    num_requests = min(config.critic_requests, config.num_requests)
    row = torch.arange(num_requests)
    if state.replay is not None:
        state.replay.extend(data)
    losses = []
    for update in range(config.critic_updates):
        if state.replay is None:
            part = data[(row + update * num_requests) % len(data)]
        else:
            keys = (torch.tensor(state.step), torch.tensor(update), row)
            draw = uniform(seed, Purpose.CRITIC_REPLAY, *keys)
            part = state.replay.read((draw * len(state.replay)).long(), data)
        value = critic(part)["state_value"].squeeze(-1)
        loss = value_loss(value, part["value_target"].squeeze(-1), part["valid"])
        if not torch.isfinite(loss):
            raise NonFiniteError(f"the critic loss must be finite, got {loss.item()}")
        state.critic_optimizer.zero_grad()
        loss.backward()
        state.critic_optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)
