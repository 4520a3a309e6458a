"""Every door of agents and of the evaluation reads a reward in the same ways."""

from collections.abc import Callable

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from agents.off_policy import Feedback, log_of_distribution, log_of_world
from agents.rollout import RolloutConfig, rollout
from agents.trainer import train
from agents.warm_start import WarmStartConfig, build_model, train_critic, warm_start
from benchmarks.evaluation import make_evaluation_set
from gpr_rl.schema import Action
from simulators.rewards import Outcome, RewardError, RewardMix, RewardSpec
from simulators.world import World
from tests.agents.training.test_rl_trainer import config, policy
from tests.references.tabular import TableWorld


def twice_gmv(outcome: Outcome) -> Tensor:
    return 2000.0 * outcome.pctr * outcome.pcvr * outcome.price


TWICE_GMV = [
    "gmv=2",
    "tests.agents.test_reward_names:twice_gmv",
    twice_gmv,
    ["gmv=2"],
    {"gmv": 2.0},
    {"gmv": 2.0, "ecpm": 0.0},
    RewardMix.of("gmv=2"),
    lambda outcome: (twice_gmv(outcome), {}),
]


@pytest.mark.parametrize("reward", TWICE_GMV)
def test_logs_and_evaluation_read_it(world: World, reward: RewardSpec) -> None:
    ids = world.request_ids("test")[:20]
    conversions = world.request_action[ids] == Action.CONVERSION
    price = world.outcome(ids, world.request_ad[ids][:, None]).price[:, 0]
    # What happened is certain: gmv is 1000 times the price of what converted, and 0 elsewhere.
    wanted = (2000.0 * price * conversions).double()
    torch.testing.assert_close(log_of_world(world, ids, reward).reward, wanted)
    even = torch.full((20, world.num_ads), 1.0 / world.num_ads)
    drawn = log_of_distribution(world, ids, even, seed=0, feedback=Feedback(reward=reward))
    expected = twice_gmv(world.outcome(ids, drawn.ad_id[:, None]))[:, 0].double()
    torch.testing.assert_close(drawn.reward, expected)
    data = make_evaluation_set(world, reward, 5)
    torch.testing.assert_close(data.value, twice_gmv(world.outcome_all(data.request_id)))


def test_a_function_is_logged_under_its_own_name() -> None:
    def half(outcome: Outcome) -> Tensor:
        return outcome.ecpm / 2

    world = TableWorld()
    measures = train(policy(world), world, "grpo", config(num_steps=1), 0, reward=half)[0]
    assert measures["component/half"] == measures["reward"]


DOORS: dict[str, Callable[[World, object], object]] = {
    "log_of_world": lambda world, r: log_of_world(world, world.request_ids("test")[:2], r),
    "Feedback": lambda world, r: Feedback(reward=r),
    "make_evaluation_set": lambda world, r: make_evaluation_set(world, r, 2),
    "train": lambda world, r: train(MODEL, TableWorld(), "grpo", config(), 0, reward=r),
    "rollout": lambda world, r: rollout(
        MODEL, TableWorld(), torch.arange(2), r, RolloutConfig(), 0, 0
    ),
    "warm_start": lambda world, r: warm_start(world, WarmStartConfig(), 0, r),
    "train_critic": lambda world, r: train_critic(
        build_model(world, WarmStartConfig().model, 0), world, WarmStartConfig(), 0, r
    ),
}
MODEL = policy(TableWorld())


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("reward", "message"), [(3, "got int 3"), ({"gmv": "2"}, "'gmv': weight"), ("no", "'no'")]
)
def test_anything_else_is_refused_by_name_before_any_work(
    world: World, door: str, reward: object, message: str
) -> None:
    with pytest.raises((RewardError, TypeCheckError)) as refused:
        DOORS[door](world, reward)
    # Where types are checked at run time, a wrong one is refused before us.
    assert isinstance(refused.value, TypeCheckError) or message in str(refused.value)
