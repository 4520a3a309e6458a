"""The one loop of all supervised stages: clipped AdamW, warm-up, cosine decay, early stopping.

A stage brings a function that returns the loss of a step; the loop knows nothing of the model.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gpr_rl.checkpoint import (
    below,
    flatten_optimizer_state,
    load_checkpoint,
    restore_optimizer_state,
    save_checkpoint,
)
from gpr_rl.checks import check_at_least, check_finite, check_positive

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
        check_at_least(0, num_steps=self.num_steps, warmup_steps=self.warmup_steps)
        check_at_least(1, validate_every=self.validate_every, patience=self.patience)
        check_finite(0, learning_rate=self.learning_rate, weight_decay=self.weight_decay)
        check_positive(max_grad_norm=self.max_grad_norm)

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


@dataclass(frozen=True)
class Keep:
    """Which weights of a stage are kept, and where."""

    model: nn.Module
    """Whose weights."""
    validate: Validate | None = None
    """Scored every `validate_every` steps and at the end; the weights of the best score are
    restored, ties to the earlier ones."""
    checkpoint: Path | None = None
    """File that is written as often. A stage that finds it goes on from there, to the same bits."""


def train_stage(
    groups: Sequence[Iterable[nn.Parameter]],
    loss_of_step: LossOfStep,
    config: StageConfig,
    on_step: OnStep | None = None,
    name: str = "stage",
    *,
    keep: Keep | None = None,
    requests_of_step: Callable[[int], Tensor] | None = None,
) -> StageResult:
    """Run one supervised stage, which moves the parameters in `groups` and nothing else.

    The gradients of each group are clipped by its own norm, so that a loud critic can't quieten the
    policy. `loss_of_step` is called with 0..num_steps-1 in order; what it draws must depend on the
    step alone, or a resumed stage differs. `on_step` gets every step's number and logged values.
    `name` and `requests_of_step`, the request ids of a step's batch, are for messages.

    Raises:
        FloatingPointError: A loss or a gradient is not finite; names stage, step and request ids
            where they are known. The checkpoint stays.
        CheckpointError: The checkpoint is damaged.
        ValueError: It is of a stage with other settings or of another model, or nothing is to be
            trained.
    """
    parts = [list(group) for group in groups]
    parameters = [parameter for part in parts for parameter in part]
    if not any(parameter.requires_grad for parameter in parameters):
        raise ValueError(f"{name}: no parameter to train")
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    keep, device = keep or Keep(nn.Identity()), parameters[0].device
    settings = {"name": name, "validates": keep.validate is not None, **asdict(config)}
    state = _State(keep, optimizer, settings)

    def need_finite(what: str, value: Tensor) -> None:
        if torch.isfinite(value):
            return
        batch = ""
        if requests_of_step is not None:
            batch = f"; request ids {requests_of_step(state.step).tolist()}"
        raise FloatingPointError(f"{name}: {what} is {value.item()} at step {state.step}{batch}")

    while state.step < config.num_steps and state.failures < config.patience:
        step = state.step
        for group in optimizer.param_groups:
            group["lr"] = config.rate(step)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16 and has_bf16(device)):
            loss, logged = loss_of_step(step)
        need_finite("loss", loss)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norms = [nn.utils.clip_grad_norm_(part, config.max_grad_norm) for part in parts]
        for norm in norms:
            need_finite("gradient norm", norm)
        optimizer.step()
        if on_step is not None:
            on_step(step, {"loss": float(loss.detach()), "grad_norm": float(norms[0]), **logged})
        state.step += 1
        if state.step % config.validate_every == 0 or state.step == config.num_steps:
            state.take_stock()
    state.restore_best()
    best_step = state.best_step if keep.validate is not None else state.step
    return StageResult(state.step, best_step, state.best_score)


class _State:
    """The mutable part of a stage; goes on from the checkpoint where there is one."""

    def __init__(self, keep: Keep, optimizer: torch.optim.Optimizer, settings: dict) -> None:
        self._keep, self._optimizer, self._settings = keep, optimizer, settings
        self.step = self.failures = self.best_step = 0
        self.best_score = math.nan
        self._best: dict[str, Tensor] = {}
        if keep.checkpoint is not None and keep.checkpoint.exists():
            self._load(keep.model, keep.checkpoint)

    def take_stock(self) -> None:
        """Validate, remember the best weights so far, and write the checkpoint."""
        if self._keep.validate is not None:
            score = self._keep.validate()
            if math.isnan(self.best_score) or score > self.best_score:
                self.best_score, self.best_step, self.failures = score, self.step, 0
                weights = self._keep.model.state_dict()
                self._best = {k: v.detach().clone() for k, v in weights.items()}
            else:
                self.failures += 1
        if self._keep.checkpoint is not None:
            self._save(self._keep.model, self._keep.checkpoint)

    def restore_best(self) -> None:
        """Give the model its best weights, where there was a validation."""
        if self._best:
            self._keep.model.load_state_dict(self._best)

    def _save(self, model: nn.Module, path: Path) -> None:
        optimizer, optimizer_meta = flatten_optimizer_state(self._optimizer)
        parts = {"model": model.state_dict(), "optimizer": optimizer, "best": self._best}
        tensors = {f"{name}.{k}": v for name, part in parts.items() for k, v in part.items()}
        meta = {
            "settings": self._settings,
            "step": self.step,
            "failures": self.failures,
            "best_step": self.best_step,
            "best_score": str(self.best_score),  # JSON has no nan and no inf
            "optimizer": optimizer_meta,
        }
        save_checkpoint(path, tensors, meta)

    def _load(self, model: nn.Module, path: Path) -> None:
        tensors, meta = load_checkpoint(path)
        for name, value in self._settings.items():
            stored = meta.get("settings", {}).get(name)
            if stored != value:
                raise ValueError(f"{path} was made with {name}={stored!r}, this run has {value!r}")
        try:
            model.load_state_dict(below("model.", tensors))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} is of another model: {reason}") from error
        restore_optimizer_state(self._optimizer, below("optimizer.", tensors), meta["optimizer"])
        self._best = below("best.", tensors)
        self.step, self.failures = meta["step"], meta["failures"]
        self.best_step, self.best_score = meta["best_step"], float(meta["best_score"])


def has_bf16(device: torch.device) -> bool:
    """Say whether a device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False
