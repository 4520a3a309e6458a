"""The one loop of all supervised stages: clipped AdamW, warm-up, cosine decay, early stopping.

A stage brings a function that returns the loss of a step; the loop knows nothing of the model.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gpr_rl.pretraining.stage_state import StageState

LossOfStep = Callable[[int], tuple[Tensor, dict[str, float]]]
"""Step number to loss (scalar with a graph) and what to log of it."""
OnStep = Callable[[int, dict[str, float]], None]
Validate = Callable[[], float]
"""Score of the model as it is, for instance HitR on validation requests; higher is better."""


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
    validate_every: int = 50
    """Steps between validations (and checkpoints), for stages that have them."""
    patience: int = 3
    """Validations in a row without a better score, after which the stage stops."""
    bf16: bool = False
    """Run the loss in bfloat16 where the hardware has it (`has_bf16`); elsewhere in float32."""

    def __post_init__(self) -> None:
        least = {"num_steps": 0, "warmup_steps": 0, "validate_every": 1, "patience": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"{name} must be at least {value}, got {getattr(self, name)}")
        for name in ("learning_rate", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {getattr(self, name)}")
        if not 0 < self.max_grad_norm < math.inf:
            raise ValueError(f"max_grad_norm must be finite and above 0, got {self.max_grad_norm}")

    def rate(self, step: int) -> float:
        """Return the learning rate of step `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps)
        return self.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


@dataclass(frozen=True)
class StageResult:
    """How a stage ended."""

    num_steps: int
    """Steps taken, those before an interruption included."""
    best_step: int
    """Steps taken when the best validation came; the model has its weights. `num_steps` without
    validation."""
    best_score: float
    """NaN without validation."""


def train_stage(
    groups: Sequence[Iterable[nn.Parameter]],
    loss_of_step: LossOfStep,
    config: StageConfig,
    on_step: OnStep | None = None,
    name: str = "stage",
    *,
    model: nn.Module | None = None,
    validate: Validate | None = None,
    checkpoint: Path | None = None,
    requests_of_step: Callable[[int], Tensor] | None = None,
) -> StageResult:
    """Run one supervised stage.

    Args:
        groups: What is trained, in groups whose gradients are clipped each by its own norm, so
            that a loud critic can't quieten the policy; nothing else moves.
        loss_of_step: Called with 0..num_steps-1 in order; what it draws must depend on the step
            alone, or a resumed stage differs.
        config: Steps and rates.
        on_step: Called after every step with its number and the logged values.
        name: Of the stage, for messages.
        model: Whose weights are kept; needed for the next two.
        validate: Scored every `validate_every` steps and at the end; the weights of the best score
            are restored, ties to the earlier ones.
        checkpoint: File that is written as often. A stage that finds it goes on from there, to the
            same bits.
        requests_of_step: The request ids of a step's batch, for messages.

    Raises:
        FloatingPointError: A loss or a gradient is not finite; names stage, step and request ids
            where they are known. The checkpoint stays.
        CheckpointError: The checkpoint is damaged.
        ValueError: It is of a stage with other settings or of another model, nothing is to be
            trained, or `model` is missing.
    """
    parts = [list(group) for group in groups]
    parameters = [parameter for part in parts for parameter in part]
    if not any(parameter.requires_grad for parameter in parameters):
        raise ValueError(f"{name}: no parameter to train")
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    if model is None and (validate is not None or checkpoint is not None):
        raise ValueError(f"{name}: validate and checkpoint need the model")
    settings = {"name": name, "validates": validate is not None, **asdict(config)}
    state = StageState(model, optimizer)

    def check_finite(what: str, value: Tensor) -> None:
        if torch.isfinite(value):
            return
        batch = ""
        if requests_of_step is not None:
            batch = f"; request ids {requests_of_step(state.step).tolist()}"
        raise FloatingPointError(f"{name}: {what} is {value.item()} at step {state.step}{batch}")

    if checkpoint is not None and checkpoint.exists():
        state.load(checkpoint, settings)
    while state.step < config.num_steps and state.failures < config.patience:
        step = state.step
        for group in optimizer.param_groups:
            group["lr"] = config.rate(step)
        with _precision(config.bf16, parameters):
            loss, logged = loss_of_step(step)
        check_finite("loss", loss)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norms = [nn.utils.clip_grad_norm_(part, config.max_grad_norm) for part in parts]
        for norm in norms:
            check_finite("gradient norm", norm)
        optimizer.step()
        if on_step is not None:
            on_step(step, {"loss": float(loss.detach()), "grad_norm": float(norms[0]), **logged})
        state.step += 1
        if state.step % config.validate_every == 0 or state.step == config.num_steps:
            if validate is not None:
                state.judge(validate())
            if checkpoint is not None:
                state.save(checkpoint, settings)
    state.restore_best()
    best_step = state.best_step if validate is not None else state.step
    return StageResult(state.step, best_step, state.best_score)


def has_bf16(device: torch.device) -> bool:
    """Say whether a device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def _precision(bf16: bool, parameters: list[nn.Parameter]) -> AbstractContextManager:
    device = parameters[0].device if parameters else torch.device("cpu")
    if bf16 and has_bf16(device):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
