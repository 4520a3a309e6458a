"""The synthetic world: determinism, propensities, eligibility, rankers, regimes."""

import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.isotonic import IsotonicRegression

from gpr_rl.schema import Action, TokenType
from simulators.building import read_world
from simulators.make import load_world, make_world
from simulators.rankers.training import fit_calibration
from simulators.synthetic.config import PRESETS, WorldConfig
from simulators.synthetic.evaluator import TruthEvaluator
from simulators.world import World
from simulators.world.features import no_rankers
from simulators.world.history import DAY_S
from simulators.world.info import WorldError
from simulators.world.supervision import WindowBatches


def test_the_same_seed_makes_the_same_world(world: World, tmp_path) -> None:
    again = make_world(PRESETS["tiny"], 0, tmp_path / "again")
    pd.testing.assert_frame_equal(again.events, world.events)
    pd.testing.assert_frame_equal(again.ads, world.ads)
    assert torch.equal(again.item_codes, world.item_codes)
    assert torch.equal(again.logged["final_value"], world.logged["final_value"])
    other = make_world(PRESETS["tiny"], 1, tmp_path / "other")
    assert not torch.equal(other.item_codes, world.item_codes)


def test_a_world_is_never_overwritten(tmp_path) -> None:
    (tmp_path / "w").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        make_world(PRESETS["tiny"], 0, tmp_path / "w")


def test_unknown_and_damaged_worlds_are_named(world: World, tmp_path) -> None:
    with pytest.raises(ValueError, match="unknown world 'nowhere'"):
        load_world("nowhere")
    with pytest.raises(ValueError, match=r"no world\.json"):
        read_world(tmp_path)
    whole = tmp_path / "w"
    make_world(PRESETS["tiny"], 0, whole)
    for path in sorted(whole.glob("*.*")):
        content = path.read_bytes()
        path.write_bytes(content[:50])
        with pytest.raises(WorldError, match=path.name.replace(".", r"\.")):
            TruthEvaluator(read_world(whole))
        assert path.read_bytes() == content[:50]
        path.write_bytes(content)
    assert (whole / "ads.parquet").stat().st_mode & 0o044


def test_a_changed_copy_shares_what_does_not_depend_on_the_change(world: World) -> None:
    ids = world.request_ids("test")[:5]
    doubled = world.replace(logged={**world.logged, "alpha": 2 * world.alpha})
    same = ("history", "legality", "trie", "sequences", "log")
    assert all(getattr(doubled, name) is getattr(world, name) for name in same)
    assert torch.equal(doubled.outcome_all(ids).alpha, 2 * world.outcome_all(ids).alpha)
    nobody = world.replace(ads=world.ads.assign(last_day=-1))
    assert nobody.legality is not world.legality
    assert nobody.history is not world.history
    assert len(nobody.request_ids("test")) == 0
    assert world.request_ids("test")[:5].equal(ids)
    reversed_value = world.replace(logged={**world.logged, "ad_value": -world.ad_value})
    assert reversed_value.trie is not world.trie
    assert reversed_value.sequences is world.sequences


def test_a_world_without_rankers_has_no_outcomes(world: World) -> None:
    log = World(replace(world.parts, rankers=no_rankers, logged={}), like=world)
    assert log.history is world.history
    assert not log.alpha.any()
    with pytest.raises(RuntimeError, match="has no rankers yet"):
        log.outcome_all(torch.arange(2))


def test_scores_that_lack_a_part_are_named(tmp_path) -> None:
    folder = tmp_path / "w"
    make_world(PRESETS["tiny"], 0, folder)
    scores = load_file(folder / "scores.safetensors")
    del scores["alpha"]
    save_file(scores, folder / "scores.safetensors")
    with pytest.raises(WorldError, match=r"scores\.safetensors has no alpha$"):
        read_world(folder)


def test_no_user_has_two_events_in_one_second(world: World) -> None:
    assert not world.events.duplicated(["user_id", "timestamp"]).any()
    assert (world.events["timestamp"].diff().dropna() >= 0).all()


