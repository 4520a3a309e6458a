"""What happens where several items share a path: one of them wins, or a suffix.

The paper is silent on it (`docs/decisions.md`). Dims: n items, L levels.
"""

import torch
from jaxtyping import Int
from torch import Tensor

RESOLVE = ("highest_value", "suffix")
"""`highest_value`: a shared path stands for the eligible ad with the highest value, which
`CodeTrie(ad_value=...)` decides; codes stay as they are. `suffix`: one more level that counts the
items of a path, so that every path is one item's."""


def resolve_collisions(codes: Int[Tensor, "n L"], resolve: str) -> Int[Tensor, "n L2"]:
    """Return the paths that training, decoding and the environment use, by one of `RESOLVE`.

    Of `codes` int64 [n, L] that is `codes`, or [n, L + 1] with the suffix 0, 1, ... in the order of
    the rows.

    Raises:
        ValueError: Unknown name.
    """
    if resolve not in RESOLVE:
        raise ValueError(f"resolve must be one of {', '.join(RESOLVE)}, got {resolve!r}")
    if resolve == "highest_value":
        return codes
    _, path, count = codes.unique(dim=0, return_inverse=True, return_counts=True)
    order = path.argsort(stable=True)
    first = count.cumsum(0) - count
    suffix = torch.empty_like(path)
    suffix[order] = torch.arange(len(path), device=path.device) - first[path[order]]
    return torch.cat([codes, suffix[:, None]], dim=1)
