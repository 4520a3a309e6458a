"""What every method was given to choose from, what was chosen, and how sure that is."""

import math
from collections.abc import Mapping, Sequence

from agents.methods import default_learning_rate, method_config
from benchmarks.alignment.presets import AlignmentPreset, AlignmentSettings
from benchmarks.alignment.tuning import SUPERVISED_SPACES, space_of
from benchmarks.reports.blocks import Cell, Paragraph, Section, Table
from benchmarks.reports.reading import count
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
        size = math.prod(len(values) for values in space_of(method).values())
        words = ", ".join(_changes(method, log["chosen"], sizes))
        best, following = (t["score"] if t else None for t in [*scored, None, None][:2])
        error = scored[0].get("error") if scored else None
        num_clear += _is_clear(scored)
        cells: list[Cell] = [method, size, len(trials), len(scored), trials[0]["score"]]
        rows.append([*cells, best, following, error, words or "the defaults"])
    draws = (
        f"its defaults and {count(plan.num_trials - 1, 'draw')} from its search space"
        if plan.num_trials > 1
        else "its defaults alone"
    )
    text = (
        f"Every method had {count(plan.num_trials, 'trial')} of {plan.num_steps} steps on seeds "
        f"{plan.seeds[0]} to {plan.seeds[-1]}, which no test uses: {draws}. The score is what is "
        "served of a list of 5 by the rankers' own value, as a share of the gain, on "
        f"{sizes.num_validation_requests} validation requests per seed. The truth was not looked "
        "at. The log is in the run's folder, `tuning/METHOD.json`."
    )
    sure = (
        f"The best trial leads the next by more than two standard errors for {num_clear} of "
        f"{count(len(rows), 'method')}."
    )
    if num_clear < len(rows):
        sure += (
            " Elsewhere no choice is sure: this many requests can't tell the best trials apart. "
            "What seeds do comes on top."
        )
    table = Table(
        "Tuning",
        ["method", "space", "trials", "scored", "defaults", "best", "next", "error", "chosen"],
        rows,
        "chosen: what differs from the defaults. error: standard error of the best score over the "
        "validation requests; it leaves out what seeds do.",
    )
    several = [Paragraph(sure)] if plan.num_trials > 1 else []
    return Section("Tuning", [Paragraph(text), *several, table])


def _changes(method: str, chosen: Mapping[str, float], sizes: AlignmentPreset) -> list[str]:
    """Return what was chosen and is not a default."""
    if method in SUPERVISED_SPACES:
        usual = vars(sizes.warm_start)
    else:
        usual = dict(vars(method_config(method, sizes.training)))
        usual["learning_rate"] = usual["learning_rate"] or default_learning_rate(method)
    return [f"{name} {value:g}" for name, value in chosen.items() if value != usual[name]]


def _is_clear(scored: Sequence[Mapping[str, float]]) -> bool:
    """Return whether the first of two trials leads by more than two standard errors."""
    if len(scored) < 2 or "error" not in scored[0]:
        return False
    first, second = scored[:2]
    return first["score"] - second["score"] > 2.0 * math.hypot(first["error"], second["error"])
