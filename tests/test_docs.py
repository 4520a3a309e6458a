"""What the pages and docstrings name exists: links, their anchors, files and modules."""

import math
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("gpr_rl", "simulators", "envs", "agents", "benchmarks", "examples", "tests", "docs")

_TICKED = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"")
_PATH = re.compile(rf"(?<![\w/.$-])((?:{'|'.join(PACKAGES)})/[\w/.-]*)")
_ENV_ID = re.compile(r"-v\d+$")  # gpr_rl/AdDay-v0 is no file
_MODULE = re.compile(rf"(?<![\w/.-])((?:{'|'.join(PACKAGES[:-1])})(?:\.[A-Za-z_]\w*)+)(?![\w/])")


def list_files(suffix: str) -> list[Path]:
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", f"*{suffix}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    return [ROOT / name for name in names if name and (ROOT / name).exists()]


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", page, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head).strip().lower().replace(" ", "-") for head in heads}


def broken_links(text: str, folder: Path) -> list[str]:
    """The relative links of a page in `folder` that lead nowhere."""
    broken = []
    for match in _LINK.finditer(text):
        link = match[1] or match[2]
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = folder / path
        lost = not target.exists()
        if not lost and anchor:
            lost = anchor not in anchors(target.read_text() if path else text)
        if lost:
            broken.append(link)
    return broken


def missing_paths(text: str) -> list[str]:
    """The paths `folder/...` below a package that the tree does not have."""
    found = (path.rstrip(".") for path in _PATH.findall(text))
    return [path for path in found if not (_ENV_ID.search(path) or (ROOT / path).exists())]


def missing_files_by_name(text: str, names: set[str]) -> list[str]:
    """The bare file names in backticks, `file.py`, that no folder has."""
    ticked = [t for t in _TICKED.findall(text) if re.fullmatch(r"\w+\.(py|md)", t)]
    return [name for name in ticked if name not in names]


def missing_modules(text: str) -> list[str]:
    """The dotted names that are neither a module nor a name written in one."""
    return [name for name in _MODULE.findall(text) if not _names_something(name)]


def _names_something(name: str) -> bool:
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        module = ROOT.joinpath(*parts[:n])
        file = module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
        if n == len(parts) and (file.exists() or module.is_dir()):
            return True
        if file.exists():
            return bool(re.search(rf"\b{parts[n]}\b", file.read_text()))
    return False


PAGES = [page for page in list_files(".md") if "results" not in page.parts]
NAMES = {file.name for file in (*list_files(".py"), *list_files(".md"))}
NOT_IN_THE_TREE = {"my_reward.py", "utils.py"}  # the reader makes one; nobody makes the other


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    assert broken_links(text, page.parent) == []
    assert missing_paths(text) == []
    assert missing_modules(text) == []
    assert missing_files_by_name(text, NAMES | NOT_IN_THE_TREE) == []


def test_pages_named_in_docstrings_exist() -> None:
    missing = {
        file.relative_to(ROOT).as_posix(): bad
        for file in list_files(".py")
        if file != Path(__file__).resolve()
        and (bad := missing_paths(" ".join(_TICKED.findall(file.read_text()))))
    }
    assert missing == {}


def test_the_results_pages_link_to_what_exists() -> None:
    for page in (ROOT / "docs" / "results").glob("*.md"):
        assert broken_links(page.read_text(), page.parent) == [], page.name


def test_the_projection_to_many_processes_is_the_model_above_it() -> None:
    page = (ROOT / "docs" / "scaling_out.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (\S+) s \| (\S+) \| (\S+) s \| (\S+) \|$", page, re.MULTILINE)
    assert [int(row[0]) for row in rows] == [1, 8, 64, 512]
    step, parameters, meetings, latency, bandwidth = 2.0, 250_000, 6, 60e-6, 1.25e9
    for number, fixed, fixed_up, plain, plain_up in rows:
        size = int(number)
        wait = meetings * latency * math.log2(size)
        gathered = meetings * size * parameters * 4 / bandwidth if size > 1 else 0.0
        ring = meetings * 2 * (size - 1) / size * parameters * 4 / bandwidth
        for time, said, speed in ((gathered, fixed, fixed_up), (ring, plain, plain_up)):
            whole = step / size + time + wait
            assert f"{whole:.3f}" == said
            assert f"{step / whole:.1f}" == speed


def test_a_wrong_name_is_found() -> None:
    page = (
        "# A head: two\n[here](#a-head-two) [gone](#a-head) [data](data.md) [no](nowhere.md)\n"
        "[out](https://example.org/no.md) `envs/days.py` `envs/night.py` `agents.trainer.train`\n"
        "`agents.trainer.untrain` `agents.coach` `benchmarks.run` `trie.py` `shrub.py`"
    )
    assert broken_links(page, ROOT / "docs") == ["#a-head", "nowhere.md"]
    assert missing_paths(page) == ["envs/night.py"]
    assert missing_modules(page) == ["agents.trainer.untrain", "agents.coach"]
    assert missing_files_by_name(page, NAMES) == ["shrub.py"]
