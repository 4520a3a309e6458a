"""Checked tables from files: bad rows are counted and set aside by line and reason.

Imports `gpr_rl.schema` and pandas; no world.
Start with `log.LogSource`; `tables` reads files, `checks` holds the rules.
"""
