"""The epochs of policy updates over one step's candidates, shard by shard.

Dims: B requests, K candidates, L levels, V codes per level.
"""

from collections.abc import Sequence

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from agents.actor_critic import PolicyLogits, categorical_kl, masked_log_softmax
from agents.candidates import mean_over_candidates
from agents.critic import attached_value_loss
from agents.registry import Method
from agents.rollout import check_finite
from agents.training.shards import added_up, shares, weighted_mean
from agents.training.state import TrainRun, TrainState
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

    def __call__(self, parts: Sequence[TensorDict], batch: TensorDictBase) -> dict[str, float]:
        """Update the policy on this rank's shards; return the mean reports of the epochs.

        `batch` are all shards' small entries (`Shards.join`): how many terms their means are over.
        """
        config, shards = self._run.config, self._state.shards
        own = getattr(self._method.loss, "count", _valid)
        pieces = batch.chunk(shards.num_shards)
        self._counts = [torch.stack([_valid(piece), own(piece)]) for piece in pieces]
        every = shares(self._counts)
        self._shares = [every[number] for number in shards.own]
        counts = [self._counts[number][0] for number in shards.own]
        reports: list[dict[str, float]] = []
        behavior_kl = 0.0
        for epoch in range(config.num_epochs):
            batches = [self._scored(part, epoch) for part in parts]
            if epoch > 0 or not self._starts_attached:
                kl = [_path_kl(x, x["log_probs"], x["new_log_probs"].detach()) for x in batches]
                behavior_kl = shards.mean(kl, counts).item()
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
        state = self._state
        squares = [_watch_gradient(batch["logits"]) for batch in batches]
        outs = [self._losses(batch, epoch) for batch in batches]
        losses = self._weighted(outs)
        for loss in losses:
            check_finite("the policy loss", loss)

        def told(place: int) -> dict[str, Tensor]:
            means = {f"mean/{key}": x.detach() for key, x in outs[place].items() if x.numel() == 1}
            sums = {"loss": losses[place].detach(), "squares": torch.stack(squares[place])}
            return means | sums

        found = state.policy_gradient.backward(losses, told)
        norm = nn.utils.clip_grad_norm_(
            state.model.policy_parameters(), self._run.config.max_grad_norm
        )
        check_finite("the policy gradient's norm", norm)
        state.optimizer.step()
        return self._reported(found) | {"grad_norm": norm.item()}

    def _reported(self, found: Sequence[dict[str, Tensor]]) -> dict[str, float]:
        """Return what is reported of the batch: means over all terms, and sums over shards."""
        report = {}
        for key in found[0]:
            name = key.removeprefix("mean/")
            if name != key and name != "entropy":
                counts = [count[_kind(name)] for count in self._counts]
                report[name] = weighted_mean([part[key] for part in found], counts).item()
        report["loss"] = added_up([part["loss"] for part in found]).item()
        by_level = added_up([part["squares"] for part in found]).sqrt().flatten().tolist()
        return report | {f"gradient/{level}": x for level, x in enumerate(by_level, 1)}

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
        losses = []
        for out, share in zip(outs, self._shares, strict=True):
            terms = {name: x for name, x in out.items() if name.startswith("loss_")}
            if self._state.shards.num_shards > 1:
                terms = {name: x * share[_kind(name)] for name, x in terms.items()}
            losses.append(torch.stack(list(terms.values())).sum())
        return losses

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


def _valid(part: TensorDictBase) -> Tensor:
    """Return how many candidates count."""
    return part["valid"].sum()


def _kind(name: str) -> int:
    """Return what a mean is over: 0 for valid candidates, 1 for the method's own terms."""
    return int(name not in _ADDED)


def _watch_gradient(logits: Tensor) -> list[Tensor]:
    """Return what will hold, after the backward pass, its sum of squares by level, [L]."""
    found: list[Tensor] = []
    logits.register_hook(lambda gradient: found.append(gradient.square().sum((0, 1, 3))))
    return found


def _path_kl(data: TensorDict, log_probs: Tensor, other: Tensor) -> Tensor:
    """Return KL(log_probs || other) per path at the visited prefixes, nats."""
    kl = categorical_kl(log_probs, other, data["legal_mask"])
    return mean_over_candidates(kl, data["valid"])
