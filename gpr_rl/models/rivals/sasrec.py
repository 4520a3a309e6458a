"""SASRec: a causal Transformer over item ids (Kang & McAuley 2018), trained with cross-entropy.

Dims: B windows or requests, T tokens, P supervised positions, N ads, M organic items, D width.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gpr_rl.models.checks import check_some, check_tokens
from gpr_rl.models.rivals.parts import AdScorer, RivalConfig, item_columns, transformer_blocks
from gpr_rl.schema import Action, InputSpec, Tokens

_INIT_STD = 0.02  # near-uniform predictions at the start


@dataclass(frozen=True, kw_only=True)
class SASRecConfig(RivalConfig):
    """Sizes of `SASRec`. Of SASRec itself: dim 50, 1 head, dropout 0.2 to 0.5."""

    num_layers: int = 2
    """Transformer blocks. SASRec: 2."""
    ffn_multiple: int = 2
    """Hidden width of the feed-forward network in units of `dim`. SASRec: 1; as in `HHDConfig`."""


class SASRec(AdScorer):
    """Predicts the next of N ads from the ids of the items before and what was done with them.

    A request's state is the output at the last O or I token before its E token, or a learned
    vector where there is none; a score is its dot product with an ad's input embedding.

    Differs from Kang & McAuley: cross-entropy over all ads in place of one sampled negative, the
    stronger variant (Klenitskiy & Vasilev 2023); the normalisation before both sub-layers, as is
    usual today; an action embedding, since ads and organic items are one sequence; positions
    count from the window's first item, so that a window can be supervised at several places at
    once. U and E tokens are not read.

    Raises:
        ValueError: Fewer items (N + M, ads and organic) than ads.
    """

    def __init__(self, config: SASRecConfig, spec: InputSpec, num_ads: int, num_items: int) -> None:
        super().__init__()
        if num_items < num_ads:
            raise ValueError(f"num_items must be at least num_ads={num_ads}, got {num_items}")
        self.spec, self.num_ads = spec, num_ads
        self.item = nn.Embedding(num_items, config.dim)
        self.action = nn.Embedding(len(Action), config.dim)
        self.position = nn.Parameter(torch.randn(spec.max_tokens, config.dim) * _INIT_STD)
        self.start = nn.Parameter(torch.randn(config.dim))
        for embedding in (self.item, self.action):
            nn.init.normal_(embedding.weight, std=_INIT_STD)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = transformer_blocks(config, config.num_layers)
        self.norm = nn.LayerNorm(config.dim)

    @property
    def ads(self) -> Float[Tensor, "N D"]:  # type: ignore[override]
        """The ads' embeddings."""
        return self.item.weight[: self.num_ads]

    def states(
        self, tokens: Tokens, item: Int[Tensor, "B T"], position: Int[Tensor, "B P"]
    ) -> Float[Tensor, "B P D"]:
        """Return the state after the last item before each `position`."""
        check_some(tokens)
        check_tokens(tokens, self.spec, limited=True)
        columns, count = item_columns(tokens.kind)
        x = self.item(item.gather(1, columns).clamp_min(0))  # right of the items anything will do
        x = x + self.action(tokens.action.gather(1, columns)) + self.position[: columns.shape[1]]
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        start = self.start.expand(len(x), 1, -1)
        known = torch.cat([start, self.norm(x)], dim=1)  # row i is the state after i items
        return known.take_along_dim(count.gather(1, position)[..., None], dim=1)
