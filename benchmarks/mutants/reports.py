"""Mutants of the suites' reports."""

from benchmarks.mutants.mutant import mutants_of

_TESTS = "tests/benchmarks/reports"

REPORTS = [
    *mutants_of(
        "benchmarks/tokenizers/report.py",
        f"{_TESTS}/test_tokenizers_report.py",
        [
            ('pairs["rq_kmeans"] / pairs["ua_sid"]', 'pairs["ua_sid"] / pairs["rq_kmeans"]'),
            ('(pairs["ua_sid"] == 0).any()', '(pairs["ua_sid"] == 0).all()'),
            ('"usage 1": ("code_usage", 1)', '"usage 1": ("code_usage", 2)'),
            ('"usage 3": ("code_usage", 3)', '"usage 3": ("code_usage", 1)'),
            ('"fewer collisions", False', '"fewer collisions", True'),
            ('"a higher path similarity", True', '"a higher path similarity", False'),
            ('"improves": "holds"', '"improves": "is not clear"'),
            ("[plus], rival, split", "[rival], plus, split"),
            ('("entropy", level)', '("entropy", 4 - level)'),
            ('for split in ("train", "heldout")', 'for split in ("heldout", "train")'),
            ("len(scores), scores[0], best, chosen", "len(scores), best, scores[0], chosen"),
            ("best = min(score", "best = max(score"),
            ('f"{rate:,.0f}", f"{gflops:.0f}"', 'f"{gflops:,.0f}", f"{rate:.0f}"'),
        ],
    ),
    *mutants_of(
        "benchmarks/off_policy/report.py",
        f"{_TESTS}/test_off_policy_report.py",
        [
            ('["coverage"] < NOMINAL - TOLERATED', '["coverage"] > NOMINAL - TOLERATED'),
            ("NOMINAL - TOLERATED]", "NOMINAL + TOLERATED]"),
            ("best, worst = ranked[0], ranked[-1]", "best, worst = ranked[-1], ranked[0]"),
            (
                "value[worst]['rmse'] / value[best]['rmse']",
                "value[best]['rmse'] / value[worst]['rmse']",
            ),
            (
                'key=lambda m: -value[m]["rank_correlation"]',
                'key=lambda m: value[m]["rank_correlation"]',
            ),
            ("< 0.01", "< -1.0"),
            ("[m for m in methods if m not in low]", "[m for m in methods if m in low]"),
            ("> 0.5 * value[m]", "< 0.5 * value[m]"),
            (
                "int(np.argmin(rows)), int(np.argmax(rows))",
                "int(np.argmax(rows)), int(np.argmin(rows))",
            ),
            ('"above" if', '"below" if'),
            ("max(known, key", "min(known, key"),
            ("higher_is_better=False", "higher_is_better=True"),
            ('"|bias|": "abs_bias"', '"|bias|": "bias"'),
            ('"value") / behavior', '"value") - behavior'),
            (
                '[("bias", m) for m in methods] + [("rmse", m)',
                '[("rmse", m) for m in methods] + [("bias", m)',
            ),
            ("max(sizes.log_sizes)", "min(sizes.log_sizes)"),
        ],
    ),
    *mutants_of(
        "benchmarks/architecture/report.py",
        f"{_TESTS}/test_architecture_report.py",
        [
            ('[row], f"control_{row}")', "[row], BASE)"),
            ('["refining"], "thinking")', '["refining"], BASE)'),
            ("[FULL], rival)", "[rival], FULL)"),
            ("[LAZY], DEEP)", "[DEEP], LAZY)"),
            ("words, parts, BASE)", "words, parts, FULL)"),
            ('"Recall@10": "recall_10"', '"Recall@10": "ndcg_10"'),
            ('"parameters": "num_parameters"', '"parameters": "num_inner_parameters"'),
            ('"loss at the start": "first_loss"', '"loss at the start": "last_loss"'),
            ("num_ads <= list_size", "num_ads < list_size"),
            ("if best == last]", "if best != last]"),
            ("for n in THREADS]", "for n in reversed(THREADS)]"),
            (
                '["method", "metric"], sort=False)["value"].mean()',
                '["method", "metric"], sort=False)["value"].max()',
            ),
        ],
    ),
    *mutants_of(
        "benchmarks/alignment/report.py",
        f"{_TESTS}/test_alignment_report.py",
        [
            (
                '("proxy", "rankers,"), ("truth", "truth,")',
                '("truth", "rankers,"), ("proxy", "truth,")',
            ),
            (
                '("proxy", "rankers"), ("truth", "truth")',
                '("truth", "rankers"), ("proxy", "truth")',
            ),
            ('"gap, greedy": "hacking_gap_greedy"', '"gap, greedy": "hacking_gap_served"'),
            (
                '"regret, truth": "truth_regret_expected"',
                '"regret, truth": "proxy_regret_expected"',
            ),
            (
                "compare(final, metric, words, ours, rival)",
                "compare(final, metric, words, [rival], ours[0])",
            ),
            ("(share <= 0).sum()", "(share > 0).sum()"),
            ('in ("dpo", "ppo", "grpo"):', 'in ("dpo", "ppo"):'),
            ('"OPR": "opr"', '"OPR": "opr_own"'),
            (
                '"truth_share_expected" if info.has_truth else',
                '"proxy_share_expected" if info.has_truth else',
            ),
            ('("auc", "auc_oracle", "log_loss"', '("auc_oracle", "auc", "log_loss"'),
        ],
    ),
    *mutants_of(
        "benchmarks/alignment/tables.py",
        f"{_TESTS}/test_alignment_report.py",
        [
            (
                'pair["row"], pair["baseline"]',
                'pair["baseline"], pair["row"]',
            ),
            ('"lowers": "worse"', '"lowers": "better"'),
            ("- low) / (high - low)", "- low) / high"),
            (
                'group["pool_min"].transform("min")',
                'group["pool_min"].transform("max")',
            ),
            ('limit = total.groupby("seed").min()', 'limit = total.groupby("seed").max()'),
            (
                "            d.chance,\n            d.p_value,",
                "            d.p_value,\n            d.chance,",
            ),
            ('[c for c in parts if c != "requests_s"]', "parts"),
            (
                "method, VIEWS[view], TEST",
                'method, VIEWS["rankers"], TEST',
            ),
        ],
    ),
    *mutants_of(
        "benchmarks/alignment/studies.py",
        f"{_TESTS}/test_alignment_report.py",
        [
            (
                "for name in (method, rival))",
                "for name in (rival, method))",
            ),
            (
                "paired(results, row, plain, metric)",
                "paired(results, plain, row, metric)",
            ),
            (
                'paired(results, row, plain, "entropy")',
                'paired(results, plain, row, "entropy")',
            ),
        ],
    ),
]
