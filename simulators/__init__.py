"""Worlds: users, ads, hidden behaviour, logs, frozen rankers and rewards (GPR 3.3)."""
