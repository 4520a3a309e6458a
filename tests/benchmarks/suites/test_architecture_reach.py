"""What rows of the architecture suite are trained and searched over, and what they can't find."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.architecture import train
from benchmarks.architecture.models import build
from benchmarks.architecture.presets import PRESETS, RIVALS, SCORING
from benchmarks.architecture.protocol import make_protocol
from benchmarks.architecture.suite import METHODS
from benchmarks.architecture.train import unreachable
from benchmarks.reports.lookup import TEST, values_of
from gpr_rl.decoding import CodeTrie
from gpr_rl.pretraining.trainer import StageConfig
from simulators.make import load_world
from simulators.world import World

TINY = replace(
    PRESETS["smoke"], training=StageConfig(num_steps=2, warmup_steps=1, validate_every=2)
)


def test_targets_that_lose_their_path_are_unreachable() -> None:
    """Ads 0, 1 and 2 share a path, as do 3 and 4; ad 5 has its own."""
    codes = torch.tensor([[0, 1], [0, 1], [0, 1], [1, 0], [1, 0], [1, 1]])
    target = torch.tensor([0, 1, 2, 2, 3, 4, 4, 5])
    valued = CodeTrie(codes, num_codes=2, ad_value=torch.tensor([1.0, 9.0, 2.0, 5.0, 6.0, 0.0]))
    assert unreachable(valued, target) == 4 / 8  # 0, 2, 2 lose to 1, and 3 to 4
    unvalued = CodeTrie(codes, num_codes=2)
    assert unreachable(unvalued, target) == 5 / 8  # 1, 2, 2 lose to 0, and 4, 4 to 3
    assert unreachable(unvalued, torch.tensor([0, 3, 5])) == 0.0
    assert unreachable(CodeTrie(codes[2:4], num_codes=2), torch.tensor([0, 1])) == 0.0
    assert unreachable(None, target) == 0.0


@pytest.fixture(scope="module")
def paired() -> World:
    """A world in which ads 2 n and 2 n + 1 share a path and the odd one is worth more."""
    world = load_world("tiny")
    ad = torch.arange(world.num_ads)
    pair = ad // 2
    codes = world.item_codes.clone()
    codes[: world.num_ads] = torch.stack([pair % 3, pair // 3 % 5, pair // 15], dim=1)
    logged = {**world.logged, "ad_value": ad % 2 + 1.0}
    return world.replace(item_codes=codes, logged=logged)


@pytest.mark.parametrize("row", METHODS)
def test_a_list_of_all_holds_just_what_can_be_reached(paired: World, row: str) -> None:
    sizes = replace(TINY, list_size=paired.num_ads)
    studied = build(row, make_protocol("time", paired), sizes, seed=0)
    listed = [[ad for ad in line if ad >= 0] for line in studied.rank(torch.arange(3)).tolist()]
    step = 1 if row in SCORING else 2
    assert [sorted(line) for line in listed] == [list(range(step - 1, paired.num_ads, step))] * 3
    target = torch.tensor([0, 1, 2, 3, 4])
    assert unreachable(studied.trie, target) == pytest.approx(0.0 if row in SCORING else 3 / 5)


@pytest.mark.parametrize("row", METHODS)
def test_eligibility_enters_the_training_of_the_hhds_rows_alone_and_no_search(
    row: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = make_protocol("time", load_world("tiny"))
    studied = build(row, shown, TINY, seed=0)

    def seen() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return studied.loss(0), studied.rank(shown.test[:3])

    def everything(self: World, request_id: Tensor) -> Tensor:
        return torch.ones(len(request_id), self.num_ads, dtype=torch.bool)

    loss, ranked = seen()
    monkeypatch.setattr(World, "eligible", everything)
    open_loss, open_ranked = seen()
    assert torch.equal(loss, open_loss) == (row in RIVALS)
    assert torch.equal(ranked, open_ranked)


@pytest.mark.parametrize("row", ["base", "onerec", "sasrec"])
def test_a_row_is_graded_by_what_it_can_not_list(
    paired: World, row: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "open_world", lambda world, seed: paired)
    found = train.run_row(world="paired", protocol="time", row=row, seed=0, tuned=None, sizes=TINY)
    test = make_protocol("time", paired).held_out("test", TINY.num_test_requests)
    even = float((paired.request_ad[test] % 2 == 0).float().mean())
    assert 0.1 < even < 0.9
    wanted = 0.0 if row == "sasrec" else even
    assert values_of(found, row, "unreachable", TEST).tolist() == pytest.approx([wanted])
