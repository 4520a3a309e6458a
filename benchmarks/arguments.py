"""What the command line's flags may say: each checked, or turned into a part of the settings.

What is wrong raises a `UserError` that names the flag and the value.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from benchmarks.errors import UserError
from benchmarks.suite import Preset, Settings, Suite


def leave_out(settings: Settings, names: tuple[str, ...], suite: Suite) -> Settings:
    """Return the settings without some rows; those that are not there anyway are fine."""
    rows = ("methods", "markets", "ablations")
    known = dict.fromkeys(
        name for kind in rows for side in (suite, settings) for name in getattr(side, kind)
    )
    for name in names:
        if name not in known:
            raise UserError(f"--without: unknown {name!r}, choose from {', '.join(known)}")
    kept = {
        kind: tuple(name for name in getattr(settings, kind) if name not in names) for kind in rows
    }
    if not kept["methods"]:
        raise UserError("--without leaves no method")
    return replace(settings, **kept)  # type: ignore[arg-type]


def load_plugins(
    names: tuple[str, ...] | None, suite: Suite
) -> tuple[tuple[str, ...] | None, tuple[str, ...], tuple[str, ...]]:
    """Import the modules of `module:name` methods; return plain names, modules, names of theirs."""
    given = [name for name in names or () if ":" in name]
    if not given:
        return names, (), ()
    if not suite.takes_methods:
        raise UserError(f"suite {suite.name!r} takes no methods of your own, got {given[0]!r}")
    from benchmarks.plugins import import_methods

    modules = tuple(dict.fromkeys(name.partition(":")[0] for name in given))
    own = tuple(name.partition(":")[2].lower() for name in given)
    import_methods(modules, own)
    plain = tuple(name.partition(":")[2] if ":" in name else name for name in names or ())
    return plain, modules, own


def default_rows(
    preset: Preset, before: Mapping[str, object] | None, name: str
) -> tuple[str, ...] | None:
    """Return what an absent flag means: the rows of the run that goes on, or the preset's."""
    if before is not None and isinstance(rows := before.get(name), list):
        return tuple(rows)
    return getattr(preset, name, None)


def with_trials(preset: Preset, num_trials: int | None, suite: Suite) -> Preset:
    """Return the preset with this many tuning trials."""
    if num_trials is None:
        return preset
    plan = getattr(preset, "tuning", None)
    if plan is None:
        raise UserError(f"suite {suite.name!r} has no --tune")
    if num_trials < 0:
        raise UserError(f"--tune must be at least 0, got {num_trials}")
    return replace(preset, tuning=replace(plan, num_trials=num_trials))  # type: ignore[type-var]


def check_names(
    flag: str,
    names: tuple[str, ...] | None,
    choices: tuple[str, ...],
    suite: Suite,
    world: str,
    default: tuple[str, ...] | None,
) -> tuple[str, ...]:
    """Return the markets or ablations that a flag names, each once."""
    missing = set() if _is_synthetic(world) else set(suite.synthetic_only)
    if names is None:
        return tuple(name for name in default or () if name not in missing)
    if not choices:
        raise UserError(f"suite {suite.name!r} has no {flag}")
    for name in names:
        if name not in choices:
            raise UserError(f"{flag}: unknown {name!r}, choose from {', '.join(choices)}")
        if name in missing:
            raise UserError(f"{flag}: {name!r} needs a synthetic world, got {world!r}")
    return tuple(dict.fromkeys(names))


def check_methods(
    names: tuple[str, ...] | None,
    suite: Suite,
    suites: Mapping[str, str | Suite],
    default: tuple[str, ...] | None,
    own: tuple[str, ...] = (),
) -> tuple[str, ...]:
    """Return the methods that `--methods` names, in lower case."""
    if names is None:
        return default or suite.methods
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


def _is_synthetic(world: str) -> bool:
    from simulators.synthetic.config import PRESETS

    return world in PRESETS


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


def check_rewards(specs: tuple[str, ...], suite: Suite) -> tuple[str, ...]:
    """Return the rewards, which a suite must use and which must load."""
    if specs:
        if not suite.takes_rewards:
            raise UserError(f"suite {suite.name!r} has no --reward")
        from simulators.rewards import RewardMix

        RewardMix.from_specs(list(specs))
    return specs


def check_protocol(name: str | None, suite: Suite) -> str:
    """Return the suite's protocol."""
    if name is None:
        return suite.protocols[0] if suite.protocols else ""
    if not suite.protocols:
        raise UserError(f"suite {suite.name!r} has no --protocol")
    if name not in suite.protocols:
        raise UserError(f"unknown --protocol {name!r}: choose one of {', '.join(suite.protocols)}")
    return name


def check_embeddings(path: Path | None, suite: Suite) -> Path | None:
    """Return the absolute path of a readable matrix; None where none is given."""
    if path is None:
        return None
    if not suite.takes_embeddings:
        raise UserError(f"suite {suite.name!r} has no --embeddings")
    from gpr_rl.tokenizers.files import load_matrix

    try:
        load_matrix(path)
    except ValueError as error:
        raise UserError(f"--embeddings {error}") from error
    return path.absolute()
