"""Tests of each suite: its rows, and every cell and sentence of its report.

Imports every package.
Start with `test_alignment.py`.
"""
