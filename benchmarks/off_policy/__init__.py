"""Suite `off_policy`: off-policy estimators against known values.

Imports `benchmarks.runs`, `reports` and `measure`; no other suite.
Start with `suite.py`, then `grades.py` and `tables.py`.
"""
