"""Worlds of random small sizes: every one steps through a day, or says what is wrong with it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from envs.gym import AdDayEnv
from envs.vector import AdDayVectorEnv
from simulators.building import Draft, build_world, read_world
from simulators.make import make_world
from simulators.progress import silent
from simulators.synthetic.config import PRESETS, WorldConfig
from simulators.world import World

NUM_WORLDS = 100


def _config(rng: np.random.Generator) -> WorldConfig:
    num_verticals = int(rng.integers(1, 3))
    num_categories = num_verticals * int(rng.integers(1, 3))
    num_ads = int(rng.choice([1, 2, 5, 30]))
    return replace(
        PRESETS["tiny"],
        num_users=int(rng.choice([1, 2, 6])),
        num_ads=num_ads,
        num_codes=int(rng.integers(1, min(num_ads, 4) + 1)),
        num_organic=int(rng.choice([1, 4])),
        num_levels=int(rng.integers(2, 4)),
        num_log_days=int(rng.integers(3, 5)),
        num_heldout_days=2,
        impressions_per_user=float(rng.choice([4.0, 30.0])),
        organic_per_user=float(rng.choice([0.1, 5.0])),
        embedding_dim=int(rng.choice([1, 4])),
        num_verticals=num_verticals,
        num_categories=num_categories,
        num_advertisers=num_categories * int(rng.integers(1, 3)),
        targeting_share=float(rng.choice([0.0, 0.5, 1.0])),
        context_targeting_share=float(rng.choice([0.0, 0.5, 1.0])),
        base_ctr=float(rng.choice([0.02, 0.6])),
    )


def _change(ads: pd.DataFrame, rng: np.random.Generator) -> str:
    """Change the table in place, one way or another, and say how."""
    kind = rng.choice(["as it is", "no eligible ad", "zero budgets", "equal bids", "few born"])
    if kind == "no eligible ad":
        ads["last_day"] = -1
    elif kind == "zero budgets":
        ads["budget"] = 0.0
    elif kind == "equal bids":
        ads["bid"] = 1.0
    elif kind == "few born":
        ads["first_day"] = rng.integers(0, 6, size=len(ads))
    return str(kind)


def _rules(rng: np.random.Generator) -> dict:
    return {
        "auction": str(rng.choice(["first_price", "second_price", "gsp"])),
        "num_slots": int(rng.integers(1, 4)),
        "reserve_cpm": float(rng.choice([0.0, 50.0])),
        "num_rivals": int(rng.integers(0, 4)),
        "pacing": str(rng.choice(["none", "throttling", "pid"])),
        "num_requests": int(rng.integers(1, 25)),
    }


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(NUM_WORLDS))
def test_a_random_world_steps_through_a_day(seed: int, tmp_path: Path) -> None:
    _play(seed, tmp_path)


@pytest.mark.parametrize("seed", range(8))
def test_some_random_worlds_step_through_a_day(seed: int, tmp_path: Path) -> None:
    _play(NUM_WORLDS + seed, tmp_path)


def _play(seed: int, folder: Path) -> None:
    rng = np.random.default_rng(seed)
    config = _config(rng)
    try:
        make_world(config, seed, folder / "w", silent)
    except ValueError as error:
        if "no impression" not in str(error):
            raise
        return
    ads = pd.read_parquet(folder / "w" / "ads.parquet")
    kind = _change(ads, rng)
    ads.to_parquet(folder / "w" / "ads.parquet", index=False)
    world = read_world(folder / "w")
    rules = _rules(rng)
    env = AdDayEnv(world, **rules)
    _, info = env.reset(seed=seed)
    truncated, steps = False, 0
    while not truncated:
        legal = np.flatnonzero(info["action_mask"])
        observation, _, terminated, truncated, info = env.step(rng.choice(legal))
        steps += 1
        assert not terminated
        assert observation["action_mask"].any()
    if kind in ("no eligible ad", "zero budgets"):
        assert steps == 1
        assert info["num_unfilled"] == rules["num_requests"]
        assert info["revenue"] == 0.0
    assert info["num_illegal"] == 0
    vector = AdDayVectorEnv(3, world, **rules)
    _, infos = vector.reset(seed=seed)
    assert infos["request_id"].shape == (3,)


def test_nan_embeddings_are_refused(world: World, tmp_path: Path) -> None:
    embedding = world.item_embedding.numpy().copy()
    embedding[7, 3] = np.nan
    draft = Draft(
        info=world.info,
        users=world.users,
        ads=world.ads,
        organic=world.organic,
        events=world.events,
        item_embedding=embedding,
    )
    with pytest.raises(ValueError, match=r"item_embedding .* row 7 .*nan"):
        build_world(tmp_path / "w", draft, silent)
    assert not (tmp_path / "w").exists()


def test_a_log_without_impressions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no impression"):
        make_world(
            replace(PRESETS["tiny"], num_users=1, impressions_per_user=1e-9), 0, tmp_path / "w"
        )
    assert not (tmp_path / "w").exists()
