"""Worlds made from real logs: reading, splitting by day, labels, requests and simulated bids.

Imports the rooms before it; `readers` and `formats` turn files into one table of events.
Start with `simulators.import_log`, the command, then `requests`.
"""
