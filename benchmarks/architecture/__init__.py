"""Suite `architecture`: the decoder's parts and its rivals (Tab. 2).

Imports `benchmarks.runs`, `reports` and `measure`; no other suite.
Start with `suite.py`, then `models.py` and `train.py`.
"""
