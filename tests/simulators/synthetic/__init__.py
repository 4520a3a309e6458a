"""Tests of made-up worlds.

Imports `simulators` and `gpr_rl`.
Start with `test_hidden_truth.py`.
"""
