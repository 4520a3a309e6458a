"""Suite `rankers`: how well the frozen rankers predict.

Imports `benchmarks.runs`, `reports` and `measure`; no other suite.
Start with `suite.py`, then `report.py`.
"""
