"""Rankers of one's own: an oracle as model, the protocol's rules, and a world left unchanged."""

import copy
from types import SimpleNamespace

import gymnasium
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from envs.check import check_vector_env
from envs.gym import AdRequestEnv
from envs.torchrl import AdRequestTorchEnv
from envs.vector import AdRequestVectorEnv
from gpr_rl.schema import Action
from simulators.rankers.custom import (
    FrozenModel,
    RankerModelError,
    TabularFeatures,
    use_rankers,
)
from simulators.rankers.training import fit_calibration
from simulators.rewards import final_value
from simulators.world import World
from simulators.world.history import DAY_S


class Linear:
    """Logistic regressions on the ready-made columns; remembers what it was fitted on."""

    def __init__(self, world: World) -> None:
        self.features = TabularFeatures(world)

    def fit(self, x: np.ndarray, clicked: np.ndarray, converted: np.ndarray) -> None:
        self.seen = x.copy(), clicked.copy(), converted.copy()
        self.mean, self.spread = x.mean(0), x.std(0) + 1e-3
        trial = clicked > 0
        self.models = [
            LogisticRegression(C=0.01, max_iter=2_000).fit(self._scale(rows), label)
            for rows, label in ((x, clicked), (x[trial], converted[trial]))
        ]

    def predict(self, x: np.ndarray) -> np.ndarray:
        z = self._scale(x)
        return np.stack([expit((z * m.coef_).sum(1) + m.intercept_) for m in self.models], axis=1)

    def _scale(self, x: np.ndarray) -> np.ndarray:
        return (x.astype(np.float64) - self.mean) / self.spread


@pytest.fixture(scope="module")
def model(world: World) -> Linear:
    return Linear(world)


@pytest.fixture(scope="module")
def mine(world: World, model: Linear) -> World:
    return use_rankers(world, model)


def day_of(world: World) -> np.ndarray:
    return world.request_time // DAY_S


def test_it_is_fitted_on_the_earlier_days_only(world: World, mine: World, model: Linear) -> None:
    x, clicked, converted = model.seen
    rows = np.flatnonzero(day_of(world) < world.info.num_log_days - 1)
    assert len(x) == len(rows)
    action = world.request_action[rows].numpy()
    np.testing.assert_array_equal(clicked, action >= Action.CLICK)
    np.testing.assert_array_equal(converted, action == Action.CONVERSION)


