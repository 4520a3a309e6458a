"""Tests of `benchmarks`: runs, reports, and in `suites/` one file per suite.

Imports every package.
Start with `test_run_cli.py`.
"""
