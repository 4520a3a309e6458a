"""Heterogeneous Hierarchical Decoder: HSD, PTD and HTE as one policy and critic (GPR 2.2).

Dims: B requests or windows, T tokens, S supervised states per window, K candidates, W beams,
L levels, V codes, N multi-token-prediction heads, D width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gpr_rl.checks import check_at_least, check_codes
from gpr_rl.decoding.policy import pick
from gpr_rl.models.checks import check_paths, check_some
from gpr_rl.models.config import HHDConfig
from gpr_rl.models.decoder import Context, DecoderState
from gpr_rl.models.ecpm_head import EcpmHead
from gpr_rl.models.hsd import HSD
from gpr_rl.models.hte import HTE
from gpr_rl.models.knowledge.providers import KnowledgeSlot
from gpr_rl.models.ptd import PTD
from gpr_rl.models.refiner import Refiner
from gpr_rl.schema import InputSpec, Request, Targets, Tokens, TokenType


@dataclass(frozen=True)
class BeamCache:
    """Where W beams stand: how many codes they have, and the keys and values of these."""

    level: int
    evaluator: DecoderState | None
    """None: nobody asks for values."""
    policy_past: Tensor | None
    value_past: Tensor | None


class HHD(nn.Module):
    """The policy (head 1 of the PTD) and its critic (HTE) over one sequence model (HSD).

    A request's state is its last real token (the E token) with all before it. `begin` and
    `extend` go code by code for beams, `logits` and `hte` score known paths in one pass; both
    give the same numbers.

    Raises:
        ValueError: Paths of fewer than 2 levels.
    """

    def __init__(self, config: HHDConfig, spec: InputSpec) -> None:
        super().__init__()
        check_at_least(2, num_levels=spec.num_levels)
        self.config, self.spec = config, spec
        self.hsd = HSD(config, spec)
        self.ptd = PTD(config, spec)
        self.hte = HTE(config, spec)
        self.head_logits = nn.Parameter(torch.zeros(config.num_mtp_heads))
        self.ecpm_head: EcpmHead | None = None
        self.refiner: Refiner | None = None
        self.knowledge_slot: KnowledgeSlot | None = None
        if config.num_ecpm_buckets:  # these come last, so that all else starts as without them
            self.ecpm_head = EcpmHead(config.dim, spec.num_codes, config.num_ecpm_buckets)
        if config.num_refining_steps:
            self.refiner = Refiner(config)
        if config.knowledge_dim:
            self.knowledge_slot = KnowledgeSlot(config.knowledge_dim, config.dim)

    def policy_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of HSD, PTD and head weights."""
        own = {id(parameter) for parameter in self.hte.parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in own]

    def hte_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the HTE; with `policy_parameters` they are all there are."""
        return list(self.hte.parameters())

    def encode(self, request: Request, knowledge: Float[Tensor, "B k"] | None = None) -> Context:
        """Run the HSD and the thinking tokens once per request; the state is the last token."""
        tokens = request.tokens
        last = (tokens.kind != TokenType.PAD).sum(1, keepdim=True) - 1
        return self.window(tokens, last, knowledge)

    def window(
        self,
        tokens: Tokens,
        position: Int[Tensor, "B S"],
        knowledge: Float[Tensor, "B k"] | None = None,
    ) -> Context:
        """Run the HSD once per window and the thinking tokens at S positions of it.

        `knowledge` is what is known of each user from elsewhere (`gpr_rl.models.knowledge`), as of
        no later than the window's first state; None: nothing of anyone.

        Raises:
            ValueError: No window; wrong tokens; knowledge for a model without `knowledge_dim`, or
                of another width.
        """
        check_some(tokens)
        h, router_logits = self.hsd(tokens)
        key_mask = tokens.kind != TokenType.PAD
        if self.knowledge_slot is not None:
            slot = self.knowledge_slot(h, knowledge)
            h, position = torch.cat([slot, h], dim=1), position + 1
            key_mask = torch.cat([key_mask.new_ones(len(h), 1), key_mask], dim=1)
        elif knowledge is not None:
            raise ValueError("the model takes no knowledge: knowledge_dim is 0")
        return self.context_of(h, key_mask, position, router_logits)

    def context_of(
        self,
        h: Float[Tensor, "B T D"],
        key_mask: Bool[Tensor, "B T"],
        position: Int[Tensor, "B S"],
        router_logits: Float[Tensor, "B t R"] | None = None,
    ) -> Context:
        """Return the context of states in sequences that the HSD has read: the decoder's part."""
        state = self.ptd.decoder.begin(h, position, self.refiner)
        return Context(
            h=h,
            key_mask=key_mask,
            position=position,
            **state._asdict(),
            router_logits=router_logits,
            batch_size=h.shape[:1],
        )

    def mtp_logits(
        self,
        tokens: Tokens,
        targets: Targets,
        knowledge: Float[Tensor, "B k"] | None = None,
    ) -> Float[Tensor, "B P N L V"]:
        """Return all heads' logits along their targets at P positions per window (GPR 3.1).

        The state at position p sees h up to p only. Positions must lie at or after the end of the
        prompt block (`gpr_rl.pretraining.mtp.validate_targets`).
        """
        return self.window_logits(self.window(tokens, targets.position, knowledge), targets.codes)

    def window_logits(
        self, context: Context, codes: Int[Tensor, "B P N L"]
    ) -> Float[Tensor, "B P N L V"]:
        """Return `mtp_logits` from a `window` context that the HTE may use as well."""
        return self.ptd.head_logits(context.state(), codes)

    def ecpm_logits(self, context: Context, codes: Int[Tensor, "B n L"]) -> Float[Tensor, "B n Q"]:
        """Return the logits of the eCPM token after n = K known paths per request.

        Of a window with P > 1 states n is P, one path per state.

        Raises:
            ValueError: The model has no eCPM token.
        """
        if self.ecpm_head is None:
            raise ValueError("the model has no eCPM token: num_ecpm_buckets is 0")
        check_paths(codes, *self.ptd.output.shape[:2])
        own = 1 if context.position.shape[1] == 1 else 2
        paths = codes.unsqueeze(own)
        hidden = self.ptd.decoder.candidates(context.state(), paths[..., :-1])
        return self.ecpm_head(hidden[..., -1, :], paths[..., -1]).squeeze(own)

    def logits(self, context: Context, codes: Int[Tensor, "B K L"]) -> Float[Tensor, "B K L V"]:
        """Return the policy's unmasked logits along known paths, all levels in one pass."""
        return self.ptd.logits(context.state(), codes[:, None])[:, 0]

    def log_prob(
        self,
        context: Context,
        codes: Int[Tensor, "B K L"],
        legal_mask: Bool[Tensor, "B K L V"],
    ) -> Float[Tensor, "B K L"]:
        """Return log pi(z_l | s, z_{1:l-1}) among the legal codes of each level.

        An illegal code gets -inf; a mask row without any legal code gives -inf and no gradient.
        """
        return masked_log_prob(self.logits(context, codes), codes, legal_mask)

    def final_value(self, context: Context, codes: Int[Tensor, "B K L"]) -> Float[Tensor, "B K"]:
        """Return the HTE's value of whole paths, in units of reward / reward_scale."""
        return self.hte(context, codes).final_value

    def step(
        self, context: Context, prefix: Int[Tensor, "B W l"]
    ) -> tuple[Float[Tensor, "B W V"], Float[Tensor, "B W"]]:
        """Return log-probabilities of the next code (over all V, unmasked) and V(s, prefix)."""
        width, level = prefix.shape[1:]
        num_levels, num_codes = self.ptd.output.shape[:2]
        if level >= num_levels:
            raise ValueError(f"a prefix must have at most {num_levels - 1} codes, got {level}")
        check_codes(prefix, num_codes)
        evaluator = self.hte.begin(context.h, context.position)
        if level == 0:
            hidden, judged = context.start, evaluator.start
        else:
            paths = prefix[:, None]
            hidden = self.ptd.decoder.candidates(context.state(), paths)[:, 0, :, -1]
            judged = self.hte.decoder.candidates(evaluator, paths)[:, 0, :, -1]
        log_prob, value = self._next(hidden, level), self.hte.prefix_value(judged, level)
        return log_prob.expand(-1, width, -1), value.expand(-1, width)

    def begin(
        self, context: Context, *, valued: bool = True
    ) -> tuple[Float[Tensor, "B 1 V"], Float[Tensor, "B 1"], BeamCache]:
        """Return `step` of the empty prefix, and the cache that `extend` goes on from.

        Without `valued` the HTE is not asked, then or later: all values are 0.
        """
        log_prob, evaluator = self._next(context.start, 0), None
        value = log_prob.new_zeros(len(log_prob), 1)
        if valued:
            evaluator = self.hte.begin(context.h, context.position)
            value = self.hte.prefix_value(evaluator.start, 0)
        return log_prob, value, BeamCache(0, evaluator, None, None)

    def extend(
        self,
        context: Context,
        cache: BeamCache,
        parent: Int[Tensor, "B W"],
        code: Int[Tensor, "B W"],
    ) -> tuple[Float[Tensor, "B W V"], Float[Tensor, "B W"], BeamCache]:
        """Return `step` after `code` is appended to beam `parent` of the cache.

        At most L - 1 times in a row: the L-th code needs no continuation.
        """
        new, level = code[:, None, :, None], cache.level + 1
        past = _of_parents(cache.policy_past, parent)
        hidden, policy_past = self.ptd.decoder.extend(context.state(), past, new, cache.level)
        log_prob = self._next(hidden[:, 0, :, 0], level)
        if cache.evaluator is None:
            value, value_past = log_prob.new_zeros(code.shape), None
        else:
            past = _of_parents(cache.value_past, parent)
            judged, value_past = self.hte.decoder.extend(cache.evaluator, past, new, cache.level)
            value = self.hte.prefix_value(judged[:, 0, :, 0], level)
        return log_prob, value, BeamCache(level, cache.evaluator, policy_past, value_past)

    def _next(self, hidden: Tensor, level: int) -> Tensor:
        return self.ptd.next_logits(hidden, level).log_softmax(-1)


