import ast
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import check_packages

ROOT = Path(__file__).parent.parent
ORDER = ("gpr_rl", "simulators", "envs", "agents", "benchmarks")


def imported(path: Path) -> set[str]:
    """Return the packages of `ORDER` that a file imports, wherever in the file it does so."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            names = [node.module or ""]
        found |= {name.partition(".")[0] for name in names}
    return found & set(ORDER)


@pytest.mark.parametrize("package", ORDER)
def test_imports_point_one_way(package):
    allowed = set(ORDER[: ORDER.index(package) + 1])
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert imported(path) <= allowed, f"{path} imports {imported(path) - allowed}"


def test_no_package_is_named_utils():
    assert not [p for package in ORDER for p in (ROOT / package).rglob("utils.py")]


def test_importing_changes_no_random_state_and_says_nothing():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for package in ORDER
        for path in sorted((ROOT / package).rglob("*.py"))
    ]
    program = f"""
import importlib
import numpy, torch, torchrl, gymnasium
def state():
    kind, keys, *rest = numpy.random.get_state()
    return torch.get_rng_state().tolist(), keys.tolist(), rest
before = state(), torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
for name in {modules!r}:
    importlib.import_module(name)
after = state(), torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
assert before == after
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_foreign_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "__init__.py").touch()
    card = tmp_path / "some_agents-1.0.dist-info"
    card.mkdir()
    (card / "METADATA").write_text("Metadata-Version: 2.1\nName: some-agents\nVersion: 1.0\n")
    (card / "top_level.txt").write_text("agents\n")
    (card / "RECORD").write_text("agents/__init__.py,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [n for n in sys.modules if n.partition(".")[0] == "agents"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match="belongs to: some-agents"):
        check_packages()
    with pytest.raises(ImportError, match="'not_there' of gpr_rl is not found"):
        check_packages(("not_there",))


def test_ours_are_ours():
    check_packages()
