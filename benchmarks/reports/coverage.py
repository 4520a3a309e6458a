"""How often a nominal 95 % interval covers the truth: `python -m benchmarks.reports.coverage`.

Runs are simulated from known distributions; the interval is the reports' own, a percentile
bootstrap of the interquartile mean over a few seeds. Ten seconds on one core.
"""

from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.reports.statistics import bootstrap, interquartile_mean

Draw = Callable[[np.random.Generator, int], np.ndarray]

DISTRIBUTIONS: dict[str, Draw] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "log-normal": lambda rng, n: rng.lognormal(sigma=0.75, size=n),
    "uniform": lambda rng, n: rng.uniform(size=n),
    "one in ten collapses": lambda rng, n: rng.normal(size=n) - 6.0 * (rng.uniform(size=n) < 0.1),
}
NUM_SEEDS = (3, 5, 10, 20)


def coverage(
    draw: Draw, num_seeds: int, *, num_runs: int = 1_000, num_resamples: int = 400, seed: int = 0
) -> float:
    """Return the share of simulated experiments whose interval holds the true value.

    That is what the interquartile mean of `num_seeds` runs of `draw`'s scores is on average.
    """
    rng = np.random.default_rng(seed)
    truth = float(interquartile_mean(draw(rng, 50_000 * num_seeds).reshape(-1, num_seeds)).mean())
    covered = 0
    for run in range(num_runs):
        found = bootstrap(draw(rng, num_seeds), run, num_resamples=num_resamples)
        covered += found.low <= truth <= found.high
    return covered / num_runs


def main() -> None:
    """Print the table."""
    table = Table("scores", *(f"{n} seeds" for n in NUM_SEEDS))
    for name, draw in DISTRIBUTIONS.items():
        table.add_row(name, *(f"{coverage(draw, n):.1%}" for n in NUM_SEEDS))
    Console().print(table)


if __name__ == "__main__":
    main()
