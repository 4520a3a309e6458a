"""The tool that breaks code on purpose: what it kills, what survives, and what it leaves behind."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.mutants import __main__ as command
from benchmarks.mutants import mutant as rules
from benchmarks.mutants import trial
from benchmarks.mutants.__main__ import MUTANTS, ROOT, Arguments, chosen, main
from benchmarks.mutants.mutant import Mutant, check, read_mutants

TABLE = r"""
prices.py < test_prices.py
    price * 2 ==> price * 3
    price + 0 ==> price - 0 ## nothing times nothing
"""
CODE = "def double(price):\n    return price * 2\n\n\ndef same(price):\n    return price + 0\n"
TEST = (
    "from prices import double, same\n\n\n"
    "def test_it():\n    assert (double(2), same(3)) == (4, 3)\n"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a tree with a line that its test holds, and one that it can't."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "tests").mkdir()
    (tmp_path / "prices.py").write_text(CODE)
    (tmp_path / "tests" / "test_prices.py").write_text(TEST)
    return tmp_path


def test_a_table_is_read() -> None:
    table = "a.py < x.py y/z.py\n    if a < b: ==> if a <= b: ## equal\n"
    table += "    x\\n    y ==>\nb.py < x.py\n    1 ==> 2\n"
    assert read_mutants(table) == [
        Mutant("a.py", "if a < b:", "if a <= b:", ("tests/x.py", "tests/y/z.py"), "equal"),
        Mutant("a.py", "x\n    y", "", ("tests/x.py", "tests/y/z.py")),
        Mutant("b.py", "1", "2", ("tests/x.py",)),
    ]
    with pytest.raises(ValueError, match="must be `OLD ==> NEW` below a file, got '  1 -> 2'"):
        read_mutants("a.py < x.py\n  1 -> 2")
    with pytest.raises(ValueError, match="below a file"):
        read_mutants("  1 ==> 2")


def test_one_is_killed_and_one_survives(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    excused = read_mutants(TABLE)
    unexplained = read_mutants(TABLE.replace(" ## nothing times nothing", ""))
    assert main(Arguments(), unexplained, root) == 1
    assert capsys.readouterr().out.splitlines() == [
        "killed    prices.py: 'price * 2' -> 'price * 3'",
        "survived  prices.py: 'price + 0' -> 'price - 0'",
        "",
        "1 of 2 killed",
        "survived: prices.py: 'price + 0' -> 'price - 0' (no reason given)",
    ]
    with pytest.raises(ValueError, match=r"at most 5% .* may have a reason .* got 1 of 2"):
        main(Arguments(), excused, root)
    monkeypatch.setattr(rules, "TOLERATED", 0.5)
    monkeypatch.setattr(trial, "run_tests", lambda *_: True)
    assert main(Arguments(workers=2, only="price + 0"), excused, root) == 0
    assert "(nothing times nothing)" in capsys.readouterr().out
    assert (root / "prices.py").read_text() == CODE


def test_what_is_stale_is_named(root: Path) -> None:
    (found, _) = read_mutants(TABLE)
    check([found], root)
    (root / "prices.py").write_text(CODE.replace("* 2", "* 4"))
    with pytest.raises(ValueError, match=r"exactly once, got 0 times prices.py: 'price \* 2'"):
        check([found], root)
    (root / "prices.py").write_text(CODE + CODE)
    with pytest.raises(ValueError, match=r"got 2 times prices.py: 'price \* 2' -> 'price \* 3'"):
        main(Arguments(), [found], root)
    (root / "prices.py").write_text(CODE)
    with pytest.raises(ValueError, match=r"must be listed once, got 2 times prices\.py"):
        check([found, found], root)
    with pytest.raises(ValueError, match=r"must change its file, got prices\.py"):
        check([Mutant("prices.py", "* 2", "* 2", found.tests)], root)
    (root / "tests" / "test_prices.py").unlink()
    with pytest.raises(ValueError, match=r"must be files, got \['tests/test_prices\.py'\]"):
        check([found], root)


def test_tests_that_fail_anyway_kill_nothing(root: Path) -> None:
    (root / "tests" / "test_prices.py").write_text("def test_it():\n    assert False\n")
    with pytest.raises(ValueError, match="must pass before code is broken"):
        main(Arguments(), read_mutants(TABLE)[:1], root)
    (root / "tests" / "test_prices.py").write_text("import nowhere\n")
    with pytest.raises(RuntimeError, match="must pass or fail, got pytest's status 2"):
        trial.run_tests(root, ["tests/test_prices.py"])


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_the_file_is_whole_after_an_interruption(
    error: type[BaseException], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(where: Path, tests: Sequence[str]) -> bool:
        assert "price * 3" in (where / "prices.py").read_text()
        raise error

    monkeypatch.setattr(trial, "run_tests", interrupted)
    with pytest.raises(error):
        trial.survives(read_mutants(TABLE)[0], root)
    assert (root / "prices.py").read_text() == CODE


def test_a_sample_is_drawn_by_its_seed() -> None:
    first = chosen(MUTANTS, Arguments(sample=7, seed=3))
    assert first == chosen(MUTANTS, Arguments(sample=7, seed=3))
    assert len(set(first)) == 7
    assert set(first) != set(chosen(MUTANTS, Arguments(sample=7, seed=4)))
    assert set(chosen(MUTANTS, Arguments())) == set(MUTANTS)
    only = chosen(MUTANTS, Arguments(only="agents/objectives/dpo.py"))
    assert {m.file for m in only} == {"agents/objectives/dpo.py"}
    with pytest.raises(ValueError, match="--only must be part of a mutant, got 'nowhere'"):
        chosen(MUTANTS, Arguments(only="nowhere"))


def test_workers_share_the_mutants_but_no_test_file(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "tests" / "test_more.py").write_text(TEST)
    table = "prices.py < test_prices.py\n price * 2 ==> price * 3\n price + 0 ==> price + 1\n"
    table += table.replace("test_prices", "test_more").replace("+ 1", "+ 2").replace("3", "4")
    double, same, again, other = read_mutants(table)
    shares: list[list[Mutant]] = []
    monkeypatch.setattr(command, "survivors", lambda mutants, _: shares.append(mutants) or [])
    main(Arguments(workers=2), [double, again, same, other], root)
    assert sorted(shares, key=str) == [[double, same], [again, other]]
    shares.clear()
    main(Arguments(workers=3), [double], root)
    assert shares == [[double]]  # a worker without a mutant would run every test


def test_every_listed_mutant_can_be_applied() -> None:
    check(MUTANTS, ROOT)
    assert len(MUTANTS) > 120
