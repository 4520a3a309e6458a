"""The HHD as TorchRL actor and the HTE as TorchRL critic.

Dims: B requests, K candidates, L levels, V codes per level, D width. All levels of a known path are
scored in one teacher-forced pass, so an action is the whole path: `codes` [B, K, L], with the legal
codes along it in `legal_mask` [B, K, L, V] and one log-probability per level.
"""

from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from tensordict import TensorDictBase
from tensordict.nn import (
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModuleBase,
    TensorDictSequential,
)
from torch import Tensor, nn
from torchrl.modules import MaskedCategorical

from agents.candidates import check_above, check_choice
from gpr_rl.schema import Request

PRECISIONS = ("float32", "bf16")
"""What a model's matrix products are made in."""


def lowered(precision: str, device: torch.device) -> torch.autocast:
    """Return the context in which a model multiplies in bf16, or in its own type."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def restored(x: Any, precision: str) -> Any:
    """Return what a model made in float32, a tensor or a context; itself if that was its type."""
    if precision == "float32":
        return x
    if isinstance(x, Tensor):
        return x.float() if x.dtype == torch.bfloat16 else x
    return x.apply(lambda part: restored(part, precision))


@runtime_checkable
class ValueOutput(Protocol):
    """What the critic returns; the HTE's output has more fields."""

    value: Tensor
    """[B, K, L], value[..., l-1] = V(s, z_{1:l-1})."""


@runtime_checkable
class Critic(Protocol):
    """The values of every prefix, in units of reward / reward_scale."""

    reward_scale: Tensor
    """A scalar buffer."""

    def __call__(self, context: Any, codes: Tensor) -> ValueOutput:
        """Return the values along known paths, codes [B, K, L]."""


@runtime_checkable
class ActorCriticModel(Protocol):
    """What the agents need of a model, an nn.Module. `gpr_rl.models.HHD` has it.

    For drawing candidates it also is a policy of `gpr_rl.decoding`.
    """

    @property
    def hte(self) -> Critic:
        """The critic."""

    def encode(self, request: Request) -> Any:
        """Return the context, a tensorclass of batch [B]: the HSD's pass, once per request."""

    def logits(self, context: Any, codes: Tensor) -> Tensor:
        """Return [B, K, L, V]; row l sees codes[..., :l] only."""

    def policy_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of HSD and PTD."""

    def hte_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the HTE; none is a policy parameter."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return all parameters and buffers, as nn.Module does."""

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> Any:
        """Put them back, as nn.Module does."""

    def eval(self) -> Any:
        """Leave the training mode, as nn.Module does."""


class PolicyLogits(TensorDictModuleBase):
    """`request`, `codes` -> `context`, `logits` [B, K, L, V]: HSD once per request, then PTD.

    Run it once per update and every loss reads `logits` (`make_policy_head`); or let
    `make_actor` put it in front.
    """

    in_keys: ClassVar[list[str]] = ["request", "codes"]
    out_keys: ClassVar[list[str]] = ["context", "logits"]

    def __init__(
        self, model: ActorCriticModel, *, temperature: float = 1.0, precision: str = "float32"
    ) -> None:
        """Store the model (shared). Logits are divided by `temperature` > 0, as in sampling.

        With `precision` `bf16` the model multiplies in that; what it returns is float32 again.
        """
        super().__init__()
        check_above("temperature", temperature)
        check_choice("precision", precision, PRECISIONS)
        self.model = model
        self.temperature = temperature
        self.precision = precision

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the same TensorDict with the out-keys set."""
        with lowered(self.precision, tensordict["codes"].device):
            context = self.model.encode(_request(tensordict))
            logits = self.model.logits(context, tensordict["codes"])
        tensordict.set("context", restored(context, self.precision))
        return tensordict.set("logits", restored(logits, self.precision) / self.temperature)


def make_policy_head(out_key: str = "codes") -> ProbabilisticTensorDictModule:
    """Return `logits`, `legal_mask` -> masked categorical over `codes`, with `action_log_prob`."""
    return ProbabilisticTensorDictModule(
        in_keys={"logits": "logits", "mask": "legal_mask"},
        out_keys=[out_key],
        distribution_class=MaskedCategorical,
        distribution_kwargs={"use_cross_entropy": False},
        return_log_prob=True,
        log_prob_key="action_log_prob",
    )


def make_actor(
    model: ActorCriticModel, *, temperature: float = 1.0
) -> ProbabilisticTensorDictSequential:
    """Return the actor `request`, `codes`, `legal_mask` -> distribution of the path's codes.

    For losses through `get_dist`; candidates are drawn by `gpr_rl.decoding`, level by level.
    """
    return ProbabilisticTensorDictSequential(
        PolicyLogits(model, temperature=temperature), make_policy_head()
    )


def _request(tensordict: TensorDictBase) -> Request:
    """Return the request, in its own type also where a storage has kept its entries only."""
    found = tensordict["request"]
    return found if isinstance(found, Request) else Request.from_tensordict(found)


class RequestContext(TensorDictModuleBase):
    """`request` -> `context`: the HSD, once per request, without a gradient."""

    in_keys: ClassVar[list[str]] = ["request"]
    out_keys: ClassVar[list[str]] = ["context"]

    def __init__(self, model: ActorCriticModel) -> None:
        super().__init__()
        self.model = model

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the same TensorDict with the out-key set."""
        return tensordict.set("context", self.model.encode(_request(tensordict)))


