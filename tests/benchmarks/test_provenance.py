import importlib
import inspect
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.errors import UserError
from benchmarks.provenance import command, made_with, page_name
from benchmarks.suite import SUITES, load_suite
from tests.benchmarks.command import settings_of


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--preset", "paper", "--seeds", "5", "--markets", "--ablate", "kl_0"],
        ["--preset", "paper", "--methods", "ppo", "hepo", "--tune", "0", "--markets", "drift"],
        ["--preset", "smoke", "--first-seed", "7", "--world", "small", "--reward", "ecpm=0.5"],
        ["--methods", "examples.custom_method:ranks", "grpo", "--tune", "3"],
        ["rankers", "--preset", "quick", "--seeds", "4"],
    ],
)
def test_the_command_makes_the_same_settings(flags: list[str], tmp_path: Path) -> None:
    def read(words: list[str]):
        return settings_of(*words, "--out", str(tmp_path / "run"))

    suite, settings = read(flags)
    words = shlex.split(command(suite, settings))
    assert words[:3] == ["python", "-m", "benchmarks.run"]
    assert read(words[3:])[1] == settings


def test_a_run_that_grew_is_one_command(tmp_path: Path) -> None:
    def read(words: list[str]):
        return settings_of("--preset", "smoke", *words, "--out", str(tmp_path))

    suite, first = read(["--methods", "ppo", "--seeds", "1"])
    _, second = read(["--methods", "hepo", "--seeds", "3", "--markets", "drift"])
    stored = {k: list(v) for k, v in first.to_json().items() if isinstance(v, tuple)}
    grown = second.extended(stored, suite.flags.EXTENDABLE)
    assert command(suite, grown) == (
        "python -m benchmarks.run alignment --preset smoke --seeds 3 --methods ppo hepo "
        "--markets drift"
    )


@pytest.mark.parametrize("name", list(SUITES))
def test_every_task_has_a_function_that_takes_its_arguments(name: str, tmp_path: Path) -> None:
    suite = load_suite(name)
    for preset in suite.presets:
        _, settings = settings_of(name, "--preset", preset, "--out", str(tmp_path))
        for task in suite.make_tasks(settings):
            module, _, function = task.function.partition(":")
            found = getattr(importlib.import_module(module), function)
            inspect.signature(found).bind(**task.kwargs)


def test_what_a_run_was_made_with_is_said_without_places() -> None:
    config = {
        "versions": {"torch": "2.13.0", "faiss-cpu": None},
        "platform": {"machine": "x86_64", "num_cpus": 2, "system": "Linux"},
        "git_commit": "abc",
        "git_changed": True,
    }
    assert made_with(config) == ["torch 2.13.0", "x86_64, 2 cores", "commit abc with local changes"]
    assert made_with({"settings": {}}) == []


def test_pages_of_other_questions_have_other_names(tmp_path: Path) -> None:
    def name(*words: str) -> str:
        return page_name(*settings_of("architecture", *words, "--out", str(tmp_path)))

    assert name() == "architecture"
    assert name("--protocol", "leave-one-out") == "architecture-leave-one-out"
    assert name("--world", "tiny", "--protocol", "leave-one-out-20") == (
        "architecture-tiny-leave-one-out-20"
    )


def test_dials_are_in_the_command_and_in_the_name(tmp_path: Path) -> None:
    words = ["--baseline", "ad", "--set", "num_steps=7", "level_weight=1,1,2"]
    suite, settings = settings_of(*words, "--out", str(tmp_path))
    said = command(suite, settings)
    assert said.endswith("--set num_steps=7 baseline=ad level_weight=1,1,2")
    assert page_name(suite, settings) == "alignment-num_steps_7-baseline_ad-level_weight_1_1_2"
    again = settings_of(*said.split()[3:], "--out", str(tmp_path))
    assert again[1].sizes == settings.sizes
    for wrong, message in (
        ("through_terminal=yes", "through_terminal must be true or false, got 'yes'"),
        ("dpo_num_pairs=0", "dpo_num_pairs must lie in"),
        ("level_weight=1,1", "level_weight must have 3 entries with 3 levels, got 2"),
    ):
        with pytest.raises(UserError, match=f"--set: .*{message}"):
            settings_of("--set", wrong, "--out", str(tmp_path))


def test_one_page_per_world(tmp_path: Path) -> None:
    def name(*words: str) -> str:
        return page_name(*settings_of(*words, "--out", str(tmp_path)))

    assert name() == name("--preset", "smoke") == "alignment"
    assert name("--preset", "paper") == "alignment-medium"
    assert name("--world", "constant") == "alignment-constant"


def test_every_module_of_own_methods_is_named(tmp_path: Path) -> None:
    suite, settings = settings_of("--out", str(tmp_path))
    own = replace(settings, methods=("ppo", "a", "b", "c"), plugins=("one", "two"))
    assert command(suite, own).endswith("--methods ppo one:a two:b two:c")


@pytest.mark.parametrize("suite", ["architecture", "scaling", "tokenizers"])
def test_what_chose_settings_is_not_tested(suite: str, tmp_path: Path) -> None:
    words = [suite, "--first-seed", "998", "--seeds", "3", "--out", str(tmp_path)]
    with pytest.raises(UserError, match="seed 1000 is one that settings are chosen on"):
        settings_of(*words)
    settings_of(*words, "--preset", "smoke")  # tunes nothing
