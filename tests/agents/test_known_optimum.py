"""Every method on a world whose best policy is known: tables, three states, two levels of codes.

RL must reach at least 90 % of the value of always showing the best ad, from a start that is nearly
uniform over the legal ads, within `NUM_STEPS` x 30 requests x 16 candidates = 28,800 ranker
evaluations.
"""

import pytest
import torch
from tensordict import TensorDictBase
from torch import nn

import agents.methods
from agents.methods import Method, make_method
from agents.train_config import TrainConfig
from agents.trainer import train
from tests.references.tabular import TablePolicy, TableWorld

NUM_STEPS = 60
ON_POLICY = (
    "ppo", "grpo", "grpo_mean", "rspo", "reinforce", "raft", "ecpo", "gbpo", "dpo", "sdpo",
    "vsl_rspo", "hepo_terminal",
)  # fmt: skip
CLEARLY_BETTER = ("hepo", "dpo_offline")
LEARNING_RATE = {"reinforce": 0.1, "grpo_mean": 0.1}


def settings(method: str) -> TrainConfig:
    # The process reward pays for popularity, which is drawn at random here: no help, only noise.
    return TrainConfig(
        num_steps=NUM_STEPS,
        num_requests=30,
        num_candidates=16,
        critic_requests=30,
        critic_warmup_steps=5,
        learning_rate=LEARNING_RATE.get(method, 0.15),
        critic_learning_rate=0.3,
        kl_penalty=0.0,
        dpo_beta=0.1,
        process_reward_scale=0.0,
    )


def train_and_measure(method: str, seed: int) -> tuple[float, float]:
    """Return the share of the best value, and of the way from the start to it."""
    world = TableWorld(seed=seed)
    model = TablePolicy(world.num_states, 2, 3).double()
    g = torch.Generator().manual_seed(seed)
    for table in model.tables:  # RSPO compares ranks: of equal log-probabilities it learns nothing
        table.data = 0.3 * torch.randn(table.shape, dtype=table.dtype, generator=g)
    start = world.expected(model)
    train(model, world, method, settings(method), seed=seed)
    value, best, before = (float(x.mean()) for x in (world.expected(model), world.best(), start))
    return value / best, (value - before) / (best - before)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("method", ON_POLICY)
def test_on_policy_methods_reach_nine_tenths_of_the_best(method: str, seed: int) -> None:
    share, _ = train_and_measure(method, seed)
    assert share >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("method", CLEARLY_BETTER)
def test_hepo_as_printed_and_offline_dpo_clearly_beat_the_start(method: str, seed: int) -> None:
    _, gain = train_and_measure(method, seed)
    assert gain >= 0.4


class Negated(nn.Module):
    """A loss with the sign of its objective flipped."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, data: TensorDictBase) -> TensorDictBase:
        out = self.loss(data)
        for key in ("loss_objective", "loss_supervised"):
            if key in out.keys():  # noqa: SIM118
                out[key] = -out[key]
        return out


@pytest.fixture
def flipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(name: str, config: TrainConfig, num_levels: int) -> tuple[Method, float]:
        method, rate = make_method(name, config, num_levels)
        negated = Method(
            method.advantage,
            Negated(method.loss),  # type: ignore[arg-type]
            uses_critic=method.uses_critic,
            uses_reference=method.uses_reference,
            is_offline=method.is_offline,
        )
        return negated, rate

    monkeypatch.setattr("agents.trainer.make_method", make)


@pytest.mark.slow
@pytest.mark.parametrize("method", [*ON_POLICY, *CLEARLY_BETTER])
def test_a_flipped_sign_is_seen(flipped: None, method: str) -> None:
    share, gain = train_and_measure(method, 0)
    assert share < 0.9
    assert gain < 0.1


def test_all_methods_are_covered() -> None:
    registered = set(agents.methods.method_names())
    assert registered - {"ranks"} == {*ON_POLICY, *CLEARLY_BETTER}
