"""The prefixes that a search holds: their codes, what the policy says of them, their tree nodes.

Dims: B requests, K candidates, W prefixes (1 at the root) of l codes, L levels, V codes.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from gpr_rl.decoding.options import Options, options_of
from gpr_rl.decoding.policy import PathStates, pick
from gpr_rl.decoding.trie import CodeTrie
from gpr_rl.schema import Candidates


class Beams:
    """W prefixes per request, from the empty one to whole paths.

    `total` is the sum of `log_prob`, -inf where the prefix is illegal; `states` is the policy's
    view; `legal` is the tree of what may be shown, `node` where the prefixes stand in it.
    """

    def __init__(
        self,
        policy: Any,
        request: Any,
        trie: CodeTrie,
        eligible: Tensor | None,
        signature: Tensor | None = None,
    ) -> None:
        """Hold the empty prefix of every request, in the catalogue as it is now."""
        self.legal = trie.restrict(eligible, signature)
        self.trie = self.legal.trie
        # without a mask, B comes from the requests' ids or, where they have none, their number
        given = signature if eligible is None else eligible
        size = len(getattr(request, "request_id", request) if given is None else given)
        self.node = self.legal.root(size, 1)
        self.codes = self.node.new_zeros(size, 1, 0, dtype=torch.int64)
        self.states = PathStates(policy, request, self.codes, self.trie.num_codes)
        self.log_prob = self.value = self.states.log_prob.new_zeros(size, 1, 0)
        self.total = self.states.log_prob.new_zeros(size, 1)

    @property
    def level(self) -> int:
        """How many codes the prefixes have."""
        return self.codes.shape[2]

    @property
    def is_last(self) -> bool:
        """Whether the next code is the path's last."""
        return self.level == self.trie.num_levels - 1

    def options(self, *, renormalize: bool, temperature: float = 1.0) -> Options:
        """Return what may come next, with log-probabilities that are -inf where illegal.

        `renormalize` makes each prefix with a legal code sum to probability one. NaN or +inf at a
        legal code is a ValueError.
        """
        log_prob = self.states.log_prob
        log_prob = log_prob if temperature == 1.0 else log_prob / temperature
        options = options_of(self.legal, self.level, self.node, log_prob)
        if renormalize:
            options.renormalize()
        largest = options.amax(options.log_prob)
        if largest.numel() and not largest.amax() < torch.inf:  # NaN is not
            request, prefix = (~(largest < torch.inf)).nonzero()[0].tolist()
            wrong = ~(options.by_prefix(options.log_prob)[request, prefix] < torch.inf)
            raise ValueError(
                f"the policy's log_prob of request {request}, prefix {prefix} is NaN, +inf, or -inf"
                f" at every legal code (option {int(wrong.nonzero()[0])})"
            )
        return options

    def grow(self, child: Int[Tensor, "B k"], options: Options, total: Tensor) -> None:
        """Do as `append`, and ask the policy about prefixes that are not whole."""
        parent = self.append(child, options, total, self.states.value)
        if self.level < self.trie.num_levels:
            self.states.extend(self.codes, parent)

    def append(
        self, child: Int[Tensor, "B k"], options: Options, total: Tensor, value: Tensor
    ) -> Int[Tensor, "B k"]:
        """Move to the next prefixes `child`, places among the options, and return their parents.

        `total` is of the options, `value` [B, W] of the prefixes so far. The states stay where they
        are.
        """
        parent, code, node = options.pick(child)

        def longer(history: Tensor, new: Tensor) -> Tensor:
            return torch.cat([pick(history, parent), new.to(history.dtype)[..., None]], dim=-1)

        self.node = node
        self.codes = longer(self.codes, code)
        self.log_prob = longer(self.log_prob, options.log_prob.flatten(1).gather(1, child))
        self.value = longer(self.value, value.gather(1, parent))
        self.total = total.flatten(1).gather(1, child)
        return parent

    def candidates(
        self,
        order: Int[Tensor, "B k"],
        valid: Bool[Tensor, "B W"],
        num_candidates: int,
        log_weight: Float[Tensor, "B W"] | None = None,
    ) -> Candidates:
        """Return whole paths in an order, blank where not valid and padded to K."""
        valid = pick(valid, order)
        missing = num_candidates - order.shape[1]

        def field(x: Tensor, blank: float | int) -> Tensor:
            mask = valid.view(*valid.shape, *[1] * (x.ndim - 2))
            x = pick(x, order).where(mask, blank)
            return pad(x, (0, 0) * (x.ndim - 2) + (0, missing), value=blank)

        return Candidates(
            codes=field(self.codes, 0),
            log_prob=field(self.log_prob, -torch.inf),
            value=field(self.value, 0.0),
            ad_id=field(self.legal.leaf_ad(self.node), -1),
            valid=pad(valid, (0, missing)),
            log_weight=None if log_weight is None else field(log_weight, -torch.inf),
            batch_size=[len(valid)],
        )