def _of_parents(past: Tensor | None, parent: Tensor) -> Tensor | None:
    return None if past is None else pick(past[:, 0], parent)[:, None]


class Unvalued:
    """A policy (`HHD`, `InformedPolicy`) whose critic is not asked: all values are 0."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy
        self.encode, self.extend = policy.encode, policy.extend

    def begin(self, context: Context) -> tuple[Tensor, Tensor, BeamCache]:
        """Return `HHD.begin` without values."""
        return self.policy.begin(context, valued=False)

    def step(self, context: Context, prefix: Int[Tensor, "B W l"]) -> tuple[Tensor, Tensor]:
        """Return `HHD.step` with zeros for values."""
        log_prob, value = self.policy.step(context, prefix)
        return log_prob, torch.zeros_like(value)


def masked_log_prob(
    logits: Float[Tensor, "*batch V"],
    codes: Int[Tensor, "*batch"],
    legal_mask: Bool[Tensor, "*batch V"],
) -> Float[Tensor, "*batch"]:
    """Return the log-softmax over legal codes at `codes`; -inf where the code is illegal."""
    masked = logits.masked_fill(~legal_mask, torch.finfo(logits.dtype).min)
    index = codes[..., None]
    chosen = masked.log_softmax(-1).gather(-1, index)
    return chosen.where(legal_mask.gather(-1, index), -torch.inf).squeeze(-1)
