"""A run's folder: who may write into it, and what it says about itself."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.errors import UserError
from benchmarks.runs.files import append_json_line, flat, to_plain, write_json
from benchmarks.runs.results import read_results
from benchmarks.runs.tasks import PARTS

FORMAT = 2
"""Of a run's tables; in 1 conditions were parts of names."""
CONFIG = "config.json"
LOG = "log.jsonl"
RESULTS = "results.parquet"
CHECKPOINTS = "checkpoints"
TRACES = (CONFIG, RESULTS, "summary.csv", "report.html", LOG, PARTS, CHECKPOINTS)
"""What shows that a folder holds a run."""
PACKAGES = (
    "gpr_rl",
    "torch",
    "torchrl",
    "tensordict",
    "gymnasium",
    "numpy",
    "pandas",
    "pyarrow",
    "faiss-cpu",
    "scikit-learn",
)


def describe_machine() -> dict[str, object]:
    """Return versions, git commit (None outside a checkout) and platform."""
    commit, changed = _git_state()
    return {
        "versions": {"python": platform.python_version(), **{n: _version(n) for n in PACKAGES}},
        "git_commit": commit,
        "git_changed": changed,
        "platform": {
            "system": platform.platform(),
            "machine": platform.machine(),
            "num_cpus": os.cpu_count(),
        },
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_state() -> tuple[str | None, bool | None]:
    """Return this project's commit and whether tracked files differ from it."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # a copy inside somebody else's repository
        return None, None
    try:
        commit, status = (
            subprocess.run(
                ["git", "-C", str(root), *command], capture_output=True, text=True, check=True
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return commit, bool(status)


def open_run_folder(
    out: Path,
    settings: Mapping[str, object],
    *,
    resume: bool,
    extendable: Sequence[str] = (),
) -> None:
    """Make the folder of a run, or check that this run may go on in it.

    Settings that are `extendable` may differ from those of the run; the new ones are written.

    Raises:
        UserError: The folder holds a run and `resume` is not set; or it was made with other
            settings, or its files can't be read. Nothing is changed then.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file, not a folder")
    holds_run = any((out / name).exists() for name in TRACES)
    if holds_run and not resume:
        raise UserError(f"{out} holds a run: go on with --resume, or choose another --out")
    wanted = to_plain(settings)
    machine = describe_machine()
    if holds_run:
        stored = _check_settings(out / CONFIG, wanted, extendable)
        for change in _changes(stored, machine):
            print(f"warning: {change}; numbers may not agree", file=sys.stderr)
        if (out / RESULTS).exists():
            read_results(out / RESULTS)
        if stored["settings"] != wanted:
            write_json(out / CONFIG, {**stored, "settings": wanted})
    else:
        try:
            about = {"format": FORMAT, "settings": wanted, "command": sys.argv, **machine}
            write_json(out / CONFIG, about)
            (out / CHECKPOINTS).mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"can't write to --out {out}: {error}") from error
    append_json_line(out / LOG, {"event": "resumed" if holds_run else "started", **machine})


def _changes(stored: Mapping[str, object], machine: Mapping[str, object]) -> list[str]:
    """Return what changed in code and packages since the run began."""
    before, now = (
        dict(flat({name: side.get(name) for name in ("versions", "git_commit")}))
        for side in (stored, to_plain(machine))
    )
    return [
        f"{name} was {before.get(name)} when the run began and is {value}"
        for name, value in now.items()
        if before.get(name) != value
    ]


def stored_config(out: Path) -> dict[str, Any]:
    """Return a run's `config.json`, whose settings are a mapping.

    Raises:
        UserError: It can't be read, or is another version's.
    """
    path = out / CONFIG
    try:
        config = json.loads(path.read_text())
        list(flat(config["settings"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"can't read {path}: {' '.join(str(error).split())} (nothing was changed)"
        ) from error
    if config.get("format") != FORMAT:
        raise UserError(
            f"{out} was made by another version, whose tables have other columns: start a new "
            "folder with --out"
        )
    return config


def _check_settings(
    path: Path, wanted: Mapping[str, object], extendable: Sequence[str]
) -> dict[str, Any]:
    """Return config.json, whose settings must be those wanted but for what may be added to."""
    config = stored_config(path.parent)
    flat_stored, flat_wanted = dict(flat(config["settings"])), dict(flat(wanted))
    for name in dict.fromkeys([*flat_wanted, *flat_stored]):
        before, now = (json.dumps(side.get(name)) for side in (flat_stored, flat_wanted))
        if before != now and name not in extendable:
            raise UserError(
                f"{path.parent} was made with {name} = {before}, this command says {now}: "
                "choose another --out, or the same settings"
            )
    return config
