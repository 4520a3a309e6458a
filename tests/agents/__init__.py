"""Tests of `agents`.

Imports `agents` and what it stands on, and `tests.references`.
Start with `test_objective_identities.py`.
"""
