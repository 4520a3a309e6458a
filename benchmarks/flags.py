"""The flags that suites share.

A suite's own flags are a subclass in its `flags.py`, light to import: the help shows all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from benchmarks.settings import Preset, Settings

Stored = Mapping[str, object]
"""The settings of the run that `--resume` goes on with; empty for a new run."""


def flag(metavar: str, default: str = "as the preset says") -> Any:
    """Return how a flag whose default is not a plain value is shown."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What every suite takes. None means: as the preset says."""

    EXTENDABLE: ClassVar[tuple[str, ...]] = ()
    """Settings that `--resume` may add to, where (row, seed) pairs don't depend on each other."""

    preset: Literal["smoke", "quick", "paper"] = "quick"
    """How much work: within a minute, within ten minutes, or full size, on 2 cores; `architecture`
    and `scaling` train a row five or six times at `quick`: about half an hour, and over an hour."""
    seeds: Annotated[int | None, flag("N", "smoke 2, quick 3, paper 10")] = None
    """How many seeds. Each draws warm start and luck anew, and a synthetic world too."""
    first_seed: Annotated[int, flag("N", "0")] = 0
    """The seeds are first-seed, first-seed + 1, ..."""
    methods: Annotated[tuple[str, ...] | None, flag("NAME ...", "all")] = None
    """Rows to compare. An unknown name lists them."""
    without: Annotated[tuple[str, ...], flag("NAME ...", "none")] = ()
    """Rows to leave out: of all there are, or of a run that is resumed."""
    world: Annotated[str | None, flag("NAME|DIR")] = None
    """tiny, small, medium, constant, standard, weak, journey, or a directory made by `python -m
    simulators.make` or, of a public log, by `python -m simulators.import_log`."""
    out: Annotated[Path | None, flag("DIR", "runs/SUITE-PRESET")] = None
    """Folder of tables, figures, checkpoints and report."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on with the run in the folder, in architecture and scaling perhaps with more methods or
    seeds. What is finished is not run again."""
    workers: Annotated[int, flag("N", "2")] = 2
    """Processes, one thread each. The numbers don't depend on it."""
    launcher: Literal["local", "ray"] = "local"
    """Processes of this machine, or a Ray cluster (RAY_ADDRESS) that shares the folder."""
    publish: Annotated[Path | None, flag("DIR", "none")] = None
    """Also write the report as Markdown there, its figures and every seed's values beside it."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show tracebacks."""

    def choices(self) -> dict[str, tuple[str, ...]]:
        """Return what the suite's own lists of rows may name, by field of `Settings`."""
        return {}

    def complete(self, settings: Settings, before: Stored) -> Settings:
        """Return the settings with what the suite's own flags say."""
        return settings

    def read_methods(self) -> tuple[tuple[str, ...] | None, tuple[str, ...], tuple[str, ...]]:
        """Return the methods asked for, the modules of the user's own, and those they register."""
        return self.methods, (), ()


@dataclass(frozen=True, kw_only=True)
class RewardFlags(Flags):
    """Those of a suite whose environment pays a reward."""

    reward: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        tyro.conf.arg(metavar="SPEC", help_behavior_hint="(default: final_value, GPR Eq. 5)"),
    ] = ()
    """A registered reward or `package.module:function`, weighted by `=0.5`. Repeat the flag for a
    weighted sum; weight 0 only logs."""

    def complete(self, settings: Settings, before: Stored) -> Settings:
        """Return the settings with the rewards, which must load."""
        if self.reward:
            from simulators.rewards import RewardMix

            RewardMix.from_specs(list(self.reward))
        return replace(super().complete(settings, before), reward=self.reward)


def default_rows(preset: Preset, before: Stored, name: str) -> tuple[str, ...]:
    """Return what an absent flag means: the rows of the run that goes on, or the preset's."""
    rows = before.get(name, getattr(preset, name, ()))
    assert isinstance(rows, list | tuple)
    return tuple(rows)