class HTECritic(TensorDictModuleBase):
    """`context`, `codes` -> `state_value` [B, K, L, 1]; reads the stored state, runs no HSD.

    The context is detached: the critic never moves the HSD, whatever the model does.
    """

    in_keys: ClassVar[list[str]] = ["context", "codes"]
    out_keys: ClassVar[list[str]] = ["state_value"]

    def __init__(self, model: ActorCriticModel, *, precision: str = "float32") -> None:
        """Store the model (shared); `precision` as for `PolicyLogits`."""
        super().__init__()
        check_choice("precision", precision, PRECISIONS)
        self.model = model
        self.precision = precision

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the same TensorDict with the out-key set."""
        context = tensordict["context"].detach()
        with lowered(self.precision, tensordict["codes"].device):
            value = self.model.hte(context, tensordict["codes"]).value
        return tensordict.set("state_value", restored(value, self.precision).unsqueeze(-1))


class ReferenceLogProbs(TensorDictModuleBase):
    """`request`, `codes`, `legal_mask` -> `reference_log_probs` [B, K, L, V] of a frozen policy.

    For the losses that are held to the warm start: DPO, S-DPO, RSPO and GR4AD's unified stage.
    """

    in_keys: ClassVar[list[str]] = ["request", "codes", "legal_mask"]
    out_keys: ClassVar[list[str]] = ["reference_log_probs"]

    def __init__(
        self, model: ActorCriticModel, *, temperature: float = 1.0, precision: str = "float32"
    ) -> None:
        """Store the reference (shared): a copy of the policy as it was before training."""
        super().__init__()
        self.logits = PolicyLogits(model, temperature=temperature, precision=precision)

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the same TensorDict with the out-key set."""
        logits = self.logits(tensordict.select("request", "codes"))["logits"]
        log_probs = masked_log_softmax(logits, tensordict["legal_mask"])
        return tensordict.set("reference_log_probs", log_probs)


def make_critic(model: ActorCriticModel) -> TensorDictSequential:
    """Return the critic `request`, `codes` -> `state_value` of the path's prefixes.

    For advantages that are given a `value_network`; losses read the `context` that the actor has
    written (`HTECritic`).
    """
    return TensorDictSequential(RequestContext(model), HTECritic(model))


def masked_log_softmax(
    logits: Float[Tensor, "*shape V"], legal_mask: Bool[Tensor, "*shape V"]
) -> Float[Tensor, "*shape V"]:
    """Return log-probabilities over the legal codes, -inf elsewhere; rows need one legal code."""
    return torch.log_softmax(torch.where(legal_mask, logits, -torch.inf), dim=-1)


def chosen_log_prob(
    log_probs: Float[Tensor, "B K L V"], codes: Int[Tensor, "B K L"]
) -> Float[Tensor, "B K L"]:
    """Return the log-probability of the chosen codes."""
    return log_probs.gather(-1, codes.unsqueeze(-1)).squeeze(-1)


def categorical_kl(
    log_probs: Float[Tensor, "*shape V"],
    reference_log_probs: Float[Tensor, "*shape V"],
    legal_mask: Bool[Tensor, "*shape V"],
) -> Float[Tensor, "*shape"]:
    """Return KL(policy || reference) over the legal codes of every visited prefix, nats."""
    mine, other = (torch.where(legal_mask, x, 0.0) for x in (log_probs, reference_log_probs))
    return (_probability(log_probs) * (mine - other)).sum(-1)


def categorical_entropy(
    log_probs: Float[Tensor, "*shape V"], legal_mask: Bool[Tensor, "*shape V"]
) -> Float[Tensor, "*shape"]:
    """Return the entropy over the legal codes, nats."""
    return -(_probability(log_probs) * torch.where(legal_mask, log_probs, 0.0)).sum(-1)


def _probability(log_probs: Float[Tensor, "*shape V"]) -> Float[Tensor, "*shape V"]:
    """Return exp(log_probs): on a CPU the softmax takes a fifth of the time where many are -inf."""
    return log_probs.softmax(-1)
