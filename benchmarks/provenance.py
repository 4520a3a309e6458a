"""How a run is made again: one command, and what it was made with."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.suite import Settings, Suite
from gpr_rl.dials import changed_dials

_DEFAULT_PRESET = "quick"


def page_name(suite: Suite, settings: Settings) -> str:
    """Return the name of a run's page: its suite's, with unusual world, protocol and rewards.

    Usual is the preset's own world, and of `paper` the one that it shares with the default preset.
    A run with other rows or more seeds is taken for a new edition of the same page.
    """
    words = [suite.name]
    own = suite.presets[settings.preset].world
    shared = settings.preset != "paper" or own == suite.presets[_DEFAULT_PRESET].world
    if settings.world != own or not shared:
        words.append(Path(settings.world).resolve().name)
    if _is_other_protocol(suite, settings):
        words.append(settings.protocol)
    words += settings.reward
    words += _changed_dials(suite, settings)
    if settings.embeddings is not None:
        words.append(settings.embeddings.stem)
    return re.sub(r"[^\w.-]+", "_", "-".join(words))


def _is_other_protocol(suite: Suite, settings: Settings) -> bool:
    """Return whether the protocol is not the suite's default."""
    return settings.protocol not in ("", getattr(suite.flags, "protocol", ""))


def _changed_dials(suite: Suite, settings: Settings) -> list[str]:
    """Return the dials of training that are not the preset's, as `--set` takes them."""
    preset, sizes = suite.presets[settings.preset], settings.sizes
    if not hasattr(sizes, "training"):
        return []
    return changed_dials(sizes.training, getattr(preset, "training", sizes.training))


def command(suite: Suite, settings: Settings) -> str:
    """Return the one command that makes a run, however it grew; what a preset says goes unsaid."""
    preset = suite.presets[settings.preset]
    own = [name for name in settings.methods if name not in suite.methods]
    # all modules are imported before names are looked up: each must stand before some name
    modules = settings.plugins + settings.plugins[-1:] * len(own)
    module_of = dict(zip(own, modules, strict=False))
    methods = [f"{module_of[m]}:{m}" if m in module_of else m for m in settings.methods]
    protocol = [settings.protocol] if _is_other_protocol(suite, settings) else []
    num_trials, usual_trials = (
        getattr(getattr(sizes, "tuning", None), "num_trials", None)
        for sizes in (settings.sizes, preset)
    )
    flags: Sequence[tuple[str, Sequence[object], Sequence[object]]] = (
        ("--seeds", [len(settings.seeds)], [preset.num_seeds]),
        ("--first-seed", [settings.seeds[0]], [0]),
        ("--methods", methods, getattr(preset, "methods", suite.methods)),
        ("--markets", settings.markets, getattr(preset, "markets", ())),
        ("--ablate", settings.ablations, getattr(preset, "ablations", ())),
        ("--world", [settings.world], [preset.world]),
        ("--protocol", protocol, []),
        ("--embeddings", [settings.embeddings], [None]),
        *(("--reward", [spec], []) for spec in settings.reward),
        ("--tune", [num_trials], [usual_trials]),
        ("--set", _changed_dials(suite, settings), []),
    )
    words = ["python", "-m", "benchmarks.run", settings.suite, "--preset", settings.preset]
    for flag, chosen, usual in flags:
        if list(chosen) != list(usual):
            words += [flag, *map(str, chosen)]
    return shlex.join(words)


def made_with(config: Mapping[str, object]) -> list[str]:
    """Return the lines that say with what a run was made, from its `config.json`."""
    lines = []
    versions, platform = config.get("versions"), config.get("platform")
    if isinstance(versions, Mapping):
        lines.append(", ".join(f"{name} {v}" for name, v in versions.items() if v is not None))
    if isinstance(platform, Mapping):
        lines.append(f"{platform.get('machine')}, {platform.get('num_cpus')} cores")
    if config.get("git_commit"):
        changed = " with local changes" if config.get("git_changed") else ""
        lines.append(f"commit {config['git_commit']}{changed}")
    return lines
