"""Dials as text: every value is of its field's type, or refused by name."""

from dataclasses import dataclass
from typing import Literal

import pytest

from agents.train_config import TrainConfig
from gpr_rl.dials import changed_dials, with_dials
from simulators.synthetic.config import WorldConfig


@dataclass(frozen=True, kw_only=True)
class Example:
    number: int = 1
    share: float = 0.5
    on: bool = False
    kind: Literal["a", "b"] = "a"
    name: str = "x"
    limit: float | None = None
    weights: tuple[float, ...] = ()
    scale: float | tuple[float, ...] = 1.0
    other: dict[str, int] | None = None

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError(f"number must be at least 0, got {self.number}")


@pytest.mark.parametrize(
    ("dial", "value"),
    [
        ("number=3", 3), ("share=2", 2.0), ("share=1e-3", 0.001), ("on=true", True),
        ("share=0.123456789", 0.123456789),
        ("on=False", False), ("kind=b", "b"), ("name=none", "none"), ("limit=none", None),
        ("limit=0.2", 0.2), ("weights=1,2.5", (1.0, 2.5)), ("weights=", ()), ("scale=2", 2.0),
        ("scale=1,2", (1.0, 2.0)),
    ],
)  # fmt: skip
def test_a_value_is_read_as_its_fields_type(dial: str, value: object) -> None:
    name = dial.partition("=")[0]
    found = getattr(with_dials(Example(), [dial]), name)
    assert found == value
    assert type(found) is type(value)
    changed = with_dials(Example(), [dial])
    assert with_dials(Example(), changed_dials(changed, Example())) == changed


@pytest.mark.parametrize(
    ("dial", "said"),
    [
        ("number=1.5", "number=1.5: number must be a whole number, got '1.5'"),
        ("number=abc", "number=abc: number must be a whole number, got 'abc'"),
        ("number=-1", "number=-1: number must be at least 0, got -1"),
        ("share=nan", "share=nan: share must be a finite number, got 'nan'"),
        ("share=inf", "share must be a finite number"),
        ("on=maybe", "on=maybe: on must be true or false, got 'maybe'"),
        ("kind=c", "kind must be one of a, b, got 'c'"),
        ("limit=x", "limit must be a finite number or none, got 'x'"),
        ("weights=1,x", "weights must be a finite number, more of them with commas"),
        ("other=3", "other must be a value that text can't give or none, got '3'"),
        ("speed=3", "'speed=3' must be FIELD=VALUE with a field of kind, limit, name, number"),
        ("number", "'number' must be FIELD=VALUE"),
    ],
)
def test_what_is_wrong_is_named(dial: str, said: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        with_dials(Example(), [dial])
    assert said in str(error.value)


def test_the_projects_own_dials_go_both_ways() -> None:
    dials = ["through_terminal=false", "level_weight=1,1,2", "kl_stop=none", "num_steps=7"]
    config = with_dials(TrainConfig(), dials)
    assert config.through_terminal is False
    assert config.level_weight == (1.0, 1.0, 2.0)
    assert set(changed_dials(config, TrainConfig())) == {
        "level_weight=1,1,2", "kl_stop=none", "num_steps=7",
    }  # fmt: skip
    with pytest.raises(ValueError, match="auxiliary must be a value that text can't give"):
        with_dials(TrainConfig(), ["auxiliary=3"])
    with pytest.raises(ValueError, match="shuffle_tree must be true or false, got 'maybe'"):
        with_dials(WorldConfig(), ["shuffle_tree=maybe"])
