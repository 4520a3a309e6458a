"""Policies that read their answers from tables, so plain Python can read them as well."""

import itertools
from types import SimpleNamespace

import torch
from torch import Tensor

Path = tuple[int, ...]


def requests(*request_id: int) -> SimpleNamespace:
    return SimpleNamespace(request_id=torch.tensor(request_id))


class StepPolicy:
    """Answers by request id and prefix; `whole` gives integer scores, hence exact ties."""

    def __init__(
        self, seed: int, num_requests: int, num_levels: int, num_codes: int, whole: bool = False
    ) -> None:
        generator = torch.Generator().manual_seed(seed)

        def table(*shape: int) -> Tensor:
            if whole:
                return torch.randint(-2, 1, shape, generator=generator).double()
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.num_codes = num_codes
        self.tables = [table(num_requests, num_codes**i, num_codes) for i in range(num_levels)]
        if not whole:
            self.tables = [x.log_softmax(-1) for x in self.tables]
        self.values = [table(num_requests, num_codes**i) for i in range(num_levels + 1)]
        self.num_states = 0  # how many prefixes were evaluated

    def index(self, prefix: Tensor) -> Tensor:
        index = prefix.new_zeros(prefix.shape[:-1])
        for code in prefix.unbind(-1):
            index = index * self.num_codes + code
        return index

    def encode(self, request: SimpleNamespace) -> Tensor:
        return request.request_id[:, None]

    def step(self, context: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor]:
        assert prefix.min() >= 0 if prefix.numel() else True
        level, index = prefix.shape[-1], self.index(prefix)
        self.num_states += index.shape[1]
        return self.tables[level][context, index], self.values[level][context, index]

    def log_prob_of(self, request: int, prefix: Path) -> list[float]:
        index = int(self.index(torch.tensor(prefix, dtype=torch.int64)))
        return self.tables[len(prefix)][request, index].tolist()

    def value_of(self, request: int, prefix: Path) -> float:
        index = int(self.index(torch.tensor(prefix, dtype=torch.int64)))
        return float(self.values[len(prefix)][request, index])


class IncrementalPolicy(StepPolicy):
    """The same answers through begin and extend; `step` is out of bounds."""

    def step(self, context: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("the faster protocol is there to be used")

    def begin(self, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        prefix = context.new_zeros(len(context), 1, 0)
        return *StepPolicy.step(self, context, prefix), prefix

    def extend(
        self, context: Tensor, cache: Tensor, parent: Tensor, code: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = torch.take_along_dim(cache, parent[..., None], dim=1)
        prefix = torch.cat([rows, code[..., None]], dim=-1)
        return *StepPolicy.step(self, context, prefix), prefix


class FinalValuePolicy(IncrementalPolicy):
    def final_value(self, context: Tensor, codes: Tensor) -> Tensor:
        return self.values[-1][context, self.index(codes)]


def catalogue(
    seed: int, num_ads: int, num_levels: int, num_codes: int, num_requests: int
) -> tuple[Tensor, Tensor]:
    """Codes with collisions, and eligibility from none (request 0) to all (request 1)."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, num_codes, (num_ads, num_levels), generator=generator)
    share = torch.rand(num_requests, 1, generator=generator)
    eligible = torch.rand(num_requests, num_ads, generator=generator) < share
    eligible[0] = False
    eligible[1:2] = True
    return codes, eligible


def legal_prefixes(codes: Tensor, eligible: Tensor, length: int) -> set[Path]:
    return {tuple(path[:length]) for path in codes[eligible].tolist()}


def all_paths(num_levels: int, num_codes: int) -> list[Path]:
    return list(itertools.product(range(num_codes), repeat=num_levels))
