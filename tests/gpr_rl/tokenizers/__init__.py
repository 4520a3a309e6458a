"""Tests of semantic IDs.

Imports `gpr_rl`.
Start with `test_tokenizers.py`.
"""
