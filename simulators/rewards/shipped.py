"""The rewards that come with the package; `simulators.rewards` registers them by name.

All are per 1,000 impressions. NaN means not applicable.

Dims: B requests, K candidates.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from simulators.rewards.outcome import Outcome


def final_value(outcome: Outcome) -> Float[Tensor, "B K"]:
    """GPR Eq. 5: eCPM + (1/M) sum_i alpha_i target_i with targets pCTR and pCVR, [B, K]."""
    targets = torch.stack([outcome.pctr, outcome.pcvr], dim=-1)
    return outcome.ecpm + (outcome.alpha * targets).mean(-1)


def ecpm_only(outcome: Outcome) -> Float[Tensor, "B K"]:
    """Expected revenue at the bid: eCPM alone, [B, K]."""
    return outcome.ecpm


def revenue(outcome: Outcome) -> Float[Tensor, "B K"]:
    """Expected charge, [B, K].

    eCPM where the winner pays its bid, less under a second price or a reserve.
    """
    return outcome.ecpm if outcome.payment is None else outcome.payment


def gmv(outcome: Outcome) -> Float[Tensor, "B K"]:
    """Expected gross merchandise value, [B, K]: 1000 pCTR pCVR price.

    What users are expected to spend at the advertiser; nobody on the platform is paid it.
    """
    return 1000.0 * outcome.pctr * outcome.pcvr * outcome.price


def user_value(outcome: Outcome) -> Float[Tensor, "B K"]:
    """Expected clicks and conversions, [B, K]: 1000 (pCTR + pCTR pCVR).

    Neither bid nor price enters: what users show that they wanted. To be mixed in with a weight,
    which is then the money that one click or conversion is worth to the platform beside its price.
    In a world without clicks pCTR is 1, which adds the same 1,000 to every ad.
    """
    return 1000.0 * (outcome.pctr + outcome.pctr * outcome.pcvr)


def user_value_aware(outcome: Outcome) -> Float[Tensor, "B K"]:
    """Eq. 5 and the user's side at one price, [B, K]: final_value + 1 user_value.

    Every expected click and every expected conversion counts as one unit of money on top; for
    another price mix `final_value` and `user_value` with a weight.
    """
    return final_value(outcome) + user_value(outcome)


def budget_aware(outcome: Outcome) -> Float[Tensor, "B K"]:
    """Value of an ad less as its budget runs out, [B, K]: eCPM (1 - exp(-budget_left)).

    The trade-off function psi(T) = 1 - exp(-(1 - T)), with T the share of the budget that is
    spent, of Mehta, Saberi, Vazirani and Vazirani 2007, "AdWords and generalized online matching":
    showing the ad with the largest bid psi(T) earns at least 1 - 1/e of the best allocation in
    hindsight, for any order of requests, where bids are small beside budgets. NaN where no budget
    is known.
    """
    if outcome.budget_left is None:
        return _not_applicable(outcome)
    return outcome.ecpm * (1.0 - torch.exp(-outcome.budget_left))


def fairness(outcome: Outcome) -> Float[Tensor, "B K"]:
    """Expected revenue of small advertisers, [B, K]: eCPM, and 0 for the others.

    To be mixed in with a weight w, which then raises the bids of advertisers below the median
    daily budget by the factor 1 + w (a bid subsidy, as for small businesses in procurement
    auctions). NaN where it is not known who is small.
    """
    if outcome.small_advertiser is None:
        return _not_applicable(outcome)
    return torch.where(outcome.small_advertiser, outcome.ecpm, 0.0)


def _not_applicable(outcome: Outcome) -> Tensor:
    return torch.full_like(outcome.ecpm, torch.nan)
