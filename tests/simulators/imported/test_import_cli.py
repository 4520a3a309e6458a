"""From a folder of tables to a comparison, by the two commands of the README."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.run import main
from benchmarks.runs.results import read_results

ROOT = Path(__file__).resolve().parents[3]
RETAIL = ROOT.parent / "shared" / "data" / "online_retail"


@pytest.mark.slow
@pytest.mark.skipif(not RETAIL.exists(), reason="needs the shop's data")
def test_a_shops_log_goes_through_the_main_job(tmp_path: Path) -> None:
    world, out = tmp_path / "shop", tmp_path / "run"
    command = [sys.executable, "-m", "simulators.import_log", str(RETAIL), "--out", str(world)]
    sizes = ["--max-users", "600", "--max-ads", "400", "--max-organic", "400", "--num-codes", "16"]
    done = subprocess.run([*command, *sizes], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "simulated: impressions, ad split, bids" in done.stdout
    words = ["--world", str(world), "--preset", "smoke", "--seeds", "1", "--out", str(out)]
    assert main([*words, "--methods", "hepo", "grpo"]) == 0
    table = read_results(out / "results.parquet")
    assert {"vaft", "hepo", "grpo"} <= set(table["method"])
    page = (out / "report.html").read_text()
    assert "Simulated: impressions, ad split, bids" in page
