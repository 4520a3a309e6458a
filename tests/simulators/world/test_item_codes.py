"""Worlds with other tokenizers, and what becomes of paths that several ads share."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gpr_rl.decoding import beam_search
from gpr_rl.models import HHD, HHDConfig
from gpr_rl.tokenizers import UASID, RQKMeans
from gpr_rl.tokenizers.kinds import TOKENIZERS, open_tokenizer
from simulators.building import read_world
from simulators.make import make_world
from simulators.synthetic.config import PRESETS, WorldConfig
from simulators.world import World

SMALLEST = replace(
    PRESETS["tiny"],
    num_users=30,
    num_ads=60,
    num_organic=30,
    num_codes=4,
    impressions_per_user=40.0,
)


def make(folder: Path, **dials: object) -> World:
    return make_world(replace(SMALLEST, **dials), 0, folder / "world")  # type: ignore[arg-type]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_world_keeps_its_tokenizer_and_decodes_with_it(tokenizer: str, tmp_path: Path) -> None:
    world = make(tmp_path, tokenizer=tokenizer)
    found = open_tokenizer(tmp_path / "world" / "tokenizer")
    assert type(found) is TOKENIZERS[tokenizer]
    codes = (
        found.index.codes(range(90))
        if isinstance(found, UASID)
        else found.encode(world.item_embedding)
    )
    assert torch.equal(codes, world.item_codes)
    ids = world.request_ids("test")[:4]
    model = HHD(HHDConfig(dim=16, num_hsd_layers=1), world.spec).eval()
    legal = world.eligible(ids)
    ads = beam_search(model, world.request(ids), world.trie, 5, legal)
    assert legal.gather(1, ads.ad_id.clamp_min(0))[ads.valid].all()
    assert torch.equal(read_world(tmp_path / "world").codes, world.codes)


def test_a_suffix_gives_every_ad_a_path_everywhere(tmp_path: Path) -> None:
    world = make(tmp_path, resolve="suffix")
    assert world.spec.num_levels == 4
    assert len(world.codes.unique(dim=0)) == world.num_ads
    plain = open_tokenizer(tmp_path / "world" / "tokenizer")
    assert isinstance(plain, RQKMeans)
    assert torch.equal(plain.encode(world.item_embedding), world.item_codes[:, :3])
    assert int(world.item_codes.max()) < world.spec.num_codes
    shared = make(tmp_path / "other")
    assert len(shared.codes.unique(dim=0)) < shared.num_ads
    # every ad can be reached now, and only the best of a path before
    ids = torch.arange(1)
    every = torch.ones(1, world.num_ads, dtype=torch.bool)
    model = HHD(HHDConfig(dim=16, num_hsd_layers=1), world.spec).eval()
    reached = beam_search(model, world.request(ids), world.trie, 60, every).ad_id
    assert reached.unique().tolist() == list(range(60))
    model = HHD(HHDConfig(dim=16, num_hsd_layers=1), shared.spec).eval()
    found = beam_search(model, shared.request(ids), shared.trie, 60, every)
    assert int(found.valid.sum()) == len(shared.codes.unique(dim=0))
    for path, ad in zip(found.codes[found.valid], found.ad_id[found.valid].tolist(), strict=True):
        sharing = (shared.codes == path).all(1).nonzero()[:, 0]
        assert ad == sharing[shared.ad_value[sharing].argmax()]


def test_unknown_names_and_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tokenizer must be one of rq_kmeans, .*, got 'x'"):
        WorldConfig(tokenizer="x")
    with pytest.raises(ValueError, match="resolve must be one of highest_value, suffix, got 'x'"):
        WorldConfig(resolve="x")
    with pytest.raises(ValueError, match="ua_sid needs at least 2 levels and 4 codes, got 3 and 2"):
        WorldConfig(tokenizer="ua_sid", num_codes=2)
