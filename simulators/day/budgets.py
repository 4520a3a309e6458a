"""Daily budgets of owners (advertisers) in independent markets, settled in batches.

Rule: inside a batch, charges are taken in the order of `order` (request time or id). A charge is
paid in full if its owner has spent less than its budget before it, otherwise nothing is paid. So an
owner overspends by less than one charge, however many charges arrive at once.

Spending is counted in whole billionths of the currency unit, each charge rounded to the nearest:
sums are then exact and do not depend on the order in which they are formed. Ten charges of 0.1 are
1, which binary fractions miss.

Dims: B charges, M markets, A owners. Money is float64 in one currency.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gpr_rl.checks import check_at_least

UNITS = 1_000_000_000
"""Parts of the currency unit that are counted."""
MAX_AMOUNT = 4e9
"""Largest finite budget and single charge, in currency. No owner's spending may pass twice as much,
or an int64 count could overflow."""


def to_units(amount: Float[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Return money as a whole number of billionths; infinity as the largest amount."""
    return (amount.double().clamp_max(2 * MAX_AMOUNT) * UNITS).round().long()


def spent_before(
    group: Int[Tensor, " B"], units: Int[Tensor, " B"], order: Tensor | None = None
) -> Int[Tensor, " B"]:
    """Return, per row, the sum of `units` of its group's earlier rows (exclusive, segmented).

    Earlier is by `order` [B]; equal entries, or None: by row. Units are whole, so sums are exact.
    """
    if order is None:
        by_group = group.argsort(stable=True)
    else:
        by_order = order.argsort(stable=True)
        by_group = by_order[group[by_order].argsort(stable=True)]
    sorted_group, sorted_units = group[by_group], units[by_group]
    before = sorted_units.cumsum(0) - sorted_units
    first = torch.ones_like(sorted_group, dtype=torch.bool)
    first[1:] = sorted_group[1:] != sorted_group[:-1]
    before = before - before[first][first.long().cumsum(0) - 1]
    return torch.empty_like(before).scatter_(0, by_group, before)


class Budgets:
    """What each owner may spend in a day and has spent, in M markets that do not share money."""

    def __init__(self, daily_budget: Float[Tensor, " A"], num_markets: int = 1) -> None:
        """Start a day with nothing spent.

        The budgets are in currency per day, the same in every market; 0 never spends, infinity has
        no limit.

        Raises:
            ValueError: A budget that is NaN, negative, or finite and above `MAX_AMOUNT`.
        """
        check_at_least(1, num_markets=num_markets)
        self.daily_budget = daily_budget.double()
        good = (self.daily_budget >= 0.0) & (
            (self.daily_budget <= MAX_AMOUNT) | torch.isposinf(self.daily_budget)
        )
        if not good.all():
            owner = int((~good).nonzero()[0])
            raise ValueError(
                f"daily_budget must lie in [0, {MAX_AMOUNT:g}] or be inf, got "
                f"{self.daily_budget[owner].item()} for owner {owner}"
            )
        self._budget = to_units(self.daily_budget)
        self._spent = self._budget.new_zeros(num_markets, len(self._budget))

    @property
    def spent(self) -> Float[Tensor, "M A"]:
        """What each owner has spent since the last reset, in currency."""
        return self._spent.double() / UNITS

    def remaining(self) -> Float[Tensor, "M A"]:
        """Return what is left of each budget, not below 0, in currency (inf without a limit)."""
        left = (self._budget - self._spent).clamp_min(0).double() / UNITS
        return left.masked_fill(torch.isposinf(self.daily_budget), torch.inf)

    def can_spend(self) -> Bool[Tensor, "M A"]:
        """Return who has spent less than its budget: these owners' ads may be shown."""
        return self._spent < self._budget

    def settle(
        self,
        market: Int[Tensor, " B"],
        owner: Int[Tensor, " B"],
        amount: Float[Tensor, " B"],
        order: Tensor | None = None,
    ) -> Float[Tensor, " B"]:
        """Book a batch of charges by the module's rule; return what of each is paid, float64 [B].

        Amounts are in currency, not negative; rows without a charge may name any owner with amount
        0. `order` is the position in time of each charge [B]; equal entries, or None: row order.
        With distinct entries the outcome does not depend on how rows are arranged.

        Raises:
            ValueError: An amount, market or owner out of range, naming the row and the value.
        """
        amount = amount.double()
        num_markets, num_owners = self._spent.shape
        self._check("amount", amount, MAX_AMOUNT)
        self._check("market", market, num_markets - 1)
        self._check("owner", owner, num_owners - 1)
        units = to_units(amount)
        group = market * num_owners + owner
        spent = self._spent.view(-1)
        if float(amount.sum()) + float(self._spent.max() if spent.numel() else 0) / UNITS > (
            2 * MAX_AMOUNT
        ):
            raise ValueError(f"a batch of charges may not lead above {2 * MAX_AMOUNT:g} in all")
        # Once an owner's charges reach its budget none is paid any more, so the sum of all earlier
        # charges and that of the paid ones lie on the same side of the budget.
        before = spent[group] + spent_before(group, units, order)
        pays = before < self._budget[owner]
        spent.index_add_(0, group, units.where(pays, 0))
        return amount.where(pays, 0.0)

    def reset(self, markets: Bool[Tensor, " M"] | None = None) -> None:
        """Begin a new day, in the given markets or in all."""
        self._spent[slice(None) if markets is None else markets] = 0

    @staticmethod
    def _check(name: str, value: Tensor, high: float | int) -> None:
        good = (value >= 0) & (value <= high)
        if not good.all():
            row = int((~good).nonzero()[0])
            raise ValueError(
                f"{name} must lie in [0, {high:g}], got {value[row].item()} in row {row}"
            )
