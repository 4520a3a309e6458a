"""The frozen rankers: pCTR and pCVR networks trained on a world's logs, calibrated, then fixed.

Imports `simulators.world` and `simulators.rewards`.
Start with `frozen.FrozenRankers`; `training` makes them, `cards` says how good they are.
"""
