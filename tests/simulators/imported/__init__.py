"""Tests of worlds from logs.

Imports `simulators` and `gpr_rl`.
Start with `test_import_log.py`.
"""
