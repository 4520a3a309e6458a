"""The suites: what a comparison is, and what a command line asks of it."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from benchmarks.errors import UserError
from benchmarks.flags import Flags, default_rows
from benchmarks.reports.blocks import SuiteReport
from benchmarks.runs.folder import CONFIG, stored_config
from benchmarks.runs.launchers import LAUNCHERS
from benchmarks.runs.tasks import Task
from benchmarks.settings import Preset, Settings


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A comparison: its flags, its rows, its sizes, its work and its report."""

    name: str
    flags: type[Flags]
    """What its command line takes; the first line of the docstring says what is compared."""
    methods: tuple[str, ...]
    """What `--methods` may name; all of them by default."""
    presets: Mapping[str, Preset]
    make_tasks: Callable[[Settings], list[Task]]
    """Rows that are not methods (references, warm starts) come from tasks of their own."""
    finish: Callable[[Settings, pd.DataFrame], SuiteReport]
    """Makes the report of all rows; reads what tasks left in `settings.out`, runs nothing."""


Suites = Mapping[str, str | Suite]
SUITES: Suites = {
    name: f"benchmarks.{name}"
    for name in (
        "alignment",
        "architecture",
        "decoding",
        "environment",
        "off_policy",
        "rankers",
        "scaling",
        "tokenizers",
    )
}
"""Suites by name, the default first. A package has `Flags` in its `flags.py`, which is light, and
`METHODS`, `PRESETS`, `make_tasks` and `finish` in its `suite.py`, imported when it is asked for."""


def suite_flags(suite: str | Suite) -> type[Flags]:
    """Return what a suite's command line takes."""
    if isinstance(suite, Suite):
        return suite.flags
    return importlib.import_module(f"{suite}.flags").Flags


def load_suite(name: str, suites: Suites = SUITES) -> Suite:
    """Return a suite by name.

    Raises:
        UserError: Unknown name.
    """
    if name not in suites:
        raise UserError(f"unknown suite {name!r}: choose one of {', '.join(suites)}")
    found = suites[name]
    if isinstance(found, Suite):
        return found
    module = importlib.import_module(f"{found}.suite")
    return Suite(
        name=name,
        flags=suite_flags(found),
        methods=tuple(module.METHODS),
        presets=module.PRESETS,
        make_tasks=module.make_tasks,
        finish=module.finish,
    )


def make_settings(suite: Suite, flags: Flags, suites: Suites = SUITES) -> Settings:
    """Return what a command line asks for, checked; nothing is written.

    Raises:
        UserError: The first mistake on the command line; the name of one of `suites` is no method.
    """
    if flags.preset not in suite.presets:
        raise UserError(
            f"suite {suite.name!r} has no preset {flags.preset!r}: choose one of "
            f"{', '.join(suite.presets)}"
        )
    preset = suite.presets[flags.preset]
    out = (flags.out or Path("runs") / f"{suite.name}-{flags.preset}").absolute()
    grows = flags.resume and flags.EXTENDABLE and (out / CONFIG).exists()
    before = stored_config(out)["settings"] if grows else {}
    num_seeds = preset.num_seeds if flags.seeds is None else flags.seeds
    for flag, value, least in (
        ("--seeds", num_seeds, 1),
        ("--workers", flags.workers, 1),
        ("--first-seed", flags.first_seed, 0),
    ):
        if value < least:
            raise UserError(f"{flag} must be at least {least}, got {value}")
    seeds = tuple(range(flags.first_seed, flags.first_seed + num_seeds))
    settings = Settings(
        suite=suite.name,
        preset=flags.preset,
        methods=default_rows(preset, before, "methods") or suite.methods,
        seeds=() if before and flags.seeds is None else seeds,  # those of the run
        world=check_world(preset.world if flags.world is None else flags.world),
        sizes=preset,
        out=out,
        resume=flags.resume,
    )
    names, plugins, own = flags.read_methods()
    if names is not None:
        methods = _check_methods(names, suite, suites, own)
        settings = replace(settings, methods=methods, plugins=plugins)
    settings = flags.complete(settings, before)
    settings = _leave_out(settings.extended(before, flags.EXTENDABLE), suite, flags)
    _check_tuning_seeds(settings)
    LAUNCHERS[flags.launcher].check()
    return settings


def _check_methods(
    names: tuple[str, ...], suite: Suite, suites: Suites, own: tuple[str, ...]
) -> tuple[str, ...]:
    """Return methods of the suite or the user's own, in lower case."""
    choices = ", ".join(suite.methods)
    if not names:
        raise UserError(f"--methods needs at least one of {choices}")
    chosen: list[str] = []
    for name in (n.lower() for n in names):
        if name in (*suite.methods, *own):
            if name in chosen:
                raise UserError(f"method {name!r} is given twice")
            chosen.append(name)
        elif name in suites:
            raise UserError(
                f"{name!r} is a suite, not a method: write the suite before the flags; methods of "
                f"{suite.name!r} are {choices}"
            )
        else:
            raise UserError(f"unknown method {name!r}: suite {suite.name!r} has {choices}")
    return tuple(chosen)


def check_world(world: str) -> str:
    """Return a world's name, or the absolute path of its directory."""
    from simulators.make import world_names

    if world in world_names():
        return world
    folder = Path(world).absolute()
    if not (folder / "world.json").is_file():
        state = "has no world.json" if folder.is_dir() else "is no directory"
        raise UserError(
            f"unknown world {world!r}: not one of {', '.join(world_names())}, and {folder} {state}"
        )
    return str(folder)


def _leave_out(settings: Settings, suite: Suite, flags: Flags) -> Settings:
    """Return the settings without some rows; those that are not there anyway are fine."""
    choices = {"methods": suite.methods, **flags.choices()}
    known = dict.fromkeys(
        name for kind, rows in choices.items() for name in (*rows, *getattr(settings, kind))
    )
    for name in flags.without:
        if name not in known:
            raise UserError(f"--without: unknown {name!r}, choose from {', '.join(known)}")
    kept = {
        kind: tuple(n for n in getattr(settings, kind) if n not in flags.without)
        for kind in choices
    }
    if not kept["methods"]:
        raise UserError("--without leaves no method")
    return replace(settings, **kept)  # type: ignore[arg-type]


def _check_tuning_seeds(settings: Settings) -> None:
    both = set(settings.seeds) & set(settings.tuning_seeds)
    if both:
        seeds = f"seeds are {min(settings.seeds)} to {max(settings.seeds)}"
        raise UserError(
            f"seed {min(both)} is one that settings are chosen on and can't be tested as well: "
            f"{seeds}; choose another --first-seed"
        )
