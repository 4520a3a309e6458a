"""What a supervised stage remembers: step, weights, optimizer, and the best weights so far."""

import math
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


class StageState:
    """The mutable part of a stage.

    Attributes:
        step: Steps done.
        failures: Validations in a row that were no better than the best.
        best_step: Steps done at the best validation.
        best_score: Its score; NaN before the first.
    """

    def __init__(self, model: nn.Module | None, optimizer: torch.optim.Optimizer) -> None:
        self._model, self._optimizer = model, optimizer
        self.step = self.failures = self.best_step = 0
        self.best_score = math.nan
        self._best: dict[str, Tensor] = {}

    def judge(self, score: float) -> None:
        """Take the score of the weights as they are, and keep them if it is the best."""
        assert self._model is not None
        if math.isnan(self.best_score) or score > self.best_score:
            self.best_score, self.best_step, self.failures = score, self.step, 0
            self._best = {k: v.detach().clone() for k, v in self._model.state_dict().items()}
        else:
            self.failures += 1

    def restore_best(self) -> None:
        """Give the model its best weights, where there was a validation."""
        if self._best:
            assert self._model is not None
            self._model.load_state_dict(self._best)

    def save(self, path: Path, settings: dict) -> None:
        """Write everything to one file; the one before stays until the new one is whole."""
        assert self._model is not None
        optimizer, optimizer_meta = flatten_optimizer_state(self._optimizer)
        parts = {"model": self._model.state_dict(), "optimizer": optimizer, "best": self._best}
        tensors = {f"{name}.{k}": v for name, part in parts.items() for k, v in part.items()}
        meta = {
            "settings": settings,
            "step": self.step,
            "failures": self.failures,
            "best_step": self.best_step,
            "best_score": str(self.best_score),  # JSON has no nan and no inf
            "optimizer": optimizer_meta,
        }
        save_checkpoint(path, tensors, meta)

    def load(self, path: Path, settings: dict) -> None:
        """Go back to a stored state.

        Raises:
            CheckpointError: The file is damaged.
            ValueError: It is of a stage with other settings, the first one of which is named, or
                of another model.
        """
        assert self._model is not None
        tensors, meta = load_checkpoint(path)
        for name, value in settings.items():
            stored = meta.get("settings", {}).get(name)
            if stored != value:
                raise ValueError(f"{path} was made with {name}={stored!r}, this run has {value!r}")
        try:
            self._model.load_state_dict(below("model.", tensors))
        except RuntimeError as error:
            raise ValueError(
                f"{path} is of another model: {' '.join(str(error).split())}"
            ) from error
        restore_optimizer_state(self._optimizer, below("optimizer.", tensors), meta["optimizer"])
        self._best = below("best.", tensors)
        self.step, self.failures = meta["step"], meta["failures"]
        self.best_step = meta["best_step"]
        self.best_score = float(meta["best_score"])
