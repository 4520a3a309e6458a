"""Where a prediction is made, and which items lie before it.

Dims: B windows or requests, T tokens, P supervised positions.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gpr_rl.schema import Tokens, TokenType


def last_position(tokens: Tokens) -> Int[Tensor, "B 1"]:
    """Return the index of each row's last real token, the E token of the request."""
    return (tokens.kind != TokenType.PAD).sum(1, keepdim=True) - 1


def item_columns(kind: Int[Tensor, "B T"]) -> tuple[Int[Tensor, "B n"], Int[Tensor, "B T"]]:
    """Return where the O and I tokens of each row stand, and how many there are up to each token.

    Returns:
        Token indices of a row's items in their order, other tokens' behind them, n being the
        largest number of items that a row has, at least 1; and the number of items among the
        tokens 0..t.
    """
    is_item = (kind == TokenType.ORGANIC) | (kind == TokenType.ITEM)
    count = is_item.cumsum(1)
    most = max(1, int(count[:, -1].max()))
    return (~is_item).long().argsort(dim=1, stable=True)[:, :most], count


def sum_over_parts(
    function: Callable[[Tensor], Tensor], rows: Int[Tensor, " R"], size: int
) -> Float[Tensor, ""]:
    """Return the sum of `function` over parts of `rows` of at most `size` rows.

    Where there are several, backward computes each again, so that it holds one part's
    intermediate results at a time.
    """
    parts = rows.split(size)
    if len(parts) == 1 or not torch.is_grad_enabled():
        return torch.stack([function(part) for part in parts]).sum()
    losses = [checkpoint(function, part, use_reentrant=False) for part in parts]
    return torch.stack(losses).sum()
