"""Suite `tokenizers`: semantic IDs (Tab. 1).

Imports `benchmarks.runs`, `reports` and `measure`; no other suite.
Start with `suite.py`, then `fit.py` and `catalogues.py`.
"""
