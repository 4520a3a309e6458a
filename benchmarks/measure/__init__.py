"""Measuring: seconds, multiply-adds and memory.

Imports torch only.
Start with `timing.py`.
"""
