"""Mutants of the suites' reports."""

REPORTS = r"""
benchmarks/tokenizers/report.py < benchmarks/reports/test_tokenizers_report.py
    pairs["rq_kmeans"] / pairs["ua_sid"] ==> pairs["ua_sid"] / pairs["rq_kmeans"]
    (pairs["ua_sid"] == 0).any() ==> (pairs["ua_sid"] == 0).all()
    "usage 1": ("code_usage", 1) ==> "usage 1": ("code_usage", 2)
    "usage 3": ("code_usage", 3) ==> "usage 3": ("code_usage", 1)
    "fewer collisions", False ==> "fewer collisions", True
    "a higher path similarity", True ==> "a higher path similarity", False
    "improves": "holds" ==> "improves": "is not clear"
    [plus], rival, split ==> [rival], plus, split
    (("entropy", level) ==> (("entropy", 4 - level)
    for split in ("train", "heldout") ==> for split in ("heldout", "train")
    ALL = "all" ==> ALL = "train"
    len(scores), scores[0], best, chosen ==> len(scores), best, scores[0], chosen
    found = adjust(found) ==> found = list(found)
    best = min(score ==> best = max(score
    f"{rate:,.0f}", f"{gflops:.0f}" ==> f"{gflops:,.0f}", f"{rate:.0f}"
benchmarks/off_policy/report.py < benchmarks/reports/test_off_policy_report.py
    ["coverage"] < NOMINAL - TOLERATED ==> ["coverage"] > NOMINAL - TOLERATED
    NOMINAL - TOLERATED] ==> NOMINAL + TOLERATED]
    best, worst = ranked[0], ranked[-1] ==> best, worst = ranked[-1], ranked[0]
    value[worst]['rmse'] / value[best]['rmse'] ==> value[best]['rmse'] / value[worst]['rmse']
    key=lambda m: -value[m]["rank_correlation"] ==> key=lambda m: value[m]["rank_correlation"]
    < 0.01 ==> < -1.0
    [m for m in methods if m not in low] ==> [m for m in methods if m in low]
    > 0.5 * value[m] ==> < 0.5 * value[m]
    int(np.argmin(rows)), int(np.argmax(rows)) ==> int(np.argmax(rows)), int(np.argmin(rows))
    "above" if ==> "below" if
    max(known, key ==> min(known, key
    higher_is_better=False ==> higher_is_better=True
    "|bias|": "abs_bias" ==> "|bias|": "bias"
    TRUTH, "value") / behavior ==> TRUTH, "value") - behavior
    {"bias": "bias", "rmse": "RMSE", ==> {"bias": "RMSE", "rmse": "bias",
    max(sizes.log_sizes) ==> min(sizes.log_sizes)
benchmarks/reports/trials.py < benchmarks/reports/test_architecture_report.py
    trial["score"] is None else ==> trial["score"] is not None else
benchmarks/architecture/report.py < benchmarks/reports/test_architecture_report.py
    (row, f"control_{row}") ==> (row, BASE)
    ("refining", "thinking") ==> ("refining", BASE)
    (FULL, rival) for ==> (rival, FULL) for
    [(LAZY, DEEP)] ==> [(DEEP, LAZY)]
    (row, BASE) for ==> (row, FULL) for
    "Recall@10": "recall_10" ==> "Recall@10": "ndcg_10"
    "parameters": "num_parameters" ==> "parameters": "num_inner_parameters"
    "loss at the start": "first_loss" ==> "loss at the start": "last_loss"
    num_ads <= list_size ==> num_ads < list_size
    sum(best == last ==> sum(best != last
    for n in THREADS] ==> for n in reversed(THREADS)]
    sort=False)["value"].mean() ==> sort=False)["value"].max()
benchmarks/alignment/report.py < benchmarks/reports/test_alignment_report.py
    ("proxy", "rankers,"), ("truth", "truth,") ==> ("truth", "rankers,"), ("proxy", "truth,")
    for words, metric in VIEWS ==> for metric, words in VIEWS
    "gap, greedy": "hacking_gap_greedy" ==> "gap, greedy": "hacking_gap_served"
    "regret, truth": "truth_regret_expected" ==> "regret, truth": "proxy_regret_expected"
    compare(final, metric, words, ours, rival) ==> compare(final, metric, words, [rival], ours[0])
    (share <= 0).sum() ==> (share > 0).sum()
    in ("dpo", "ppo", "grpo"): ==> in ("dpo", "ppo"):
    "OPR": "opr" ==> "OPR": "opr_own"
    "AUC": "auc", ==> "AUC": "auc_oracle",
benchmarks/alignment/tables.py < benchmarks/reports/test_alignment_report.py
    [row], baseline)), None) ==> [baseline], row)), None)
    "lowers": "worse" ==> "lowers": "better"
    - low) / (high - low) ==> - low) / high
    ["pool_min"].transform("min") ==> ["pool_min"].transform("max")
    limit = total.groupby("seed").min() ==> limit = total.groupby("seed").max()
                d.chance,\n            d.p_value, ==>             d.p_value,\n            d.chance,
    [c for c in parts if c != "requests_s"] ==> parts
    VIEWS[view], TEST) ==> VIEWS["rankers"], TEST)
benchmarks/alignment/studies.py < benchmarks/reports/test_alignment_report.py
    on_market(method, m), on_market(rival, m) ==> on_market(rival, m), on_market(method, m)
    paired(named, name, plain, metric) ==> paired(named, plain, name, metric)
    paired(named, name, plain, "entropy") ==> paired(named, plain, name, "entropy")
benchmarks/rankers/report.py < benchmarks/reports/test_rankers_report.py
    methods[0], "_oracle") ==> methods[-1], "_oracle")
    "auc", words, others, first) ==> "auc", words, [first], others[0])
    x, y = shown["predicted"] ==> y, x = shown["predicted"]
    (points["observed"] > 0) & ==> (points["observed"] >= 0) &
    "the rankers' best ad": "regime/proxy_argmax" ==> "the rankers' best ad": "regime/best"
benchmarks/scaling/report.py < benchmarks/reports/test_scaling_report.py
    [larger], smaller ==> [smaller], larger
    higher_is_better=False ==> higher_is_better=True
    (LOSS, "train_loss") ==> (CURVE, "train_loss")
    steps_to_x=examples ==> steps_to_x=1.0
    len(sizes) >= MIN_SIZES ==> len(sizes) > MIN_SIZES
    results, sizes[-1], "final_loss_error" ==> results, sizes[0], "final_loss_error"
benchmarks/environment/report.py < benchmarks/reports/test_environment_report.py
    measured >= target ==> measured > 2 * target
    (1 - measured / target) ==> (1 + measured / target)
    requests, 1e6 * draw if draw ==> requests, 1e3 * draw if draw
    100 * found[n][name] / found[n][EPISODE] ==> 100 * found[n][EPISODE] / found[n][name]
    cells > sizes.max_cells ==> cells < sizes.max_cells
    makes[1:] or makes ==> makes
benchmarks/environment/reading.py < benchmarks/reports/test_environment_report.py
    gain = together / alone ==> gain = alone / together
    (1 - whole / free) ==> (whole / free)
    theirs / ours:.2f ==> ours / theirs:.2f
    gain < FREE_CORES ==> gain > FREE_CORES
    math.log(longer) / math.log(more) ==> math.log(more) / math.log(longer)
"""
