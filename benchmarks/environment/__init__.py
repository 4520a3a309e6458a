"""Suite `environment`: speed and memory of the environments.

Imports `benchmarks.runs`, `reports` and `measure`; no other suite.
Start with `suite.py`, then `play.py` and `worlds.py`.
"""
