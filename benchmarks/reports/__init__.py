"""Reports: blocks of text, tables and figures, the statistics behind them, and their rendering.

Imports `benchmarks.runs.results`; no suite.
Start with `blocks.SuiteReport`; `reading` turns intervals into sentences.
"""
