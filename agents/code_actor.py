"""The HHD as TorchRL actor and the HTE as TorchRL critic of environments: one code per step.

For `envs.AdRequestTorchEnv`, `envs.AdDayTorchEnv` and wrapped Gymnasium environments, under
TorchRL's collectors, losses and replay buffers. `agents.actor_critic` scores whole paths and runs
the HSD once per request; here it runs once per step, as an environment's interface demands.

Dims: L levels, V codes per level, n steps (all batch dimensions of a TensorDict, flattened).
"""

from typing import Any, ClassVar

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential
from torch import Tensor

from agents.actor_critic import ActorCriticModel, HTECritic, PolicyLogits, make_policy_head
from envs.spaces import TOKEN_KEYS, request_from_observation

_STATE_KEYS = (*TOKEN_KEYS, "popularity", "prefix", "level")


class CodeLogits(PolicyLogits):
    """Observation -> `logits` [..., V] of the next code, and `legal_mask` bool [..., V].

    `legal_mask` is `action_mask`, which Gymnasium has as int8. After a path's last code the
    logits are those of level L, for want of a next one.
    """

    in_keys: ClassVar[list[str]] = [*_STATE_KEYS, "action_mask"]
    out_keys: ClassVar[list[str]] = ["logits", "legal_mask"]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the same TensorDict with the out-keys set."""
        context, prefix, level = _state(self.model, tensordict)
        levels = self.model.logits(context, prefix)[:, 0]  # [n, L, V]
        index = level.clamp_max(levels.shape[1] - 1)[:, None, None]
        logits = levels.gather(1, index.expand(-1, 1, levels.shape[2])).squeeze(1)
        shape = (*tensordict.batch_size, levels.shape[2])
        tensordict.set("logits", (logits / self.temperature).reshape(shape))
        return tensordict.set("legal_mask", tensordict["action_mask"].bool())


class CodeCritic(HTECritic):
    """Observation -> `state_value` [..., 1], V(s, z_{1:level}) in units of the reward scale.

    Scale the environment's reward likewise: `RewardScaling(0.0, 1 / world.reward_scale)`. After a
    path's last code the value is 0. No gradient reaches HSD and PTD.
    """

    in_keys: ClassVar[list[str]] = list(_STATE_KEYS)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the same TensorDict with the out-key set."""
        with torch.no_grad():
            context, prefix, level = _state(self.model, tensordict)
        values = self.model.hte(context, prefix).value[:, 0]  # [n, L]
        last = values.shape[1] - 1
        value = values.gather(1, level.clamp_max(last)[:, None])
        value = value.masked_fill(level[:, None] > last, 0.0)
        return tensordict.set("state_value", value.reshape(*tensordict.batch_size, 1))


def make_code_actor(
    model: ActorCriticModel, *, temperature: float = 1.0
) -> ProbabilisticTensorDictSequential:
    """Return the policy observation -> `action`, `action_log_prob`, among the legal codes."""
    logits = CodeLogits(model, temperature=temperature)
    return ProbabilisticTensorDictSequential(logits, make_policy_head("action"))


def _state(model: ActorCriticModel, tensordict: TensorDictBase) -> tuple[Any, Tensor, Tensor]:
    """Return the context [n], the prefixes as paths [n, 1, L] and the levels [n]."""
    steps = tensordict.select(*_STATE_KEYS).reshape(-1)
    context = model.encode(request_from_observation(steps))
    return context, steps["prefix"][:, None], steps["level"]
