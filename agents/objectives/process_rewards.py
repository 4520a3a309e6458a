"""Hierarchical process rewards from what a user clicked before (GPR 3.3, Eqs. 6 and 7).

Dims: B requests, K candidates, L levels (coarse to fine), V codes per level, M past successes.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agents.candidates import check_range, check_shape
from gpr_rl.checks import check_codes
from gpr_rl.random import Purpose, uniform

PROCESS_REWARDS = ("capped", "uncapped", "potential")


def process_rewards(
    popularity: Float[Tensor, "B L V"] | Float[Tensor, "B K L V"],
    codes: Int[Tensor, "B K L"],
    legal_mask: Bool[Tensor, "B K L V"],
    scale: Float[Tensor, " coarse"],
) -> Float[Tensor, "B K coarse"]:
    """Return alpha_l max(0, P_l(z_l) - mean over the legal children of P_l) for l < L (Eqs. 6, 7).

    The mean runs over the children of the chosen prefix, z_l among them: a code that is popular
    only because all its siblings are gets nothing.

    Args:
        popularity: P_l(t) in [0, 1], per request, or per candidate where it depends on the prefix.
        codes: The chosen path, in [0, V).
        legal_mask: Row l: the legal codes after z_{1:l-1}.
        scale: alpha_l >= 0 in the unit of the terminal reward, L - 1 entries.

    Returns:
        The process rewards of the L - 1 coarse levels, 0 where the mask row is empty.

    Raises:
        ValueError: A wrong shape, a code outside [0, V) or a negative scale.
    """
    check_shape("scale", scale, "L-1", (max(codes.shape[-1] - 1, 0),))
    if not torch.compiler.is_compiling() and (scale < 0).any():
        raise ValueError(f"scale must not be negative, got {scale.tolist()}")
    return scale * popularity_deltas(popularity, codes, legal_mask).clamp_min(0.0)


def popularity_deltas(
    popularity: Float[Tensor, "B L V"] | Float[Tensor, "B K L V"],
    codes: Int[Tensor, "B K L"],
    legal_mask: Bool[Tensor, "B K L V"],
) -> Float[Tensor, "B K coarse"]:
    """Return delta_l = P_l(z_l) - mean over the legal children of P_l for l < L (Eq. 6).

    0 where the mask row is empty. Arguments and errors are those of `process_rewards`.
    """
    check_shape("codes", codes, "B, K, L")
    num_requests, _, num_levels = codes.shape
    check_range("the number of levels", num_levels, 1)
    if legal_mask.dtype != torch.bool:
        raise ValueError(f"legal_mask must be bool, got {legal_mask.dtype}")
    check_shape("legal_mask", legal_mask, "B, K, L, V", (*codes.shape, *legal_mask.shape[3:]))
    num_codes = legal_mask.shape[-1]
    if popularity.ndim == 3:
        check_shape("popularity", popularity, "B, L, V", (num_requests, num_levels, num_codes))
        popularity = popularity.unsqueeze(1).expand(legal_mask.shape)
    check_shape("popularity", popularity, "B, K, L, V", legal_mask.shape)
    check_codes(codes, num_codes)

    coarse = slice(0, num_levels - 1)
    legal = legal_mask[..., coarse, :]
    score = popularity[..., coarse, :]
    chosen = score.gather(-1, codes[..., coarse, None]).squeeze(-1)
    count = legal.sum(-1)
    sibling_mean = torch.where(legal, score, 0.0).sum(-1) / count.clamp_min(1)
    return torch.where(count > 0, chosen - sibling_mean, 0.0)


def potential_rewards(
    potential: Float[Tensor, "B K coarse"], discount: float
) -> tuple[Float[Tensor, "B K coarse"], Float[Tensor, "B K"]]:
    """Return discount Phi_l - Phi_{l-1} for l < L, and what level L's reward gets: -Phi_{L-1}.

    Phi is 0 before the first code and after the last, so with discount 1 the sum along a path is 0
    and no policy's order changes (Ng, Harada and Russell 1999). `potential` is Phi_l of the prefix
    z_{1:l} in the unit of the reward, `discount` is gamma in [0, 1].
    """
    check_range("discount", discount, 0.0, 1.0)
    before = torch.cat([torch.zeros_like(potential[..., :1]), potential], -1)
    return discount * potential - before[..., :-1], -before[..., -1]


def prefix_popularity(
    past_codes: Int[Tensor, "B M L"],
    past_valid: Bool[Tensor, "B M"],
    codes: Int[Tensor, "B K L"],
    num_codes: int,
) -> Float[Tensor, "B K L V"]:
    """Return P_l(t | z_{1:l-1}): shares among the past successes that match the chosen prefix.

    Level-2 codes of different level-1 codes mean different things; here only those of the chosen
    one count. 0 everywhere where no success matches. `past_codes` are the paths of the user's M
    latest clicked or converted ads before the request, as far as they are `past_valid`.
    """
    same = past_codes[:, None] == codes[:, :, None]  # [B, K, M, L]
    matches = torch.cat([torch.ones_like(same[..., :1]), same[..., :-1]], -1).cumprod(-1)
    matches = (matches * past_valid[:, None, :, None]).transpose(2, 3).float()  # [B, K, L, M]
    index = past_codes[:, None].transpose(2, 3).expand(matches.shape)
    count = matches.new_zeros(*matches.shape[:3], num_codes).scatter_add_(-1, index, matches)
    return count / count.sum(-1, keepdim=True).clamp_min(1.0)


def shuffle_popularity(
    popularity: Float[Tensor, "B L V"], request_id: Int[Tensor, " B"], seed: int
) -> Float[Tensor, "B L V"]:
    """Return the same numbers on other codes: a permutation keyed by request and level.

    A control: the bonus keeps its size and spread and loses its meaning.
    """
    _, num_levels, num_codes = popularity.shape
    level = torch.arange(num_levels, device=request_id.device)[:, None]
    code = torch.arange(num_codes, device=request_id.device)
    draw = uniform(seed, Purpose.SHUFFLED_POPULARITY, request_id[:, None, None], level, code)
    return popularity.gather(-1, draw.argsort(dim=-1, stable=True))
