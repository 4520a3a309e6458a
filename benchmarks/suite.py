"""What a suite of benchmarks is, and what a run of one was asked to do."""

import ast
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import pandas as pd

from benchmarks.errors import UserError
from benchmarks.reports.blocks import SuiteReport
from benchmarks.runs.tasks import Task


class Preset(Protocol):
    """What every preset of every suite has; the rest is the suite's own dataclass."""

    @property
    def world(self) -> str:
        """Default of `--world`."""

    @property
    def num_seeds(self) -> int:
        """Default of `--seeds`."""


EXTENDABLE = ("methods", "seeds", "markets", "ablations", "plugins")
"""What `--resume` may add to, in a suite whose (row, seed) pairs don't depend on each other."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that a run's numbers depend on, and where they go."""

    suite: str
    preset: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    world: str
    """A name or an absolute directory."""
    reward: tuple[str, ...]
    """Specs for `simulators.rewards.RewardMix.from_specs`; empty means `final_value`."""
    sizes: Preset
    """The preset itself."""
    markets: tuple[str, ...] = ()
    """Beside the base market; suites without markets have none."""
    ablations: tuple[str, ...] = ()
    """Rows with one change each; suites without ablations have none."""
    embeddings: Path | None = None
    """A file of the user's, for suites about embeddings."""
    protocol: str = ""
    """What is trained on and tested, in suites with a choice."""
    plugins: tuple[str, ...] = ()
    """Modules that register methods of the user's; every task that trains imports them."""
    out: Path
    resume: bool = False
    logger: str | None = None
    """A logger of torchrl that training also writes to."""

    def to_json(self) -> dict[str, object]:
        """Return what `--resume` compares: all but where the run goes and how it is executed."""
        others = ("world", "reward", "sizes", "embeddings", "protocol")
        names = ("suite", "preset", *EXTENDABLE, *others)
        return {name: getattr(self, name) for name in names}

    def extended(self, stored: Mapping[str, object]) -> "Settings":
        """Return these settings with the rows of a run that they are added to.

        Args:
            stored: The settings in a run's `config.json`.
        """
        merged = {}
        for name in EXTENDABLE:
            before = stored.get(name, [])
            assert isinstance(before, list)
            merged[name] = tuple(dict.fromkeys([*before, *getattr(self, name)]))
        merged["seeds"] = tuple(sorted(merged["seeds"]))
        return replace(self, **merged)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A comparison: its rows, its sizes, its work and its report."""

    name: str
    summary: str
    """One line: what is compared."""
    methods: tuple[str, ...]
    """What `--methods` may name; all of them by default."""
    presets: Mapping[str, Preset]
    make_tasks: Callable[[Settings], list[Task]]
    """Rows that are not methods (references, warm starts) come from tasks of their own."""
    finish: Callable[[Settings, pd.DataFrame], SuiteReport]
    """Makes the report of all rows; reads what tasks left in `settings.out`, runs nothing."""
    markets: tuple[str, ...] = ()
    """What `--markets` may name; without any the suite has no such flag."""
    ablations: tuple[str, ...] = ()
    """What `--ablate` may name; without any the suite has no such flag."""
    synthetic_only: tuple[str, ...] = ()
    """Markets and ablations that only synthetic worlds have."""
    takes_embeddings: bool = False
    """Whether the suite has `--embeddings`."""
    protocols: tuple[str, ...] = ()
    """What `--protocol` may name, the default first; without any the suite has no such flag."""
    takes_rewards: bool = False
    """Whether the suite has `--reward`."""
    takes_logger: bool = False
    """Whether the suite has `--logger`."""
    takes_methods: bool = False
    """Whether `--methods` may name methods of the user's own, as `package.module:name`."""
    is_extendable: bool = False
    """Whether `--resume` may add methods, seeds, markets and ablations to a run."""


SUITES: dict[str, str | Suite] = {
    "alignment": "benchmarks.alignment.suite",
    "architecture": "benchmarks.architecture.suite",
    "environment": "benchmarks.environment.suite",
    "off_policy": "benchmarks.off_policy.suite",
    "rankers": "benchmarks.rankers.suite",
    "scaling": "benchmarks.scaling.suite",
    "tokenizers": "benchmarks.tokenizers.suite",
}
"""Suites by name. A module has `METHODS`, `PRESETS`, `make_tasks` and `finish`, perhaps `MARKETS`,
`ABLATIONS`, `SYNTHETIC_ONLY`, `PROTOCOLS`, `IS_EXTENDABLE` and, True where they are there, those of
`FLAGS`; the first line of its docstring is the summary. It is imported when its suite is asked
for."""
FLAGS = ("takes_embeddings", "takes_rewards", "takes_logger", "takes_methods")


def suite_summary(suite: str | Suite) -> str:
    """Return the one line of a suite; a module is read for it, not imported.

    Raises:
        ValueError: There is no such module, or it has no docstring.
    """
    if isinstance(suite, Suite):
        return suite.summary
    spec = importlib.util.find_spec(suite)
    if spec is None or spec.origin is None:
        raise ValueError(f"suite {suite!r} is no module")
    doc = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
    if not doc:
        raise ValueError(f"suite {suite!r} has no docstring, whose first line is its summary")
    return doc.partition("\n")[0]


def load_suite(name: str, suites: Mapping[str, str | Suite]) -> Suite:
    """Return a suite by name.

    Raises:
        UserError: Unknown name.
    """
    if name not in suites:
        raise UserError(f"unknown suite {name!r}: choose one of {', '.join(suites)}")
    found = suites[name]
    if isinstance(found, Suite):
        return found
    module = importlib.import_module(found)
    return Suite(
        name=name,
        summary=suite_summary(found),
        methods=tuple(module.METHODS),
        presets=module.PRESETS,
        make_tasks=module.make_tasks,
        finish=module.finish,
        markets=tuple(getattr(module, "MARKETS", ())),
        ablations=tuple(getattr(module, "ABLATIONS", ())),
        synthetic_only=tuple(getattr(module, "SYNTHETIC_ONLY", ())),
        protocols=tuple(getattr(module, "PROTOCOLS", ())),
        is_extendable=getattr(module, "IS_EXTENDABLE", False),
        **{name: getattr(module, name.upper(), False) for name in FLAGS},
    )
