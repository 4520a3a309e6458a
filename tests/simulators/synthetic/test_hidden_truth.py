"""The hidden truth can't be reached from what training holds, however far one follows references.

Every object that a world, an environment, an outcome or a rollout refers to is visited; none may
be the truth, the production system, an evaluator, or hold their numbers.
"""

import functools
import gc
import types
from collections.abc import Callable, Iterator

import gymnasium
import numpy as np
import pandas as pd
import pytest
import torch
from tensordict import TensorDictBase, is_tensorclass

from agents.rollout import RolloutConfig, rollout
from agents.warm_start import build_model
from envs.torchrl import AdRequestTorchEnv
from gpr_rl.models import HHDConfig
from simulators.rankers.custom import TabularFeatures, use_rankers
from simulators.rewards import RewardMix
from simulators.synthetic.behavior import HiddenTruth
from simulators.synthetic.cascade import Cascade
from simulators.synthetic.evaluator import TruthEvaluator
from simulators.world import World
from simulators.world.info import read_file

SECRET_TYPES = (HiddenTruth, Cascade, TruthEvaluator)
PUBLIC = {"truth.category", "cascade.category"}
"""Where behaviour follows the content hierarchy, this is a column of `ads.parquet`."""


def parts(thing: object) -> Iterator[object]:
    """Yield what an object refers to; code (modules, classes, globals of functions) is left out."""
    if isinstance(thing, types.ModuleType | type):
        return
    if isinstance(thing, types.FunctionType):
        yield from (cell.cell_contents for cell in thing.__closure__ or () if _is_filled(cell))
        yield from (thing.__defaults__, thing.__kwdefaults__)
        yield thing.__dict__
        return
    if isinstance(thing, pd.DataFrame):
        yield from (thing[name].to_numpy() for name in thing.columns)
        return
    if isinstance(thing, TensorDictBase) or is_tensorclass(thing):
        yield from (value for _, value in thing.items())
        return
    if isinstance(thing, functools.partial):
        yield from (thing.func, thing.args, thing.keywords)
        return
    yield from gc.get_referents(thing)


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018, an empty cell raises
    except ValueError:
        return False
    return True


def reachable(*roots: object) -> list[object]:
    """Return every object that can be reached by following references."""
    seen: dict[int, object] = {}
    waiting = list(roots)
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, types.FrameType):
            continue
        seen[id(thing)] = thing  # kept alive, so that no id is used twice
        waiting += parts(thing)
    return list(seen.values())


class Secrets:
    """The numbers that only an evaluator may hold."""

    def __init__(self, world: World) -> None:
        assert world.directory is not None
        self.numbers: dict[str, np.ndarray] = {}
        for name in ("truth", "cascade"):
            for key, value in read_file(world.directory / f"{name}.safetensors").items():
                if value.numel() > 3 and f"{name}.{key}" not in PUBLIC:
                    self.numbers[f"{name}.{key}"] = value.double().numpy().ravel()
        ids = torch.arange(world.num_requests)
        truth = TruthEvaluator(world).outcome(ids, world.request_ad[:, None])
        self.numbers["true pctr of the log"] = truth.pctr.double().numpy().ravel()
        self.numbers["true pcvr of the log"] = truth.pcvr.double().numpy().ravel()
        self.sizes = {len(value) for value in self.numbers.values()}

    def found_in(self, *roots: object) -> list[str]:
        """Return what of the truth can be reached."""
        found = []
        for thing in reachable(*roots):
            if isinstance(thing, SECRET_TYPES):
                found.append(type(thing).__name__)
            values = _numbers(thing)
            if values is not None and values.size in self.sizes:
                flat = values.ravel().astype(np.float64)
                found += [
                    name
                    for name, secret in self.numbers.items()
                    if len(secret) == len(flat) and np.allclose(secret, flat, rtol=1e-4, atol=1e-7)
                ]
        return found


