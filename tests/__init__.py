"""The tests, one folder per package; `references/` holds slow independent implementations.

Imports every package of the project.
Start with `conftest.py`, whose fixture `world` most tests share.
"""
