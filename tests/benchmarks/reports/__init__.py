"""What the suites' reports say of results that were made by hand.

`frames` makes the tables; every test file is one suite's. Start with `test_tokenizers_report.py`.
"""