def test_logged_ads_are_legal_and_propensities_are_those_of_the_cascade(world: World) -> None:
    ids = torch.arange(0, world.num_requests, 7)
    legal = world.eligible(ids)
    shown = world.request_ad[ids]
    assert legal.gather(1, shown[:, None]).all()
    distribution = TruthEvaluator(world).logging_distribution(ids)
    torch.testing.assert_close(distribution.sum(1), torch.ones(len(ids)), rtol=1e-5, atol=1e-5)
    assert (distribution[~legal] == 0).all()
    stored = world.events.loc[world.events["kind"] == 1, "propensity"].to_numpy()[ids.numpy()]
    np.testing.assert_allclose(distribution.gather(1, shown[:, None])[:, 0], stored, rtol=1e-4)


def test_eligibility_equals_a_plain_loop(world: World) -> None:
    ids = world.request_ids("train")[:20]
    got = world.eligible(ids)
    ads = world.ads
    for b, request in enumerate(ids.tolist()):
        user = world.users.iloc[world.request_user[request]]
        day = world.request_time[request] // DAY_S
        for ad in range(0, world.num_ads, 3):
            row = ads.iloc[ad]
            legal = row.first_day <= day <= row.last_day
            for name in ("gender", "region", "device"):
                target = row[f"target_{name}"]
                legal = legal and (pd.isna(target) or target == user[name])
            legal = legal and (pd.isna(row.target_age_min) or row.target_age_min <= user.age)
            legal = legal and (pd.isna(row.target_age_max) or user.age <= row.target_age_max)
            assert got[b, ad].item() == bool(legal), (request, ad)


def test_clicks_follow_the_hidden_probabilities(world: World) -> None:
    ids = torch.arange(world.num_requests)
    truth = TruthEvaluator(world).outcome(ids, world.request_ad[ids][:, None])
    clicked = (world.request_action >= Action.CLICK).float()
    expected, deviation = truth.pctr.sum(), (truth.pctr * (1 - truth.pctr)).sum().sqrt()
    assert abs(clicked.sum() - expected) < 4 * deviation
    recent = world.events.loc[world.events["kind"] == 1, "recent_advertiser"].to_numpy()
    counts = world.history.counts(world.request_user[:500], world.request_time[:500])
    own = world.group[world.request_ad[:500], 2].numpy()
    own_counts = counts[np.arange(500), own]
    seen = own_counts[:, 1:4].sum(-1) - own_counts[:, 5:].sum(-1)
    np.testing.assert_array_equal(seen, recent[:500])


def test_the_policy_can_not_reach_the_truth(world: World) -> None:
    names = {name for name in vars(world) if "truth" in name or "cascade" in name}
    assert not names
    request = world.request(world.request_ids("train")[:4])
    fields = set(request.to_dict()) | set(request.tokens.to_dict())
    assert not fields & {"pctr", "pcvr", "affinity", "propensity", "action_taken"}


def test_a_request_sees_strictly_earlier_events_only(world: World) -> None:
    ids = world.request_ids("train")[::97][:16]
    before = world.request(ids)
    events = world.events.copy()
    last = int(world.request_time[ids.numpy()].max())
    for b, request in enumerate(ids.tolist()):
        user, moment = world.request_user[request], world.request_time[request]
        later = (events["user_id"] == user) & (events["timestamp"] >= moment)
        changed = events.copy()
        changed.loc[later & (events["kind"] == 1), "item_id"] = 0
        changed.loc[later & (events["kind"] == 1), "action"] = int(Action.CONVERSION)
        altered = world.replace(events=changed)
        after = altered.request(torch.tensor([request]))
        assert torch.equal(after.tokens.codes[0], before.tokens.codes[b])
        assert torch.equal(after.tokens.action[0], before.tokens.action[b])
        assert torch.equal(after.popularity[0], before.popularity[b])
        if b == 3:
            break
    assert last >= 0


