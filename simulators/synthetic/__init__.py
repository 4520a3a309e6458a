"""Made-up worlds: catalogue, users, hidden behaviour, the logging policy and the hidden truth.

Imports `simulators.world`, `simulators.rewards` and `simulators.rankers`.
Start with `config.WorldConfig`; `logs` simulates the logged days, `evaluator` knows the truth.
"""