def _numbers(thing: object) -> np.ndarray | None:
    if isinstance(thing, torch.Tensor):
        thing = thing.detach().numpy()
    if isinstance(thing, np.ndarray) and thing.dtype.kind in "fiu":
        return thing
    return None


@pytest.fixture(scope="module")
def secrets(world: World) -> Secrets:
    return Secrets(world)


def played(world: World) -> list[object]:
    """Return an environment of each kind after an episode, and all that it gave away."""
    given: list[object] = []
    env = gymnasium.make("envs:gpr_rl/AdRequest-v0", world=world, reward=["final_value", "gmv=0"])
    observation, info = env.reset(seed=0)
    given += [env, observation, info]
    done = False
    while not done:
        action = int(np.flatnonzero(info["action_mask"])[0])
        observation, reward, done, _, info = env.step(action)
        given += [observation, reward, info]
    batched = AdRequestTorchEnv(world, batch_size=[4])
    return [*given, batched, batched.rollout(world.info.num_levels, break_when_any_done=False)]


def test_a_world_holds_nothing_of_it(world: World, secrets: Secrets) -> None:
    world.request(world.request_ids("train")[:2])  # what is computed on first use is there too
    assert secrets.found_in(world) == []


def test_an_environment_and_what_it_gives_hold_nothing_of_it(
    world: World, secrets: Secrets
) -> None:
    assert secrets.found_in(*played(world)) == []


def test_outcomes_and_rewards_hold_nothing_of_it(world: World, secrets: Secrets) -> None:
    mix = RewardMix.from_specs(["final_value", "revenue", "gmv", "user_value", "budget_aware"])
    ids = world.request_ids("train")[:8]
    outcome = world.outcome_all(ids)
    truth = TruthEvaluator(world).outcome_all(ids)
    assert secrets.found_in(outcome, mix(outcome), mix) == []
    for name in ("pctr", "pcvr", "ecpm"):
        assert not torch.allclose(getattr(outcome, name), getattr(truth, name), rtol=0.05)


def test_a_rollout_of_training_holds_nothing_of_it(world: World, secrets: Secrets) -> None:
    model = build_model(world, HHDConfig(dim=16, num_heads=2, num_hsd_layers=1), 0)
    mix = RewardMix.from_specs([])
    config = RolloutConfig(num_candidates=4)
    data = rollout(model, world, world.request_ids("train")[:8], mix, config, 0, 0)
    assert secrets.found_in(data, model) == []


def test_rankers_of_ones_own_hold_nothing_of_it(world: World, secrets: Secrets) -> None:
    class Constant:
        def __init__(self) -> None:
            self.features = TabularFeatures(world)

        def fit(self, x: np.ndarray, clicked: np.ndarray, converted: np.ndarray) -> None:
            self.rate = [clicked.mean(), converted[clicked > 0].mean()]

        def predict(self, x: np.ndarray) -> np.ndarray:
            return np.tile(self.rate, (len(x), 1))

    mine = use_rankers(world, Constant())
    assert secrets.found_in(mine, *played(mine)) == []


class Leak:
    """A reward that has the truth at hand, one way or another."""

    def __init__(self, truth: TruthEvaluator) -> None:
        self.truth = truth

    def look(self) -> None:
        """Do nothing."""


@pytest.mark.parametrize(
    "hide",
    [
        lambda truth: {"deep": [({"er": truth},)]},
        lambda truth: Leak(truth).look,
        lambda truth: lambda: truth,
        lambda truth: functools.partial(print, truth),
        lambda truth: truth._truth.affinity.numpy().copy(),
        lambda truth: pd.DataFrame({"x": truth._truth.click_quality.numpy()}),
    ],
)
def test_the_search_finds_what_is_there(
    hide: Callable[[TruthEvaluator], object], world: World, secrets: Secrets
) -> None:
    assert secrets.found_in(hide(TruthEvaluator(world)))
