"""Comparisons that can be made again from one command; not part of the installed packages.

`agents`, `envs` and `simulators` are import names that other distributions use too, so this package
refuses to start on the wrong ones.
"""

from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path


def check_packages(names: tuple[str, ...] = ("gpr_rl", "simulators", "envs", "agents")) -> None:
    """Check that the packages of these names are this project's.

    They are when they lie beside this folder, or beside this project's `gpr_rl`.

    Raises:
        ImportError: One is missing or somebody else's; the message says whose.
    """
    homes = {Path(__file__).resolve().parent.parent}
    for name in names:
        spec = find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise ImportError(
                f"package {name!r} of gpr_rl is not found: run from the clone's folder, or install "
                "it with `python -m pip install -e .`",
                name=f"benchmarks.{name}",
            )
        folder = Path(next(iter(spec.submodule_search_locations))).resolve()
        if name == "gpr_rl":
            homes.add(folder.parent)
        elif folder.parent not in homes:
            owners = ", ".join(packages_distributions().get(name, [])) or "no distribution"
            raise ImportError(
                f"package {name!r} in {folder} is not gpr_rl's (it belongs to: {owners}). "
                "Uninstall that distribution, or run from the clone's folder.",
                name=f"benchmarks.{name}",
            )


check_packages()
