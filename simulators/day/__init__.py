"""A live day: requests arrive, ads bid, budgets run out, clicks and conversions happen.

Imports the rooms before it: `rewards`, `world`, `rankers`, `synthetic`.
Start with `day.DaySimulator`; `auction`, `budgets` and `pacing` are its rules.
"""
