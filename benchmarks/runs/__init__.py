"""A run: its tasks, the processes that do them, its folder and its table of results.

Imports torch, pandas and `gpr_rl.checkpoint`; no suite and no report.
Start with `tasks.Task`, then `runner.run_tasks` and `results`.
"""
