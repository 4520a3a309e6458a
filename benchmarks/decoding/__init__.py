"""Suite `decoding`: how fast, how exact and how steady the search for ads is.

Imports `benchmarks.runs`, `reports` and `measure`; no other suite.
Start with `suite.py` and `presets.py`; there is a module per part, named after it.
"""
