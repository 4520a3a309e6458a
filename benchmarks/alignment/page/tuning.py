"""What every method was given to choose from, what was chosen, and how sure that is."""

import math
from collections.abc import Mapping, Sequence

from agents.methods import search_space
from benchmarks.alignment.presets import AlignmentSettings
from benchmarks.reports.blocks import Cell, Paragraph, Section, Table
from benchmarks.reports.trials import read_all


def tuning_section(settings: AlignmentSettings) -> Section | None:
    """Return what every method was given to choose from, and what was chosen."""
    sizes = settings.sizes
    plan = sizes.tuning
    folder = settings.out / "tuning"
    if not plan.num_trials or not folder.is_dir():
        return None
    rows: list[list[Cell]] = []
    num_clear = 0
    for method, log in read_all({p.stem: p for p in sorted(folder.glob("*.json"))}).items():
        trials = log["trials"]
        scored = sorted(
            (t for t in trials if t["score"] is not None), key=lambda t: t["score"], reverse=True
        )
        size = math.prod(len(values) for values in search_space(method).values())
        words = ", ".join(f"{name} {value:g}" for name, value in log["chosen"].items())
        best, following = (t["score"] if t else None for t in [*scored, None, None][:2])
        error = scored[0].get("error") if scored else None
        num_clear += _is_clear(scored)
        cells: list[Cell] = [method, size, len(trials), len(scored), trials[0]["score"]]
        rows.append([*cells, best, following, error, words or "the defaults"])
    text = (
        f"Every method had {plan.num_trials} trials of {plan.num_steps} steps on seeds "
        f"{plan.seeds[0]} to {plan.seeds[-1]}, which no test uses: its defaults and "
        f"{plan.num_trials - 1} draws from a search space of equal size. The score is what is "
        "served of a list of 5 by the rankers' own value, as a share of the gain, on "
        f"{sizes.num_validation_requests} validation requests per seed. The truth was not looked "
        "at. The log is in the run's folder, `tuning/METHOD.json`."
    )
    sure = (
        f"The best trial leads the next by more than two standard errors for {num_clear} of "
        f"{len(rows)} methods. Elsewhere the choice is one of several that this many requests and "
        "seeds can't tell apart."
    )
    table = Table(
        "Tuning",
        ["method", "space", "trials", "scored", "defaults", "best", "next", "error", "chosen"],
        rows,
        "chosen: what differs from the defaults. error: standard error of the best score over the "
        "validation requests; trials share their requests, so differences are surer than that.",
    )
    return Section("Tuning", [Paragraph(text), Paragraph(sure), table])


def _is_clear(scored: Sequence[Mapping[str, float]]) -> bool:
    """Return whether the first of two trials leads by more than two standard errors."""
    if len(scored) < 2 or "error" not in scored[0]:
        return False
    first, second = scored[:2]
    return first["score"] - second["score"] > 2.0 * math.hypot(first["error"], second["error"])
