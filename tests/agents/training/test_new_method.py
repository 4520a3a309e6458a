"""A new method touches one file, its own dials included."""

import math
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError
from tensordict import TensorDict

import agents.registry
from agents.methods import TrainConfig, make_method, method_config, search_space
from agents.objectives.dpo import DPOConfig
from agents.objectives.hepo import HEPOConfig
from agents.trainer import train
from benchmarks.plugins import import_methods
from tests.references.tabular import TablePolicy, TableWorld

MODULE = "tests.agents.training.toy_method"
SMALL = TrainConfig(num_steps=1, num_requests=30, num_candidates=8, kl_penalty=0.0, num_epochs=1)


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the toy for one test."""
    monkeypatch.setattr(agents.registry, "_METHODS", dict(agents.registry._METHODS))
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    import_methods([MODULE], ["toy"])


def trained(config: TrainConfig, path: Path | None = None) -> tuple[TableWorld, TablePolicy]:
    world = TableWorld()
    model = TablePolicy(world.num_states, 2, 3).double()
    train(model, world, "toy", config, seed=0, checkpoint_path=path, resume=True)
    return world, model


def toy_config(**dials: float) -> TrainConfig:
    kind = sys.modules[MODULE].ToyConfig
    return kind(**asdict(SMALL), **dials)


def test_one_step_moves_the_policy_towards_reward() -> None:
    world, model = trained(SMALL)
    start = world.expected(TablePolicy(world.num_states, 2, 3).double())
    assert (world.expected(model) > start).all()


def test_its_own_dial_is_typed_checked_and_changes_the_result() -> None:
    _, plain = trained(SMALL)  # a plain TrainConfig has the toy's dials at their defaults
    for power, equal in ((1.0, True), (3.0, False)):
        _, model = trained(toy_config(toy_power=power))
        pairs = zip(plain.parameters(), model.parameters(), strict=True)
        assert all(torch.equal(x, y) for x, y in pairs) == equal
    with pytest.raises(ValueError, match="toy_power must be above 0, got -1"):
        toy_config(toy_power=-1.0)


def test_its_loss_by_hand() -> None:
    method, rate = make_method("toy", toy_config(toy_power=2.0), 2)
    assert rate == 0.5
    data = {
        "logits": torch.zeros(1, 2, 1, 2),
        "legal_mask": torch.ones(1, 2, 1, 2, dtype=torch.bool),
        "codes": torch.tensor([[[0], [1]]]),
        "valid": torch.ones(1, 2, dtype=torch.bool),
        "terminal_reward": torch.tensor([[1.0, 3.0]]),
    }
    loss = method.loss(TensorDict(data, [1]))["loss_objective"]
    # Each path has probability 1/2: (1^2 + 3^2) / 2 times log 2.
    assert loss.item() == pytest.approx(5.0 * math.log(2.0))


def test_tuning_may_change_it_and_a_checkpoint_remembers_it(tmp_path: Path) -> None:
    tuned = method_config("toy", SMALL)
    for name, values in search_space("toy").items():
        tuned = replace(tuned, **{name: values[-1]})
    assert (tuned.toy_power, tuned.learning_rate, tuned.num_requests) == (2.0, 0.5, 30)
    path = tmp_path / "run.safetensors"
    trained(tuned, path)
    with pytest.raises(ValueError, match=r"toy_power=2\.0, this run has 1\.0"):
        trained(replace(tuned, toy_power=1.0), path)


def test_built_in_methods_take_the_whole_configuration_or_their_own_dials() -> None:
    whole = {field.name for field in fields(TrainConfig)}
    for name in agents.registry._METHODS:
        assert method_config(name, TrainConfig(num_requests=7)).num_requests == 7
    assert {field.name for field in fields(HEPOConfig)} < whole
    assert method_config("dpo", SMALL) is SMALL
    method, _ = make_method("dpo", DPOConfig(dpo_beta=0.25), 2)
    assert method.loss.beta == 0.25


def test_a_method_is_named_by_its_registered_name_only() -> None:
    for wrong in ("nope", None, ["toy"], print):
        with pytest.raises((ValueError, TypeCheckError)) as refused:
            make_method(wrong, SMALL, 2)  # type: ignore[arg-type]
        known = f"unknown method {wrong!r}; registered: hepo, "
        assert isinstance(refused.value, TypeCheckError) or known in str(refused.value)
