"""Layers that several models share: attention with masks and biases, tokens grouped by type.

Imports torch and `gpr_rl.schema`; no model.
Start with `attention.py`.
"""