def test_tokens_alternate_environment_and_item(world: World) -> None:
    tokens = world.request(world.request_ids("train")[:32]).tokens
    kind = tokens.kind
    assert (kind[:, 0] == TokenType.USER).all()
    item = (kind == TokenType.ITEM).nonzero()
    assert (kind[item[:, 0], item[:, 1] - 1] == TokenType.ENVIRONMENT).all()
    length = (kind != TokenType.PAD).sum(1)
    assert (kind.gather(1, (length - 1)[:, None]) == TokenType.ENVIRONMENT).all()
    assert torch.equal(tokens.prompt_length, length)


def test_windows_supervise_the_next_ads(world: World) -> None:
    batches = WindowBatches(world, seed=0, num_windows=16, num_positions=3, num_heads=2)
    tokens, targets = batches(0)
    again, _ = batches(0)
    assert torch.equal(tokens.codes, again.codes)
    valid = targets.valid
    assert valid[:, -1, 0].all()  # the window's own request is always supervised
    # where a target's ITEM token lies inside the window, its codes are the target's codes
    for p in range(3):
        inside = targets.position[:, p] + 1 < tokens.kind.shape[1]
        for b in inside.nonzero()[:, 0].tolist():
            following = targets.position[b, p] + 1
            if tokens.kind[b, following] == TokenType.ITEM and valid[b, p, 0]:
                assert torch.equal(tokens.codes[b, following], targets.codes[b, p, 0])
    chosen = targets.legal_mask.gather(-1, targets.codes[..., None]).squeeze(-1)
    assert chosen[valid].all()
    assert (targets.position >= tokens.prompt_length[:, None] - 1).all()


def test_calibration_keeps_the_order_and_follows_isotonic_regression() -> None:
    generator = torch.Generator().manual_seed(0)
    logit = torch.randn(4_000, 2, generator=generator, dtype=torch.float64)
    label = (torch.rand(4_000, generator=generator) < torch.sigmoid(2 * logit[:, 0] - 1)).float()
    calibration = fit_calibration(logit, label, label, has_clicks=True)
    order = logit[:, 0].argsort()
    got = calibration(logit)[order, 0]
    assert (got.diff() > 0).all()
    steps = IsotonicRegression(out_of_bounds="clip").fit(logit[:, 0], label)
    plain = steps.predict(logit[order, 0])
    assert np.abs(got.numpy() - plain).mean() < 0.02
    assert got.mean() == pytest.approx(label.mean().item(), abs=0.01)


def test_rankers_read_back_bit_for_bit(world: World) -> None:
    again = read_world(world.directory)
    ids = world.request_ids("test")[:8]
    ads = torch.arange(16).expand(8, -1)
    assert torch.equal(again.outcome(ids, ads).pctr, world.outcome(ids, ads).pctr)
    alone = world.outcome(ids[3:4], ads[3:4])
    torch.testing.assert_close(alone.pcvr, world.outcome(ids, ads).pcvr[3:4], rtol=1e-5, atol=1e-7)


def test_dials_are_checked() -> None:
    with pytest.raises(ValueError, match="num_users must be at least 1, got 0"):
        WorldConfig(num_users=0)
    with pytest.raises(ValueError, match="budget_tightness must be positive and finite, got 0"):
        WorldConfig(budget_tightness=0.0)
    with pytest.raises(ValueError, match="rankers must be 'strong' or 'weak', got 'none'"):
        WorldConfig(rankers="none")
    with pytest.raises(ValueError, match=r"exploration must lie in \[0, 1\], got 1.5"):
        WorldConfig(exploration=1.5)


def test_a_cached_world_loads_fast_and_once(world: World) -> None:
    started = time.monotonic()
    first, second = load_world("tiny"), load_world("tiny")
    assert first is second
    assert time.monotonic() - started < 60  # a guard against retraining, not a speed test


@pytest.mark.slow
@pytest.mark.parametrize(("name", "regime"), [("small", "good"), ("weak", "hacking")])
def test_regimes(name: str, regime: str, tmp_path) -> None:
    card = make_world(PRESETS[name], 0, tmp_path / name).ranker_card
    assert card["regime"]["regime"] == regime
    if regime == "good":
        assert card["pctr"]["auc"] > card["pctr"]["auc_oracle"] - 0.06
        assert card["regime"]["share"] > 0.3
        assert 0.9 < card["pctr"]["ratio"] < 1.1
