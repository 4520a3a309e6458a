"""What a training run must remember to go on to the same bits: weights, optimizers, history."""

import copy
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from agents.actor_critic import ActorCriticModel
from agents.critic_replay import CriticReplay
from agents.train_config import TrainConfig
from gpr_rl.checkpoint import (
    flatten_optimizer_state,
    load_checkpoint,
    restore_optimizer_state,
    save_checkpoint,
)


@dataclass
class TrainState:
    """The mutable part of a run."""

    model: ActorCriticModel
    reference: ActorCriticModel
    """The warm start, frozen."""
    policy_parameters: list[nn.Parameter]
    policy_optimizer: torch.optim.Adam
    critic_optimizer: torch.optim.Adam
    replay: CriticReplay | None = None
    """Past steps for the critic, where the configuration asks for them."""
    step: int = 0
    """Steps done."""
    history: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def start(
        cls, model: ActorCriticModel, learning_rate: float, config: TrainConfig
    ) -> "TrainState":
        """Return the state before the first step; the model as it is becomes the reference."""
        parameters = list(model.policy_parameters())
        return cls(
            model=model,
            reference=copy.deepcopy(model).eval().requires_grad_(False),
            policy_parameters=parameters,
            policy_optimizer=torch.optim.Adam(parameters, lr=learning_rate, fused=True),
            critic_optimizer=torch.optim.Adam(
                list(model.hte_parameters()), lr=config.critic_learning_rate, fused=True
            ),
            replay=CriticReplay((config.critic_replay + 1) * config.num_requests)
            if config.critic_replay
            else None,
        )

    def save(self, path: str | Path, method: str, config: TrainConfig, seed: int) -> None:
        """Write everything to one file; the file before stays until the new one is whole."""
        policy, policy_meta = flatten_optimizer_state(self.policy_optimizer)
        critic, critic_meta = flatten_optimizer_state(self.critic_optimizer)
        tensors = {
            **_prefixed("model", self.model.state_dict()),
            **_prefixed("reference", self.reference.state_dict()),
            **_prefixed("policy_optimizer", policy),
            **_prefixed("critic_optimizer", critic),
        }
        cursor = None
        if self.replay is not None and len(self.replay):
            content, cursor = self.replay.tensors()
            tensors |= _prefixed("replay", content)
        meta = {
            "method": method,
            "seed": seed,
            "config": asdict(config),
            "step": self.step,
            "policy_optimizer": policy_meta,
            "critic_optimizer": critic_meta,
            "history": self.history,
            "replay_cursor": cursor,
        }
        save_checkpoint(path, tensors, meta)

    def load(self, path: str | Path, method: str, config: TrainConfig, seed: int) -> None:
        """Go back to a stored state.

        Raises:
            ValueError: The file is damaged, or of a run with other settings (named).
        """
        tensors, meta = load_checkpoint(path)
        check_same_run(path, meta, method, config, seed)
        self.model.load_state_dict(_without_prefix("model", tensors))
        self.reference.load_state_dict(_without_prefix("reference", tensors))
        for name in ("policy_optimizer", "critic_optimizer"):
            restore_optimizer_state(getattr(self, name), _without_prefix(name, tensors), meta[name])
        if self.replay is not None and meta["replay_cursor"] is not None:
            self.replay.load(_without_prefix("replay", tensors), meta["replay_cursor"])
        self.step = meta["step"]
        self.history = meta["history"]


def check_same_run(
    path: str | Path, meta: dict, method: str, config: TrainConfig, seed: int
) -> None:
    """Raise ValueError naming the first setting in which a checkpoint differs from this run.

    `num_steps` may grow: a finished run can be continued.
    """
    settings = {"method": method, "seed": seed, **asdict(config)}
    stored = {"method": meta["method"], "seed": meta["seed"], **meta["config"]}
    settings.pop("num_steps")
    for name, value in settings.items():
        if stored.get(name) != value:
            raise ValueError(
                f"{path} was made with {name}={stored.get(name)!r}, this run has {value!r}"
            )


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _without_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    start = prefix + "."
    return {k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)}
