"""A suite without learning, in the shape that `benchmarks.run` expects."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pandas as pd

from benchmarks.errors import UserError
from benchmarks.flags import RewardFlags
from benchmarks.reports.blocks import Figure, Paragraph, Section, SuiteReport, Table
from benchmarks.reports.lookup import summarise
from benchmarks.reports.reading import compare
from benchmarks.reports.statistics import Interval
from benchmarks.runs.tasks import Task, log_progress
from benchmarks.suite import Settings, Suite

METHODS = ("good", "bad", "crash", "mistake", "die", "nan")


@dataclass(frozen=True, kw_only=True)
class Flags(RewardFlags):
    """Nothing."""


@dataclass(frozen=True, kw_only=True)
class ExtendableFlags(RewardFlags):
    """Nothing, and it can grow."""

    EXTENDABLE: ClassVar = ("methods", "seeds")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    world: str = "tiny"
    num_seeds: int = 2
    num_steps: int = 3
    delay_s: float = 0.0


def prepare(*, out: str, seed: int) -> None:
    Path(out, f"prepared-{seed}").write_text("x")


def work(*, out: str, method: str, seed: int, num_steps: int, delay_s: float) -> pd.DataFrame:
    with Path(out, "calls.txt").open("a") as file:
        file.write(f"{method} {seed}\n")
    assert Path(out, f"prepared-{seed}").exists()
    if method == "crash":
        raise RuntimeError("the engine\nfell off")
    if method == "mistake":
        raise UserError("reward 'x' returned inf for request 7")
    if method == "die":
        os._exit(9)
    gain = {"good": 1.0, "bad": -1.0, "nan": float("nan")}[method]
    rows = []
    for step in range(1, num_steps + 1):
        log_progress(step, num_steps, loss=float("nan"))
        time.sleep(delay_s)
        rows.append(("fake", method, seed, step, "validation", "value", gain * step + seed / 3))
    rows.append(("fake", method, seed, num_steps, "test", "value", gain + seed / 3))
    threads = float(os.environ["OMP_NUM_THREADS"])
    rows.append(("fake", method, seed, num_steps, "test", "threads", threads))
    return pd.DataFrame(
        rows, columns=["suite", "method", "seed", "step", "split", "metric", "value"]
    )


def make_tasks(settings: Settings) -> list[Task]:
    sizes, out = settings.sizes, settings.out
    assert isinstance(sizes, Sizes)
    tasks = []
    for seed in settings.seeds:
        tasks.append(
            Task(
                name=f"prepare, seed {seed}",
                function="tests.benchmarks.fake_suite:prepare",
                kwargs={"out": str(out), "seed": seed},
                out=out,
                files=(out / f"prepared-{seed}",),
            )
        )
        for method in settings.methods:
            tasks.append(
                Task(
                    name=f"{method}, seed {seed}",
                    function="tests.benchmarks.fake_suite:work",
                    kwargs={
                        "out": str(out),
                        "method": method,
                        "seed": seed,
                        "num_steps": sizes.num_steps,
                        "delay_s": sizes.delay_s,
                    },
                    needs=(f"prepare, seed {seed}",),
                    out=out,
                )
            )
    return tasks


def finish(settings: Settings, results: pd.DataFrame) -> SuiteReport:
    from benchmarks.reports.figures import (  # matplotlib: not in children
        interval_chart,
        learning_curves,
    )

    summary = summarise(results)
    rows = [
        (r.method, r.metric, Interval(r.iqm, r.ci_low, r.ci_high), r.num_seeds)
        for r in summary.itertuples()
        if r.split == "test"
    ]
    table = Table("Values & <gains>", ("method", "metric", "IQM", "seeds"), rows, note="95 %")
    curves = learning_curves(
        results, "value", methods=settings.methods, split="validation", label="value"
    )
    chart = interval_chart({"value": [(row[0], row[2]) for row in rows]}, label="value")
    return SuiteReport(
        title="A fake comparison",
        lead="Nothing was learnt in `tiny`.",
        sections=[
            Section("Curves", [Paragraph("Up."), Figure("curves", "By step", curves)]),
            Section("Values", [Figure("values", "At the end", chart)]),
        ],
        tables=[table],
        differences=compare(results, "value", "the value", settings.methods, "bad"),
    )


SUITE = Suite(
    name="fake",
    flags=Flags,
    methods=METHODS,
    presets={"smoke": Sizes(), "quick": Sizes(num_seeds=2, delay_s=0.2)},
    make_tasks=make_tasks,
    finish=finish,
)
