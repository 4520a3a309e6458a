"""Tests of the supervised stages.

Imports `gpr_rl`.
Start with `test_pretraining.py`.
"""
