"""Suite `scaling`: loss against the number of parameters (Fig. 5).

Imports `benchmarks.runs`, `reports` and `measure`; no other suite.
Start with `suite.py`, then `train.py`.
"""
