"""Tests of live days.

Imports `simulators` and `gpr_rl`.
Start with `test_day.py`.
"""
