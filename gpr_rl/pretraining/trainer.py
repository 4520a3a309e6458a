"""The one loop of all supervised stages: clipped Adam, warm-up, cosine decay.

A stage brings a function that returns the loss of a step; the loop knows nothing of the model.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LossOfStep = Callable[[int], tuple[Tensor, dict[str, float]]]
"""Step number to loss (scalar with a graph) and what to log of it."""
OnStep = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One supervised stage. The paper gives no numbers for any of these."""

    num_steps: int = 300
    """Gradient steps."""
    learning_rate: float = 3e-3
    """Peak rate of Adam."""
    warmup_steps: int = 20
    """Steps of linear warm-up; cosine decay to a tenth of the peak follows."""
    weight_decay: float = 0.01
    """Decoupled weight decay (AdamW)."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""

    def __post_init__(self) -> None:
        if self.num_steps < 0:
            raise ValueError(f"num_steps must be at least 0, got {self.num_steps}")

    def rate(self, step: int) -> float:
        """Return the learning rate of step `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps)
        return self.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


def train_stage(
    groups: Sequence[Iterable[nn.Parameter]],
    loss_of_step: LossOfStep,
    config: StageConfig,
    on_step: OnStep | None = None,
    name: str = "stage",
) -> None:
    """Run one supervised stage.

    Args:
        groups: What is trained, in groups whose gradients are clipped each by its own norm, so
            that a loud critic can't quieten the policy; nothing else moves.
        loss_of_step: Called with 0..num_steps-1 in order.
        config: Steps and rates.
        on_step: Called after every step with its number and the logged values.
        name: Of the stage, for messages.

    Raises:
        FloatingPointError: A loss is not finite; names stage and step.
    """
    parts = [list(group) for group in groups]
    optimizer = torch.optim.AdamW(
        [parameter for part in parts for parameter in part],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=True,
    )
    for step in range(config.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = config.rate(step)
        loss, logged = loss_of_step(step)
        if not bool(torch.isfinite(loss)):
            raise FloatingPointError(f"{name}: loss is {loss.item()} at step {step}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norms = [nn.utils.clip_grad_norm_(part, config.max_grad_norm) for part in parts]
        optimizer.step()
        if on_step is not None:
            on_step(step, {"loss": float(loss.detach()), "grad_norm": float(norms[0]), **logged})
