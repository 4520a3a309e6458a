"""Slow independent implementations that tests compare with.

Imports nothing of what they check.
Start with `day_reference.py`.
"""
