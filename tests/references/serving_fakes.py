"""What tests of the service need: a policy that waits and a clock that is set."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from agents.warm_start import build_model
from gpr_rl.decoding import Recommender
from gpr_rl.models import HHD, HHDConfig
from tests.references.decoding_fakes import StepPolicy


def one(request_id: int) -> Tensor:
    """A request that is nothing but its id."""
    return torch.tensor([request_id])


def small_model(world: Any) -> HHD:
    """An untrained model; the values of its critic, which starts at 0, differ by prefix."""
    model = build_model(world, HHDConfig(dim=16), seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.hte_parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class GatedPolicy(StepPolicy):
    """Answers requests from `one`; notes its batches, and waits at a gate while it is shut."""

    def __init__(self, num_requests: int = 64, num_levels: int = 3, num_codes: int = 4) -> None:
        super().__init__(0, num_requests, num_levels, num_codes)
        self.batches: list[list[int]] = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        self.fault: Callable[[list[int]], None] = lambda ids: None

    def encode(self, request: Tensor) -> Tensor:
        self.batches.append(request.tolist())
        self.entered.release()
        assert self.gate.wait(60)
        self.fault(request.tolist())
        return request[:, None]

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches]


@contextmanager
def serving(policy: GatedPolicy, *arguments: Any, **options: Any) -> Iterator[Recommender]:
    """A service whose end waits at no gate, also where a test fails while it is shut."""
    with Recommender(policy, *arguments, **options) as service:
        try:
            yield service
        finally:
            policy.gate.set()


def every_path(num_levels: int = 3, num_codes: int = 4) -> Tensor:
    """One ad per path, in order."""
    return torch.cartesian_prod(*[torch.arange(num_codes)] * num_levels)
