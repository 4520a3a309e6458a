"""Tests of worlds and what a request shows.

Imports `simulators` and `gpr_rl`.
Start with `test_world.py`.
"""
