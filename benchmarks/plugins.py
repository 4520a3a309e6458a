"""Methods of the user's own: modules that call `agents.register_method` on import."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from agents.methods import method_names
from benchmarks.errors import UserError


def import_methods(modules: Sequence[str], names: Sequence[str] = ()) -> None:
    """Import modules from PYTHONPATH or the current directory; they must register these methods.

    Raises:
        UserError: A module can't be imported, or does not register a name.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(f"can't import {module!r} for --methods: {error}") from error
    missing = [name for name in names if name not in method_names()]
    if missing:
        raise UserError(
            f"method {missing[0]!r} is not registered after importing {', '.join(modules)}; "
            f"registered: {', '.join(method_names())}"
        )
