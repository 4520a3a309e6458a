"""The numpy rankers of environments against the torch modules they are made from."""

import copy

import numpy as np
import pytest
import torch

from simulators.rankers.exact import ExactRankers
from simulators.rankers.network import Calibration, RankerConfig, Rankers
from simulators.world import World
from simulators.world.features import NUM_COUNT_FEATURES, NUM_REPEAT_FEATURES, RankerInput

USERS, CONTEXTS = (6, 2, 8, 3, 40), (4, 5, 24, 300)  # some tables join, some stay alone
NUM_ADS, NUM_ITEMS, NUM_GROUPS, WIDTH = 7, 11, 9, 5


def make_rankers(**switches: bool) -> tuple[Rankers, Calibration]:
    config = RankerConfig(
        user_cardinalities=USERS,
        context_cardinalities=CONTEXTS,
        num_items=NUM_ITEMS,
        embedding_dim=WIDTH,
        num_groups=NUM_GROUPS,
        **switches,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        group = torch.randint(0, NUM_GROUPS, (NUM_ITEMS, 3))
        rankers = Rankers(config, torch.randn(NUM_ITEMS, WIDTH), group, torch.randn(NUM_ADS))
        for parameter in rankers.parameters():
            parameter.data.normal_(std=0.4)
        knots = torch.randn(2, 6).double().sort(1).values
        values = torch.randn(2, 6).double().sort(1).values
    return rankers, Calibration(knots, values)


def make_inputs(num_rows: int) -> RankerInput:
    generator = torch.Generator().manual_seed(1)

    def draw(sizes: tuple[int, ...]) -> torch.Tensor:
        columns = [torch.randint(0, n, (num_rows,), generator=generator) for n in sizes]
        return torch.stack(columns, dim=1).int()

    return RankerInput(
        user=draw(USERS),
        context=draw(CONTEXTS),
        recent_item=draw((NUM_ITEMS,) * 4),
        recent_known=draw((2,) * 4).bool(),
        recent_action=draw((5,) * 4),
        batch_size=[num_rows],
    )


@pytest.mark.parametrize(
    "switches",
    [{}, {"use_history": False, "use_counts": False}, {"use_counts": False}, {"use_repeats": True}],
)
@pytest.mark.parametrize(("num_rows", "num_candidates"), [(1, 1), (30, 1), (30, 5), (0, 2)])
def test_they_are_the_torch_modules_in_float64(
    switches: dict, num_rows: int, num_candidates: int
) -> None:
    rankers, calibration = make_rankers(**switches)
    inputs = make_inputs(num_rows)
    generator = torch.Generator().manual_seed(2)
    ads = torch.randint(0, NUM_ADS, (num_rows, num_candidates), generator=generator)
    width = 3 * NUM_COUNT_FEATURES + NUM_REPEAT_FEATURES * switches.get("use_repeats", False)
    counts = torch.randn(num_rows, num_candidates, width, generator=generator, dtype=torch.double)
    exact = ExactRankers(rankers, calibration)
    got = exact(inputs, counts.numpy(), ads.numpy())
    double = copy.deepcopy(rankers).double()
    with torch.no_grad():
        want = calibration(double(inputs, counts, ads))
    assert got.shape == (num_rows, num_candidates, 2)
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-12)


def test_a_row_does_not_depend_on_the_others(world: World) -> None:
    ids = world.request_ids("train")[:200]
    ads = (torch.arange(200) % world.num_ads)[:, None]
    together = world.outcome(ids, ads, exact=True)
    again = world.outcome(ids, ads, exact=True)
    assert torch.equal(together.pctr, again.pctr)
    for row in range(0, 200, 23):
        alone = world.outcome(ids[row : row + 1], ads[row : row + 1], exact=True)
        for name in ("pctr", "pcvr", "ecpm"):
            torch.testing.assert_close(
                getattr(alone, name)[0], getattr(together, name)[row], rtol=1e-6, atol=0
            )
    fast = world.outcome(ids, ads)
    torch.testing.assert_close(fast.pcvr, together.pcvr, rtol=1e-4, atol=1e-7)
