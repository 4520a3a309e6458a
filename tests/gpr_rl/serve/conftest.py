import threading
from collections.abc import Callable
from typing import Any

import pytest

from gpr_rl.models import HHD
from tests.references.serving_fakes import small_model


class GatedModel:
    """A model that waits at a gate while it is shut, and fails where the test says so."""

    def __init__(self, model: HHD) -> None:
        self.model = model
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        self.fault: Callable[[], None] = lambda: None

    def encode(self, request: Any) -> Any:
        self.entered.release()
        assert self.gate.wait(60)
        self.fault()
        return self.model.encode(request)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


@pytest.fixture(scope="session")
def hhd(world) -> HHD:
    return small_model(world)


@pytest.fixture
def model(hhd) -> GatedModel:
    return GatedModel(hhd)
