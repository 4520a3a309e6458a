"""Breaks code that makes published numbers, a place at a time, and lists what no test notices.

Imports nothing of the project.
Start with `mutant.Mutant`; the lists are `tests/mutants/*.txt`, next to the tests they name.
"""