def test_predictions_are_calibrated_on_the_last_logged_day(
    world: World, mine: World, model: Linear
) -> None:
    ids = torch.from_numpy(np.flatnonzero(day_of(world) == world.info.num_log_days - 1))
    inputs, past = world.features(ids)
    ads = world.request_ad[ids][:, None]
    raw = model.predict(model.features(inputs, past.of(world.group, ads), ads))
    action = world.request_action[ids]
    clicked, converted = (action >= Action.CLICK).float(), (action == Action.CONVERSION).float()
    expected = fit_calibration(torch.from_numpy(logit(raw)), clicked, converted, True)
    torch.testing.assert_close(mine.rankers.calibration.values, expected.values)
    outcome = mine.outcome(ids, ads)
    by_hand = expected(torch.from_numpy(logit(raw)))
    torch.testing.assert_close(outcome.pctr[:, 0].double(), by_hand[:, 0], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(outcome.pcvr[:, 0].double(), by_hand[:, 1], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(mine.logged["pctr"][ids], outcome.pctr[:, 0])


def test_everything_that_rests_on_the_rankers_is_made_anew(world: World, mine: World) -> None:
    before = {k: v.clone() for k, v in world.logged.items()}
    again = use_rankers(world, Linear(world))
    for name, value in world.logged.items():
        assert torch.equal(value, before[name]), name
    for name in ("pctr", "pcvr", "ecpm", "final_value", "alpha", "ad_value"):
        assert torch.equal(again.logged[name], mine.logged[name]), name  # the same model again
        assert not torch.equal(mine.logged[name], world.logged[name]), name
    assert mine is not world
    assert mine.rankers is not world.rankers
    assert mine.trie is not world.trie
    assert mine.events is world.events
    ids = torch.arange(200, 260)
    outcome = mine.outcome(ids, mine.request_ad[ids][:, None])
    torch.testing.assert_close(outcome.ecpm[:, 0], mine.logged["ecpm"][ids])
    logged = torch.from_numpy(day_of(world) < world.info.num_log_days)
    assert mine.reward_scale == pytest.approx(mine.logged["final_value"][logged].std().item())
    spread = mine.logged["ecpm"][logged].std() / mine.logged["pctr"][logged].std()
    assert mine.alpha[0].item() == pytest.approx(0.1 * spread.item())
    assert mine.ranker_card["pctr"]["auc"] > 0.6
    frame = pd.DataFrame(mine.codes.numpy()).assign(value=mine.ad_value.numpy())
    best = frame.groupby([0, 1, 2])["value"].idxmax()  # of the ads that share a path, the best
    codes = torch.tensor(best.index.tolist())[None]
    assert mine.trie.restrict(None).resolve(codes)[0].tolist() == best.tolist()


def test_a_row_does_not_depend_on_its_batch(mine: World) -> None:
    ids = mine.request_ids("test")[:40]
    every = mine.outcome_all(ids)
    one = mine.outcome(ids[7:8], torch.tensor([[3, 11]]))
    assert torch.equal(one.pctr[0], every.pctr[7, [3, 11]])
    assert torch.equal(one.pcvr[0], every.pcvr[7, [3, 11]])


def test_environments_are_rewarded_by_it(mine: World, world: World) -> None:
    env = gymnasium.make("envs:gpr_rl/AdRequest-v0", world=mine)
    _, info = env.reset(seed=3)
    reward, done = 0.0, False
    while not done:
        _, reward, done, _, info = env.step(int(np.flatnonzero(info["action_mask"])[0]))
    request, ad = torch.tensor([info["request_id"]]), torch.tensor([[info["ad_id"]]])
    assert reward == pytest.approx(final_value(mine.outcome(request, ad)).item(), rel=1e-6)
    assert info["pctr"] == mine.outcome(request, ad).pctr.item()
    assert info["pctr"] != world.outcome(request, ad).pctr.item()
    batched = AdRequestTorchEnv(mine, batch_size=[5])
    data = batched.rollout(mine.info.num_levels, break_when_any_done=False)
    assert data["next", "pctr"][:, -1].gt(0).all()
    assert copy.deepcopy(mine).rankers is mine.rankers


def test_vector_environments_equal_single_ones(mine: World) -> None:
    ended = check_vector_env(
        lambda: AdRequestEnv(mine),
        lambda num_envs: AdRequestVectorEnv(num_envs, mine),
        num_envs=3,
        num_steps=12,
    )
    assert ended > 0


def test_tabular_features_by_hand(world: World) -> None:
    table = TabularFeatures(world)
    ids = world.request_ids("test")[5:9]
    ads = torch.tensor([[0, 17, 60], [5, 5, 1], [2, 3, 4], [9, 8, 7]])
    inputs, past = world.features(ids)
    counts = past.of(world.group, ads)
    x = table(inputs, counts, ads).reshape(4, 3, -1)
    assert x.dtype == np.float32
    assert x.shape[-1] == len(table.names)
    column = {name: x[..., i] for i, name in enumerate(table.names)}
    item_frame = np.concatenate([world.ads["category"], world.organic["category"]])
    for b in range(4):
        user = world.users.iloc[world.request_user[ids[b]]]
        assert column["gender"][b, 0] == user["gender"]
        known = inputs.recent_known[b].numpy()
        recent = inputs.recent_item[b].numpy()[known]
        assert column["recent_clicks"][b, 1] == (inputs.recent_action[b] == Action.CLICK).sum()
        for k in range(3):
            ad = int(ads[b, k])
            assert column["advertiser"][b, k] == world.ads["advertiser"][ad]
            assert column["log_price"][b, k] == pytest.approx(np.log(world.ads["price"][ad]))
            same = (item_frame[recent] == world.ads["category"][ad]).sum()
            assert column["recent_same_category"][b, k] == same
            e = world.item_embedding.numpy().astype(float)
            cosine = e[recent] @ e[ad] / np.linalg.norm(e[recent], axis=1) / np.linalg.norm(e[ad])
            expected = (cosine.mean(), cosine.max()) if len(recent) else (0.0, 0.0)
            got = column["recent_cosine_mean"][b, k], column["recent_cosine_max"][b, k]
            assert got == pytest.approx(expected, abs=1e-6)
    assert not [name for name in table.names if "bid" in name]
    assert table.names[table.categorical[-1]] == "advertiser"


class Bad:
    """Follows the protocol but for what a test sets."""

    def __init__(self, **wrong: object) -> None:
        self.wrong = wrong

    def features(self, inputs: object, counts: torch.Tensor, ad_id: torch.Tensor) -> np.ndarray:
        rows = self.wrong.get("rows", ad_id.numel())
        return np.zeros((rows, 2) if "flat" not in self.wrong else rows)

    def fit(self, x: np.ndarray, clicked: np.ndarray, converted: np.ndarray) -> None:
        pass

    def predict(self, x: np.ndarray) -> np.ndarray:
        out = np.full((len(x), self.wrong.get("columns", 2)), 0.1)
        if "value" in self.wrong:
            out[3, 1] = self.wrong["value"]
        return out


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rows": 3}, r"Bad\.features must return one row per candidate, shape \(\d+, D\), got"),
        ({"flat": True}, r"Bad\.features must return one row per candidate"),
        ({"columns": 1}, r"Bad\.predict must return shape \(\d+, 2\): pCTR and pCVR, got"),
        ({"value": np.nan}, r"Bad\.predict must return probabilities in \[0, 1\], got nan as pCVR"),
        ({"value": 1.5}, r"Bad\.predict must return .* got 1.5 as pCVR of row 3"),
        ({"value": -0.1}, r"Bad\.predict must return .* got -0.1 as pCVR of row 3"),
    ],
)
def test_what_breaks_the_protocol_is_named(world: World, wrong: dict, message: str) -> None:
    before = world.rankers
    with pytest.raises(RankerModelError, match=message):
        use_rankers(world, Bad(**wrong))
    assert world.rankers is before


def test_a_model_without_a_method_is_named(world: World, unchecked_shapes: None) -> None:
    with pytest.raises(RankerModelError, match="SimpleNamespace has no method features, fit"):
        use_rankers(world, SimpleNamespace(predict=len))


def test_probabilities_of_0_and_1_and_a_world_without_clicks(world: World) -> None:
    class Certain(Bad):
        def predict(self, x: np.ndarray) -> np.ndarray:
            return np.tile([1.0, 0.0], (len(x), 1))

    inputs, past = world.features(torch.arange(3))
    ads = torch.zeros(3, 2, dtype=torch.long)
    pctr, pcvr = FrozenModel(Certain(), world.group, True)(inputs, past, ads)
    assert pctr.dtype == torch.float32
    assert pctr.shape == (3, 2)
    torch.testing.assert_close(pctr, torch.full((3, 2), 1 - 1e-7))
    pctr, pcvr = FrozenModel(Bad(), world.group, False)(inputs, past, ads)
    assert (pctr == 1).all()
    torch.testing.assert_close(pcvr, torch.full((3, 2), 0.1))
