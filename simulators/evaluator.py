"""The hidden truth of synthetic worlds; lives in `simulators.synthetic.evaluator`."""

from simulators.synthetic.evaluator import TruthEvaluator, read_truth

__all__ = ["TruthEvaluator", "read_truth"]
