"""Tests of `simulators`: rewards and replay here, the rest by room.

Imports `simulators` and `gpr_rl`.
Start with `test_rewards.py`.
"""
