"""Objectives of the stages before reinforcement learning."""
