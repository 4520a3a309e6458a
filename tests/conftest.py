import os
import tempfile
from collections.abc import Iterator

import pytest

# Before torch is imported anywhere: several test processes with many threads each are far slower.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
# Worlds of the tests are made by the tests; worker processes inherit the place.
_MADE = "GPR_RL_TEST_CACHE" not in os.environ
if _MADE:
    os.environ["GPR_RL_TEST_CACHE"] = tempfile.mkdtemp(prefix="gpr_rl-tests-")
os.environ["GPR_RL_CACHE"] = os.environ["GPR_RL_TEST_CACHE"]


@pytest.fixture(scope="session")
def world():
    """The world `tiny`, seed 0; read-only."""
    from simulators.make import load_world
    from simulators.progress import silent

    return load_world("tiny", progress=silent)


def pytest_unconfigure(config: pytest.Config) -> None:
    if _MADE and not hasattr(config, "workerinput"):  # what this process made, it takes away
        import shutil

        shutil.rmtree(os.environ["GPR_RL_TEST_CACHE"], ignore_errors=True)


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """Switch jaxtyping's checks off, for tests of what our own errors say about shapes."""
    from jaxtyping import config

    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", before)
