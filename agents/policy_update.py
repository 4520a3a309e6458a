"""The epochs of policy updates over one step's candidates, shard by shard.

Dims: B requests, K candidates, L levels, V codes per level.
"""

from collections.abc import Sequence

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from agents.actor_critic import PolicyLogits, categorical_kl, masked_log_softmax
from agents.candidates import mean_over_candidates
from agents.critic import attached_value_loss
from agents.registry import Method
from agents.rollout import check_finite
from agents.train_state import TrainRun, TrainState
from gpr_rl.models import HHD
from gpr_rl.pretraining.auxiliary import has_parts, parts_losses
from gpr_rl.random import Purpose, random_bits

_ADDED = ("loss_kl", "loss_critic", "loss_parts")
"""Losses that the configuration adds to the method's: means over valid candidates."""


class PolicyUpdate:
    """Runs the epochs, the first on the rollout's own pass if it may."""

    def __init__(
        self, state: TrainState, run: TrainRun, method: Method, *, starts_attached: bool
    ) -> None:
        """Store what a step's updates have in common."""
        self._state, self._run, self._method = state, run, method
        self._starts_attached = starts_attached
        self._logits = PolicyLogits(
            state.model, temperature=run.config.temperature, precision=run.config.precision
        )
        self._moves_trunk = method.uses_critic and run.config.critic_moves_trunk
        self._has_parts = has_parts(state.model)

    def __call__(self, parts: Sequence[TensorDict]) -> dict[str, float]:
        """Update the policy on this rank's shards; return the mean reports of the epochs."""
        config, shards = self._run.config, self._state.shards
        counts = [part["valid"].sum() for part in parts]
        own = getattr(self._method.loss, "count", None)
        self._valid = counts
        self._own = counts if own is None else [own(part) for part in parts]
        reports: list[dict[str, float]] = []
        for epoch in range(config.num_epochs):
            batches = [self._scored(part, epoch) for part in parts]
            moved = [_path_kl(x, x["log_probs"], x["new_log_probs"].detach()) for x in batches]
            behavior_kl = 0.0
            if epoch > 0 or not self._starts_attached:
                behavior_kl = shards.mean(moved, counts).item()
            if epoch > 0 and config.kl_stop is not None and behavior_kl > config.kl_stop:
                break
            reports.append(self._step(batches, epoch))
        means = {key: sum(r[key] for r in reports) / len(reports) for key in reports[0]}
        return means | {"num_epochs": float(len(reports)), "behavior_kl": behavior_kl}

    def _scored(self, part: TensorDict, epoch: int) -> TensorDict:
        """Return a shard with the `logits` of the policy as it is, and `new_log_probs`."""
        attached = epoch == 0 and self._starts_attached
        attached = attached and not (self._moves_trunk or self._has_parts)
        batch = part.copy() if attached else self._logits(part.copy())
        return batch.set("new_log_probs", masked_log_softmax(batch["logits"], batch["legal_mask"]))

    def _step(self, batches: Sequence[TensorDict], epoch: int) -> dict[str, float]:
        """Make one update; return what is reported of it."""
        state, shards = self._state, self._state.shards
        squares = [_watch_gradient(batch["logits"]) for batch in batches]
        outs = [self._losses(batch, epoch) for batch in batches]
        losses = self._weighted(outs)
        for loss in losses:
            check_finite("the policy loss", loss)
        state.policy_gradient.backward(losses)
        norm = nn.utils.clip_grad_norm_(
            state.model.policy_parameters(), self._run.config.max_grad_norm
        )
        check_finite("the policy gradient's norm", norm)
        state.optimizer.step()
        names = [key for key, x in outs[0].items() if x.numel() == 1 and key != "entropy"]
        report = {
            name: shards.mean([out[name].detach() for out in outs], self._terms_of(name)).item()
            for name in names
        }
        whole = shards.sum([loss.detach() for loss in losses])
        report |= {"loss": whole.item(), "grad_norm": norm.item()}
        by_level = shards.sum([torch.stack(found) for found in squares]).sqrt().flatten()
        return report | {f"gradient/{level}": x for level, x in enumerate(by_level.tolist(), 1)}

    def _losses(self, batch: TensorDict, epoch: int) -> TensorDict:
        """Return the method's losses of a shard and what the configuration adds."""
        config, method = self._run.config, self._method
        out = method.loss(batch)
        if config.kl_penalty and not method.uses_reference:
            kl = _path_kl(batch, batch["new_log_probs"], batch["reference_log_probs"])
            out["loss_kl"] = config.kl_penalty * kl
        if self._moves_trunk:
            out["loss_critic"] = attached_value_loss(self._state.model, batch)
        if self._has_parts:
            out["loss_parts"] = self._parts_loss(batch, epoch)
        return out

    def _weighted(self, outs: Sequence[TensorDict]) -> list[Tensor]:
        """Return what every shard adds to the loss of the batch, whose terms are means."""
        shards = self._state.shards
        terms = [{k: x for k, x in out.items() if k.startswith("loss_")} for out in outs]
        if shards.num_shards > 1:
            weights = {name: shards.weights(self._terms_of(name)) for name in terms[0]}
            for number, found in enumerate(terms):
                for name in found:
                    found[name] = found[name] * weights[name][number]
        return [torch.stack(list(found.values())).sum() for found in terms]

    def _terms_of(self, name: str) -> list[Tensor]:
        """Return how many terms each shard's mean of this name is over."""
        return self._valid if name in _ADDED else self._own

    def _parts_loss(self, batch: TensorDict, epoch: int) -> Tensor:
        """Return what the model's parts learn of every request's first candidate.

        That is a draw of the policy, so the parts follow what it has become, and no reward enters.
        The noise is that of the step, the epoch and the batch's first request.
        """
        state, run = self._state, self._run
        keys = [torch.tensor(state.step), torch.tensor(epoch)]
        if state.shards.num_shards > 1:
            keys.append(batch["request"].request_id[0])
        bits = random_bits(run.seed, Purpose.REFINING_NOISE, *keys)
        generator = torch.Generator().manual_seed(int(bits))
        assert isinstance(state.model, HHD)
        first = batch["codes"][:, :1], batch["valid"][:, :1]
        losses = parts_losses(state.model, batch["context"], *first, generator)
        return torch.as_tensor(run.config.auxiliary.total(losses))


def _watch_gradient(logits: Tensor) -> list[Tensor]:
    """Return what will hold, after the backward pass, its sum of squares by level, [L]."""
    found: list[Tensor] = []
    logits.register_hook(lambda gradient: found.append(gradient.square().sum((0, 1, 3))))
    return found


def _path_kl(data: TensorDict, log_probs: Tensor, other: Tensor) -> Tensor:
    """Return KL(log_probs || other) per path at the visited prefixes, nats."""
    kl = categorical_kl(log_probs, other, data["legal_mask"])
    return mean_over_candidates(kl, data["valid"])
