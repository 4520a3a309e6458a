"""What a training run must remember to go on to the same bits: weights, optimizers, history."""

import copy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from agents.actor_critic import ActorCriticModel
from agents.candidates import AdBaseline
from agents.rollout import RolloutSource
from agents.train_config import TrainConfig
from agents.training.critic_learner import CriticLearner
from agents.training.shards import GradientSum, Shards
from gpr_rl.checkpoint import (
    below,
    flatten_optimizer_state,
    load_checkpoint,
    restore_optimizer_state,
    save_checkpoint,
)


@dataclass(frozen=True)
class TrainRun(RolloutSource):
    """What doesn't change in a run: world, reward, configuration, seed and method."""

    config: TrainConfig
    method: str


@dataclass
class TrainState:
    """The mutable part of a run."""

    model: ActorCriticModel
    reference: ActorCriticModel
    """The warm start, frozen."""
    optimizer: torch.optim.Adam
    """Of the policy."""
    critic: CriticLearner
    shards: Shards
    """Which parts of a step are this process's."""
    policy_gradient: GradientSum
    baseline: AdBaseline | None = None
    """Of the terminal rewards, where the configuration asks for it."""
    step: int = 0
    """Steps done."""
    history: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def start(cls, model: ActorCriticModel, learning_rate: float, run: TrainRun) -> "TrainState":
        """Return the state before the first step; the model as it is becomes the reference."""
        shards, policy = Shards(run.config.num_shards), list(model.policy_parameters())
        return cls(
            model=model,
            reference=copy.deepcopy(model).eval().requires_grad_(False),
            optimizer=torch.optim.Adam(policy, lr=learning_rate, fused=True),
            critic=CriticLearner(model, run.config, run.seed, shards),
            shards=shards,
            policy_gradient=GradientSum(policy, shards),
            baseline=AdBaseline(run.world.trie.num_ads, device=policy[0].device)
            if run.config.baseline == "ad"
            else None,
        )

    @property
    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"policy_optimizer": self.optimizer, "critic_optimizer": self.critic.optimizer}

    def save(self, path: str | Path, run: TrainRun) -> None:
        """Write everything to one file; the file before stays until the new one is whole.

        Of several processes the first writes; all must call this.
        """
        parts = {"model": self.model.state_dict(), "reference": self.reference.state_dict()}
        meta: dict[str, Any] = {
            "method": run.method,
            "seed": run.seed,
            "config": asdict(run.config),
            "step": self.step,
            "history": self.history,
            "replay_cursor": None,
        }
        for name, optimizer in self._optimizers.items():
            parts[name], meta[name] = flatten_optimizer_state(optimizer)
        if self.baseline is not None:
            parts["baseline"] = {"total": self.baseline.total, "count": self.baseline.count}
        replayed = self.critic.replayed()
        if replayed is not None:
            parts["replay"], meta["replay_cursor"] = replayed
        if self.shards.rank > 0:
            return
        named = {f"{part}.{name}": x for part, own in parts.items() for name, x in own.items()}
        save_checkpoint(path, named, meta)

    def load(self, path: str | Path, run: TrainRun) -> None:
        """Go back to a stored state. `num_steps` may grow: a finished run can be continued.

        Raises:
            ValueError: The file is damaged, or of a run with other settings (named).
        """
        tensors, meta = load_checkpoint(path)
        stored = {**meta, **meta["config"]}
        settings = {"method": run.method, "seed": run.seed, **asdict(run.config)}
        for name, setting in settings.items():
            value = list(setting) if isinstance(setting, tuple) else setting  # as JSON has it
            if name != "num_steps" and stored.get(name) != value:
                raise ValueError(
                    f"{path} was made with {name}={stored.get(name)!r}, this run has {value!r}"
                )
        self.model.load_state_dict(below("model.", tensors))
        self.reference.load_state_dict(below("reference.", tensors))
        for name, optimizer in self._optimizers.items():
            restore_optimizer_state(optimizer, below(f"{name}.", tensors), meta[name])
        if self.baseline is not None:
            self.baseline.total.copy_(tensors["baseline.total"])
            self.baseline.count.copy_(tensors["baseline.count"])
        if meta["replay_cursor"] is not None:
            self.critic.load_replay(below("replay.", tensors), meta["replay_cursor"])
        self.step = meta["step"]
        self.history = meta["history"]
