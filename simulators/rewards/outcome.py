"""What the frozen rankers, the auction and the budgets say of candidates: the input of a reward.

Dims: B requests, K candidates.
"""

import torch
from jaxtyping import Float, Int
from tensordict import TensorClass
from torch import Tensor


class Outcome(TensorClass):
    """What the frozen rankers say of K candidates of B requests, batch [B, K]."""

    request_id: Tensor  # int64 [B, K]
    user_id: Tensor  # int64 [B, K]
    ad_id: Tensor  # int64 [B, K]
    pctr: Tensor  # float [B, K] in [0, 1]; ones in a world without clicks
    pcvr: Tensor  # float [B, K] in [0, 1]
    bid: Tensor  # float [B, K], per 1,000 impressions, click or conversion, see bid_type
    bid_type: Tensor  # int64 [B, K]: 0 CPM, 1 CPC, 2 OCPA
    ecpm: Tensor  # float [B, K], expected revenue per 1,000 impressions
    advertiser: Tensor  # int64 [B, K]
    category: Tensor  # int64 [B, K]
    price: Tensor  # float [B, K], of the advertised product
    alpha: Tensor  # float [B, K, 2], weights of pCTR and pCVR in Eq. 5, frozen in the world
    payment: Tensor | None = None
    # float [B, K], expected charge per 1,000 impressions; eCPM unless an auction set another price
    budget_left: Tensor | None = None
    # float [B, K] in [0, 1], share left of the advertiser's daily budget; 1 in single requests
    small_advertiser: Tensor | None = None
    # bool [B, K], the advertiser's daily budget is below the median advertiser's


def ecpm(
    pctr: Float[Tensor, "*shape"],
    pcvr: Float[Tensor, "*shape"],
    bid: Float[Tensor, "*shape"],
    bid_type: Int[Tensor, "*shape"],
) -> Float[Tensor, "*shape"]:
    """Return expected revenue per 1,000 impressions.

    CPM: the bid. CPC: 1000 pCTR bid. OCPA: 1000 pCTR pCVR bid.
    """
    per_click = 1000.0 * pctr * bid
    return torch.where(bid_type == 0, bid, torch.where(bid_type == 1, per_click, per_click * pcvr))
