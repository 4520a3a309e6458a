"""Tests of the frozen rankers.

Imports `simulators` and `gpr_rl`.
Start with `test_exact_rankers.py`.
"""
