"""The network of the pCTR and pCVR rankers, and its calibration (GPR 3.3).

One network with a tower per task. Everything that depends on the request alone, or on the ad
alone, is computed once and added, so a candidate costs a few thousand multiply-adds.

Dims: B requests, K candidates, S recent items, G groups, F count features, N ads, H hidden width.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from gpr_rl.schema import Action
from simulators.world.features import NUM_COUNT_FEATURES, NUM_REPEAT_FEATURES, RankerInput


@dataclass(frozen=True, kw_only=True)
class RankerConfig:
    """Size and inputs of the rankers."""

    user_cardinalities: tuple[int, ...]
    context_cardinalities: tuple[int, ...]
    num_items: int
    """Ads and organic items."""
    embedding_dim: int
    """d of the content embeddings."""
    num_groups: int
    hidden: int = 64
    attention_dim: int = 16
    id_dim: int = 8
    """Width of learned ad and group embeddings."""
    use_counts: bool = True
    """Strictly-past counts per user by vertical, category and advertiser."""
    use_history: bool = True
    """Target attention over recent clicks, conversions and organic views."""
    use_repeats: bool = False
    """Strictly-past count per user of the ad's own product, for worlds with repeat purchases."""


class Rankers(nn.Module):
    """pCTR and pCVR of (request, ad) pairs.

    Inputs: user and context attributes, target attention over the recent items, strictly-past
    counts of the candidate's vertical, category and advertiser, and of the ad its content
    embedding [N + M, d], standardised log price [N], ad id and groups [N + M, 3].
    """

    item_embedding: Tensor
    group: Tensor
    price: Tensor

    def __init__(
        self, config: RankerConfig, item_embedding: Tensor, group: Tensor, price: Tensor
    ) -> None:
        super().__init__()
        self.config = config
        h, a = config.hidden, config.attention_dim
        self.register_buffer("item_embedding", item_embedding, persistent=False)
        self.register_buffer("group", group, persistent=False)
        self.register_buffer("price", price, persistent=False)
        self.num_ads = len(price)
        self.user = nn.ModuleList(nn.Embedding(c, h) for c in config.user_cardinalities)
        self.context = nn.ModuleList(nn.Embedding(c, h) for c in config.context_cardinalities)
        self.ad_id = nn.Embedding(self.num_ads, config.id_dim)
        self.group_id = nn.Embedding(config.num_groups, config.id_dim)
        ad_width = config.embedding_dim + 1 + 4 * config.id_dim
        self.ad = nn.Linear(ad_width, h)
        self.query = nn.Linear(ad_width, a)
        self.key = nn.Linear(config.embedding_dim + 3 * config.id_dim, a)
        self.action = nn.Embedding(max(Action) + 1, a)
        self.recent = nn.Linear(2 * a, h)
        num_counts = 3 * NUM_COUNT_FEATURES + config.use_repeats * NUM_REPEAT_FEATURES
        self.counts = nn.Linear(num_counts, h)
        self.user_factor = nn.ModuleList(nn.Embedding(c, a) for c in config.user_cardinalities)
        self.match = nn.Linear(a, h)
        self.tower = nn.ModuleList(
            nn.Sequential(nn.ReLU(), nn.Linear(h, 32), nn.ReLU(), nn.Linear(32, 1))
            for _ in range(2)
        )
        for embedding in (*self.user, *self.context, self.ad_id, self.group_id):
            nn.init.normal_(embedding.weight, std=0.05)

    def tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return what depends on the item alone: ads [N, H], queries [N, a], keys [N + M, a]."""
        groups = self.group_id(self.group).flatten(-2)
        content = torch.cat([self.item_embedding, groups], dim=-1)
        ad = [content[: self.num_ads], self.price[:, None], self.ad_id.weight]
        features = torch.cat(ad, dim=-1)
        return self.ad(features), self.query(features), self.key(content)

    def inner(self) -> tuple[Tensor, Tensor]:
        """Return weight [H, W] and bias [H] of what depends on both request and candidate."""
        layers = [self.match]
        layers += [self.recent] if self.config.use_history else []
        layers += [self.counts] if self.config.use_counts else []
        bias = sum((layer.bias for layer in layers[1:]), start=layers[0].bias)
        return torch.cat([layer.weight for layer in layers], dim=-1), bias

    def towers(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return weight and bias of the towers' first layers as one, and of their last ones."""
        towers = [cast(nn.Sequential, tower) for tower in self.tower]
        first, last = ([cast(nn.Linear, tower[at]) for tower in towers] for at in (1, 3))
        bias, last_bias = (torch.cat([layer.bias for layer in part]) for part in (first, last))
        last_weight = torch.block_diag(*(layer.weight for layer in last))
        return torch.cat([layer.weight for layer in first]), bias, last_weight, last_bias

    def forward(
        self,
        inputs: RankerInput,
        counts: Tensor,
        ad_id: Tensor,
        tables: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Return click and conversion logits, float [B, K, 2], of candidates [B, K].

        `counts` are `PastCounts.of` them, [B, K, 3F] or [B, K, 3F + 2]; `tables` are
        `self.tables()`, given once the weights are frozen.
        """
        ad_table, query_table, key_table = tables or self.tables()
        flat = ad_id.flatten()
        ad = ad_table.index_select(0, flat).unflatten(0, ad_id.shape)
        query = query_table.index_select(0, flat).unflatten(0, ad_id.shape)
        recent = inputs.recent_item
        key = key_table.index_select(0, recent.flatten()).unflatten(0, recent.shape)
        request: Tensor = sum(e(x) for e, x in zip(self.user, inputs.user.T, strict=True))
        request = request + sum(e(x) for e, x in zip(self.context, inputs.context.T, strict=True))
        factor: Tensor = sum(e(x) for e, x in zip(self.user_factor, inputs.user.T, strict=True))
        wide = [query * factor[:, None]]
        if self.config.use_history:
            key = key + self.action(inputs.recent_action.long())
            score = query @ key.mT / self.config.attention_dim**0.5
            gate = torch.sigmoid(score) * inputs.recent_known[:, None]
            pooled = gate @ key / inputs.recent_known.shape[-1] ** 0.5
            wide += [pooled, pooled * query]
        if self.config.use_counts:
            wide.append(counts)
        joint = torch.cat(wide, dim=-1).flatten(0, 1)
        weight, bias = self.inner()
        hidden = torch.addmm(ad.flatten(0, 1), joint, weight.T)
        hidden = hidden.view_as(ad) + (request + bias)[:, None]
        weight, bias, last_weight, last_bias = self.towers()
        middle = torch.relu(nn.functional.linear(torch.relu(hidden), weight, bias))
        return nn.functional.linear(middle, last_weight, last_bias)


class Calibration(nn.Module):
    """Monotone map of logits, one per task: centred isotonic regression (Oron and Flournoy 2017).

    Isotonic regression gives steps, and steps tie candidates that the ranker told apart. Joining
    the steps' centres by lines keeps the order; beyond the outer centres the logit is shifted.
    """

    knots: Tensor
    values: Tensor
    segments: Tensor
    """float64 [3, 2, Q + 1]: a point left of each segment, one on it, and its slope."""

    def __init__(self, knots: Tensor, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("knots", knots)  # float64 [2, Q], rising raw logits
        self.register_buffer("values", values)  # float64 [2, Q], rising calibrated logits
        # segment i lies left of knot i and passes through (from, to); the outer slopes are 1
        outer = knots.new_ones(2, 1)
        slope = torch.cat([outer, values.diff(dim=1) / knots.diff(dim=1), outer], dim=1)
        start, end = (torch.cat([x[:, :1], x], dim=1) for x in (knots, values))
        self.register_buffer("segments", torch.stack([start, end, slope]), persistent=False)

    def forward(self, logit: Tensor) -> Tensor:
        """Return calibrated probabilities for logits [..., 2], same shape and dtype."""
        flat = logit.reshape(-1, 2).T.contiguous()
        segment = torch.searchsorted(self.knots.to(logit.dtype), flat)
        start, end, slope = self.segments.to(logit.dtype).gather(2, segment.expand(3, -1, -1))
        return torch.sigmoid(end + slope * (flat - start)).T.reshape(logit.shape)
