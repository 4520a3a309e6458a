"""The HHD as TorchRL actor and the HTE as TorchRL critic of environments: one code per step.

For `envs.AdRequestTorchEnv`, `envs.AdDayTorchEnv` and wrapped Gymnasium environments, under
TorchRL's collectors, losses and replay buffers. `agents.actor_critic` scores whole paths and runs
the HSD once per request; here it runs once per step, as an environment's interface demands, and
for K rows that share a request once for all of them.

Dims: L levels, V codes per level, n steps (all batch dimensions of a TensorDict, flattened), K
candidates.
"""

from typing import Any, ClassVar

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential
from torch import Tensor

from agents.actor_critic import ActorCriticModel, HTECritic, PolicyLogits, make_policy_head
from agents.candidates import check_range
from envs.spaces import TOKEN_KEYS, request_from_observation

_STATE_KEYS = (*TOKEN_KEYS, "popularity", "prefix", "level")


class CodeLogits(PolicyLogits):
    """Observation -> `logits` [..., V] of the next code, and `legal_mask` bool [..., V].

    `legal_mask` is `action_mask`, which Gymnasium has as int8. After a path's last code the
    logits are those of level L, for want of a next one.

    `policy_version` [...] says which weights these were: it is a buffer beside them, so whatever
    copies the weights elsewhere copies it too, and weights that did not arrive show their age. A
    learner adds 1 after every update (`next_version`).
    """

    in_keys: ClassVar[list[str]] = [*_STATE_KEYS, "action_mask"]
    out_keys: ClassVar[list[str]] = ["logits", "legal_mask", "policy_version"]
    version: Tensor

    def __init__(
        self, model: ActorCriticModel, *, temperature: float = 1.0, candidates: int = 1
    ) -> None:
        """Store the model (shared); `candidates` is that of the environment."""
        super().__init__(model, temperature=temperature)
        check_range("candidates", candidates, 1)
        self.candidates = candidates
        self.register_buffer("version", torch.zeros((), dtype=torch.int64))

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the same TensorDict with the out-keys set.

        Raises:
            ValueError: With `candidates` K > 1: a batch that is not [B * K], or whose neighbouring
                rows do not share a request.
        """
        context, prefix, level = _state(self.model, tensordict, self.candidates)
        levels = self.model.logits(context, prefix).flatten(0, 1)  # [n, L, V]
        index = level.clamp_max(levels.shape[1] - 1)[:, None, None]
        logits = levels.gather(1, index.expand(-1, 1, levels.shape[2])).squeeze(1)
        shape = (*tensordict.batch_size, levels.shape[2])
        tensordict.set("logits", (logits / self.temperature).reshape(shape))
        tensordict.set("policy_version", self.version.expand(tensordict.batch_size).clone())
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
    model: ActorCriticModel, *, temperature: float = 1.0, candidates: int = 1
) -> ProbabilisticTensorDictSequential:
    """Return the policy observation -> `action`, `action_log_prob`, among the legal codes.

    With `candidates` K, as the environment has it, the HSD runs once for K neighbouring rows; the
    policy then takes batches of the environment only, [B * K].
    """
    logits = CodeLogits(model, temperature=temperature, candidates=candidates)
    return ProbabilisticTensorDictSequential(logits, make_policy_head("action"))


def next_version(actor: ProbabilisticTensorDictSequential) -> int:
    """Count an update of the weights of `make_code_actor`'s policy; return the new version."""
    logits = actor[0]
    assert isinstance(logits, CodeLogits)
    logits.version += 1
    return int(logits.version)


def _state(
    model: ActorCriticModel, tensordict: TensorDictBase, candidates: int = 1
) -> tuple[Any, Tensor, Tensor]:
    """Return the context [n / K], the prefixes as paths [n / K, K, L] and the levels [n]."""
    steps = tensordict.select(*_STATE_KEYS).reshape(-1)
    if candidates > 1:
        if tensordict.ndim != 1 or len(steps) % candidates:
            raise ValueError(
                f"an actor with candidates={candidates} takes a batch of [B * {candidates}], got "
                f"{list(tensordict.batch_size)}"
            )
        asked = tensordict["request_id"].view(-1, candidates)
        if (asked != asked[:, :1]).any():
            raise ValueError(
                f"rows do not share their requests by {candidates}: was the environment made with "
                f"candidates={candidates}?"
            )
    context = model.encode(request_from_observation(steps[::candidates]))
    prefix = steps["prefix"]
    return context, prefix.view(-1, candidates, prefix.shape[1]), steps["level"]
