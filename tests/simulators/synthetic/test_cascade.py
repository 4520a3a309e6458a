"""The production system's retrieval, against sorting all ads."""

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from simulators.synthetic.behavior import HiddenTruth
from simulators.synthetic.cascade import Cascade
from simulators.world import World


def _retrieved_by_sorting(cascade: Cascade, user: Tensor, day: Tensor, eligible: Tensor) -> Tensor:
    share = cascade.scalars[4].item()
    found = torch.zeros_like(eligible)
    for row in range(len(user)):
        ads = eligible[row].nonzero()[:, 0].tolist()
        interest = cascade.affinity[user[row], day[row]]
        values = sorted((float(interest[cascade.category[ad]]) for ad in ads), reverse=True)
        number = max(1, int(torch.tensor(len(ads)).mul(share).ceil()))
        for ad in ads:
            found[row, ad] = float(interest[cascade.category[ad]]) >= values[number - 1]
    return found


@pytest.mark.parametrize("seed", range(10))
def test_the_best_share_of_the_legal_ads_by_interest_is_ranked(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    cascade = Cascade(
        affinity=draw(4, 2, 5).round(decimals=1),  # with ties
        category=torch.randint(0, 5, (30,), generator=generator),
        log_bid=draw(30),
        quality=draw(30),
        is_cpm=draw(30) < 0.3,
        scalars=torch.tensor([-3.0, 0.8, 0.0, 0.7, 0.3]),  # no exploration: the ranked ones alone
    )
    user, day = torch.arange(4), torch.tensor([0, 1, 0, 1])
    eligible = draw(4, 30) < draw(4, 1)
    eligible[0] = False
    probability = cascade.distribution(user, day, eligible)
    want = _retrieved_by_sorting(cascade, user, day, eligible)
    assert torch.equal(probability > 0, want)
    torch.testing.assert_close(probability.sum(1), want.any(1).float())


def test_the_numbers_of_a_truth_keep_their_places_in_its_file(world: World) -> None:
    saved = load_file(world.directory / "truth.safetensors")
    saved["scalars"] = torch.tensor([-4.0, -3.0, 0.5, 0.25, 0.125, 0.0])
    truth = HiddenTruth.from_tensors(saved)
    assert (truth.click_base, truth.conversion_base, truth.match_scale) == (-4.0, -3.0, 0.5)
    assert (truth.coarse_share, truth.fatigue) == (0.25, 0.125)
    again = truth.tensors()
    assert again.keys() == saved.keys()
    assert all(torch.equal(again[name], saved[name]) for name in saved)
