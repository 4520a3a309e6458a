"""Tests of the decoder, its parts and its rivals.

Imports `gpr_rl` and `tests.references`.
Start with `test_hhd.py`.
"""
