"""Tests of `gpr_rl`: decoding and metrics here, the rest by folder.

Imports `gpr_rl` and `tests.references`.
Start with `test_beam.py`.
"""
