"""A world and a policy small enough to know the optimum of: tables instead of networks.

Requests differ in their state (user id) only; every prefix of every state has its own logits and
its own value. Both have the interface of the real ones.
"""

from collections.abc import Callable

import torch
from tensordict import tensorclass
from torch import Tensor, nn

from gpr_rl.decoding import CodeTrie
from gpr_rl.schema import Request, Tokens
from simulators.rewards import Outcome


@tensorclass
class TableContext:
    state: Tensor  # int64 [B]


@tensorclass
class TableValues:
    value: Tensor  # [B, K, L]


def prefix_index(codes: Tensor, num_codes: int) -> list[Tensor]:
    """Return per level the number of the prefix before it, [B, K] each."""
    index = torch.zeros_like(codes[..., 0])
    out = []
    for level in range(codes.shape[-1]):
        out.append(index)
        index = index * num_codes + codes[..., level]
    return out


class TableCritic(nn.Module):
    def __init__(self, num_states: int, num_levels: int, num_codes: int) -> None:
        super().__init__()
        self.num_codes = num_codes
        self.tables = nn.ParameterList(
            torch.zeros(num_states, num_codes**level) for level in range(num_levels)
        )
        self.register_buffer("reward_scale", torch.ones(()))

    def forward(self, context: TableContext, codes: Tensor) -> TableValues:
        state = context.state[:, None]
        values = [
            table[state, index]
            for table, index in zip(self.tables, prefix_index(codes, self.num_codes), strict=True)
        ]
        return TableValues(value=torch.stack(values, -1), batch_size=codes.shape[:1])


class TablePolicy(nn.Module):
    def __init__(self, num_states: int, num_levels: int, num_codes: int) -> None:
        super().__init__()
        self.num_levels, self.num_codes = num_levels, num_codes
        self.tables = nn.ParameterList(
            torch.zeros(num_states, num_codes**level, num_codes) for level in range(num_levels)
        )
        self.hte = TableCritic(num_states, num_levels, num_codes)

    def policy_parameters(self) -> list[nn.Parameter]:
        return list(self.tables)

    def hte_parameters(self) -> list[nn.Parameter]:
        return list(self.hte.parameters())

    def encode(self, request: Request) -> TableContext:
        return TableContext(state=request.user_id, batch_size=request.user_id.shape)

    def logits(self, context: TableContext, codes: Tensor) -> Tensor:
        state = context.state[:, None]
        rows = [
            table[state, index]
            for table, index in zip(self.tables, prefix_index(codes, self.num_codes), strict=True)
        ]
        return torch.stack(rows, -2)

    def step(self, context: TableContext, prefix: Tensor) -> tuple[Tensor, Tensor]:
        level = prefix.shape[-1]
        padded = torch.cat([prefix, prefix.new_zeros(*prefix.shape[:2], 1)], -1)
        index = prefix_index(padded, self.num_codes)[level]
        state = context.state[:, None]
        log_prob = self.tables[level][state, index].log_softmax(-1)
        return log_prob, self.hte.tables[level][state, index]


class TableWorld:
    """Every path has one ad; its eCPM in a state is drawn once. The first ads are not for all."""

    reward_scale = 2.0

    def __init__(
        self,
        num_states: int = 3,
        num_levels: int = 2,
        num_codes: int = 3,
        num_requests: int = 240,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        g = torch.Generator().manual_seed(seed)
        self.num_states = num_states
        codes = torch.cartesian_prod(*[torch.arange(num_codes)] * num_levels)
        self.trie = CodeTrie(codes, num_codes=num_codes)
        self.num_ads = len(codes)
        self.ecpm = 10.0 * torch.rand(num_states, self.num_ads, dtype=dtype, generator=g)
        self.popularity = torch.rand(num_states, num_levels, num_codes, generator=g)
        self.for_state = torch.rand(num_states, self.num_ads, generator=g) < 0.8
        self.for_state[:, -1] = True
        self.num_requests = num_requests
        self.num_evaluations = 0
        self.spoil: Callable[[Tensor], Tensor] = lambda ecpm: ecpm

    def request_ids(self, split: str) -> Tensor:
        return torch.arange(self.num_requests)

    def request(self, request_id: Tensor) -> Request:
        user = request_id % self.num_states
        size = len(request_id)
        zero = torch.zeros(size, 1, dtype=torch.long)
        tokens = Tokens(
            kind=zero, codes=zero[..., None], action=zero, time_gap=zero, context=zero[..., None],
            user=zero, preference=zero[..., None].float(), prompt_length=zero[:, 0],
            batch_size=[size],
        )  # fmt: skip
        return Request(
            request_id=request_id,
            user_id=user,
            timestamp=request_id,
            tokens=tokens,
            popularity=self.popularity[user],
            batch_size=[size],
        )

    def eligible(self, request_id: Tensor) -> Tensor:
        return self.for_state[request_id % self.num_states]

    def outcome(self, request_id: Tensor, ad_id: Tensor) -> Outcome:
        self.num_evaluations += ad_id.numel()
        state = (request_id % self.num_states)[:, None]
        shown = ad_id.clamp_min(0)
        ecpm = self.spoil(self.ecpm[state, shown])
        zero, ones = torch.zeros_like(ad_id), torch.ones_like(ecpm)
        return Outcome(
            request_id=request_id[:, None].expand_as(ad_id), user_id=state.expand_as(ad_id),
            ad_id=shown, pctr=ones, pcvr=ones, bid=ecpm, bid_type=zero, ecpm=ecpm,
            advertiser=zero, category=zero, price=ones,
            alpha=ecpm.new_zeros(*ad_id.shape, 2), batch_size=ad_id.shape,
        )  # fmt: skip

    def best(self) -> Tensor:
        """Return the highest eCPM of an eligible ad per state."""
        return torch.where(self.for_state, self.ecpm, -torch.inf).amax(-1)

    def expected(self, model: TablePolicy) -> Tensor:
        """Return each state's expected eCPM under the masked policy, by enumeration."""
        state = torch.arange(self.num_states)
        codes = self.trie.codes.expand(self.num_states, -1, -1)
        legal = self.trie.restrict(self.for_state).path_masks(codes)
        logits = model.logits(TableContext(state=state, batch_size=state.shape), codes)
        log_prob = torch.where(legal, logits, -torch.inf).log_softmax(-1)
        path = log_prob.gather(-1, codes[..., None])[..., 0].sum(-1)
        path = torch.where(self.for_state, path, -torch.inf)
        return (path.exp() * self.ecpm).sum(-1).detach()
