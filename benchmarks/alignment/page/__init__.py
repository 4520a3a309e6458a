"""What the alignment suite says about its results.

Imports the suite's rows and presets and `benchmarks.reports`; trains nothing.
Start with `report.py`.
"""
