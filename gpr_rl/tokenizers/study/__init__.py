"""The report on one tokenizer's codes that `python -m gpr_rl.tokenizers fit` writes.

Imports `gpr_rl.tokenizers`' measures and matplotlib.
Start with `study.study_codes`; `page` writes it as HTML.
"""
