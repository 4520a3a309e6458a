"""The recommender behind HTTP: `python -m gpr_rl.serve POLICY --world DIR`.

Needs the extra `serve` (FastAPI, uvicorn, prometheus-client). See `docs/serving.md`.
"""
