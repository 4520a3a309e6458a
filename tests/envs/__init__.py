"""Tests of `envs`.

Imports `envs` and what it stands on, and `tests.references`.
Start with `test_env_request.py`.
"""
