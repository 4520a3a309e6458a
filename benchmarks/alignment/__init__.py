"""Suite `alignment`: HEPO beside DPO, PPO, GRPO and others (Tab. 3).

Imports `benchmarks.runs`, `reports` and `measure`; no other suite.
Start with `suite.py`, then `rows.py` and `train.py`.
"""
