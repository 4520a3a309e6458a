import io
import json
import math
from dataclasses import replace
from html.parser import HTMLParser

import pandas as pd
import pytest
from rich.console import Console

from benchmarks.errors import UserError
from benchmarks.reports.blocks import (
    ABSENT,
    Bullets,
    Figure,
    Paragraph,
    Section,
    SuiteReport,
    Table,
    format_column,
    key_values,
    print_tables,
    render_figure,
)
from benchmarks.reports.figures import learning_curves
from benchmarks.reports.lookup import interval_of, summarise
from benchmarks.reports.markdown import write_markdown
from benchmarks.reports.page import write_report
from benchmarks.reports.reading import Difference, compare, coverage_note, reading
from benchmarks.reports.statistics import Interval
from benchmarks.runs.progress import Display
from benchmarks.runs.results import (
    check_results,
    complete,
    final_values,
    read_results,
    seed_table,
    tidy,
    under,
    without_conditions,
)
from benchmarks.runs.tasks import Ending, Task


def results(*rows: tuple) -> pd.DataFrame:
    columns = ["suite", "method", "seed", "step", "split", "metric", "value"]
    return complete(pd.DataFrame([("s", *row) for row in rows], columns=columns), "by hand")


def difference(low: float, high: float, num_seeds: int = 5, better: bool = True) -> Difference:
    return Difference(
        method="new",
        baseline="old",
        measure="the value",
        interval=Interval((low + high) / 2, low, high),
        num_seeds=num_seeds,
        higher_is_better=better,
    )


SAID = {
    "improves": "improved",
    "lowers": "lowered",
    "worsens": "worsened",
    "no clear difference": "no clear",
    "too few seeds": "too few seeds",
}


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (difference(0.1, 0.3), "improves"),
        (difference(-0.3, -0.1), "lowers"),
        (difference(-0.1, 0.3), "no clear difference"),
        (difference(0.0, 0.3), "no clear difference"),
        (difference(0.1, 0.3, better=False), "worsens"),
        (difference(-0.3, -0.1, better=False), "improves"),
        (difference(0.1, 0.3, num_seeds=2), "too few seeds"),
        (difference(math.nan, math.nan), "too few seeds"),
    ],
)
def test_verdicts_follow_the_interval(found, verdict):
    assert found.verdict == verdict
    words = reading([found])[0]
    for other in {"improved", "lowered", "worsened", "no clear"} - {SAID[verdict]}:
        assert other not in words
    assert SAID[verdict] in words


def test_sentences_have_the_numbers_and_sort_by_verdict():
    found = [
        replace(difference(-0.1, 0.3), method="same"),
        difference(0.1, 0.3),
        replace(difference(0.5, 0.7), method="more"),
        replace(difference(-0.7, -0.5), baseline="older"),
    ]
    assert reading(found)[:-1] == [
        "The value, against `old`: improved by `new` (+0.2 [0.1, 0.3]), `more` (+0.6 [0.5, 0.7]); "
        "no clear difference for `same` (+0.1 [-0.1, 0.3]).",
        "The value, against `older`: lowered by `new` (-0.6 [-0.7, -0.5]).",
    ]
    alone = replace(difference(math.nan, math.nan, 1), measure="x")
    alone = replace(alone, interval=Interval(2.0, math.nan, math.nan))
    assert reading([alone])[0] == "X, against `old`: too few seeds to tell for `new` (+2)."


def test_the_reading_ends_with_the_least_seeds():
    lines = reading([difference(0.1, 0.3, 10), difference(0.1, 0.3, 3)])
    assert "over 3 seeds" in lines[-1]
    assert "75 to 89 %" in lines[-1]
    assert "the interquartile mean is the mean" in lines[-1]
    assert reading([]) == []


@pytest.mark.parametrize(
    ("num_seeds", "text"),
    [(1, "no interval"), (2, "half"), (4, "75"), (5, "90 %"), (10, "93 to 94"), (30, "93 to 94")],
)
def test_coverage_is_said(num_seeds, text):
    assert text in coverage_note(num_seeds)


def test_differences_are_paired_by_seed():
    table = results(
        ("new", 0, 9, "test", "value", 11.0),
        ("new", 1, 9, "test", "value", 102.0),
        ("new", 2, 9, "test", "value", 1_003.0),
        ("new", 3, 9, "test", "value", 7.0),  # the baseline has no seed 3
        ("old", 1, 0, "test", "value", 100.0),
        ("old", 0, 0, "test", "value", 10.0),
        ("old", 2, 0, "test", "value", 1_000.0),
        ("old", 2, 0, "train", "value", 5.0),
    )
    (found,) = compare(table, "value", "the value", ["new", "old", "absent"], "old")
    assert found.interval.value == pytest.approx(2.0)  # 1, 2, 3
    assert found.num_seeds == 3
    assert found.verdict == "improves"
    assert found.chance == pytest.approx(6 / 9)  # of 9 pairs, ours wins 1 + 2 + 3


def test_the_last_step_counts():
    table = results(
        ("a", 0, 20, "test", "v", 2.0),
        ("a", 0, 10, "test", "v", 1.0),
        ("a", 1, 5, "test", "v", 4.0),
    )
    assert final_values(table)["value"].tolist() == [2.0, 4.0]
    (row,) = summarise(table).itertuples()
    assert (row.num_seeds, row.iqm, row.ci_low, row.ci_high) == (2, 3.0, 2.0, 4.0)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (results(("a", 0, 1, "test", "v", math.inf)), "'v' of 'a', seed 0, step 1, is inf"),
        (results(*[("a", 0, 1, "test", "v", 1.0)] * 2), "two rows"),
        (pd.DataFrame({"method": ["a"]}), "columns must be"),
    ],
)
def test_bad_rows_are_refused(table, message):
    with pytest.raises(ValueError, match=message):
        check_results(table, "task")


def test_look_ups_see_only_the_conditions_that_were_asked_for():
    plain = results(("a", 0, 1, "test", "v", 1.0), ("a", 1, 1, "test", "v", 2.0))
    drift = plain.assign(market="drift", value=[10.0, 20.0])
    more = drift.assign(threads=2, value=[100.0, 200.0])
    table = check_results(pd.concat([plain, drift, more]), "task")
    assert without_conditions(table)["value"].tolist() == [1.0, 2.0]
    assert interval_of(table, "a", "v").value == 1.5
    assert interval_of(under(table, market="drift"), "a", "v").value == 15.0
    assert interval_of(under(table, market="drift", threads=2), "a", "v").value == 150.0
    assert interval_of(under(table, threads=2), "a", "v") is None
    assert seed_table(under(table, market="drift"), "v")["a"].tolist() == [10.0, 20.0]
    summary = summarise(table).set_index(["market", "threads"])["iqm"]
    assert summary.to_dict() == {("", 0): 1.5, ("drift", 0): 15.0, ("drift", 2): 150.0}
    with pytest.raises(ValueError, match=r"two rows for .*'market': 'drift'"):
        check_results(pd.concat([table, drift]), "task")
    with pytest.raises(ValueError, match="columns must be"):
        tidy("s", "a", 0, {"v": 1.0}, marked="drift")


def test_a_table_of_before_the_conditions_is_not_read(tmp_path):
    old = results(("a", 0, 1, "test", "v", 1.0)).drop(columns=["market", "threads"])
    old.to_parquet(tmp_path / "old.parquet")
    with pytest.raises(UserError, match=r"old\.parquet: it lacks the columns market, threads"):
        read_results(tmp_path / "old.parquet")


def test_numbers_of_a_column_share_their_decimals():
    cells = [0.123456, Interval(12.3456, -1.0, 25.0), None, "x", Interval(1.0, math.nan, math.nan)]
    assert format_column(cells) == [
        ("0.1", ""), ("12.3", "[-1.0, 25.0]"), (ABSENT, ""), ("x", ""), ("1.0", ""),
    ]  # fmt: skip
    assert format_column([3, 12]) == [("3", ""), ("12", "")]
    assert format_column([1e-9, 0.0])[0] == ("1.00e-09", "")


def test_settings_are_flattened():
    nested = {"a": {"b": 1, "c": (1, 2)}, "d": None, "e": {}}
    rows = [["a.b", "1"], ["a.c", "1, 2"], ["d", ABSENT], ["e", "{}"]]
    assert key_values("Card", nested) == Table("Card", ["setting", "value"], rows)


def test_piped_tables_have_no_control_codes():
    stream = io.StringIO()
    table = Table("T [bold]", ["[red]name", "value"], [["a" * 90, Interval(1.0, 0.5, 1.5)]])
    print_tables([table], Console(file=stream, width=200, force_terminal=False))
    text = stream.getvalue()
    assert "T [bold]" in text
    assert "[red]name" in text
    assert "a" * 90 + " 1.00 [0.50, 1.50]" in " ".join(text.split())
    assert "\x1b" not in text


def test_a_narrow_console_cuts_nothing():
    stream = io.StringIO()
    cells = [Interval(0.7481, 0.7341, 0.7612)] * 4
    table = Table("T", ["method", "a", "b", "c", "d"], [["hepo_terminal", *cells]])
    print_tables([table], Console(file=stream, width=80, force_terminal=False))
    text = stream.getvalue()
    assert "hepo_terminal" in text
    assert text.count("0.748") == 4
    assert text.count("[0.734,") == 4
    assert text.count("0.761]") == 4


class Links(HTMLParser):
    """Collects what a page would load or leave open."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.loaded += [v for k, v in attrs if k in ("src", "href") and not v.startswith("#")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def report() -> SuiteReport:
    curve = results(*[(m, s, t, "test", "v", t + s) for m in "ab" for s in (0, 1) for t in (1, 2)])
    figure = learning_curves(curve, "v", methods=["a", "b"], split="test", label="v")
    return SuiteReport(
        title="A & B",
        lead="Compared <here> in `tiny`.",
        sections=[
            Section(
                "Everything",
                [
                    Paragraph("Text."),
                    Bullets(["one", "two"]),
                    key_values("Card", {"auc": 0.7}),
                    Figure("curve", "A curve", figure),
                ],
            )
        ],
        tables=[Table("Results", ["method", "value"], [["a", Interval(1.5, 1.0, 2.0)]], "note")],
        differences=[difference(0.1, 0.3)],
    )


def test_the_page_stands_alone(tmp_path, report):
    path = write_report(tmp_path, report, {"seeds": [0, 1]}, {"git_commit": None})
    text = path.read_text()
    page = Links()
    page.feed(text)
    assert page.open == []
    assert len(page.loaded) == 1
    assert page.loaded[0].startswith("data:image/svg+xml;base64,")
    assert "<script" not in text
    for part in ("A &amp; B", "&lt;here&gt;", "<code>tiny</code>", "[1.00, 2.00]", "improved by"):
        assert part in text
    assert (tmp_path / "figures" / "curve.png").read_bytes().startswith(b"\x89PNG")


class Cells(HTMLParser):
    """Collects the rows of all tables of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.inside = False

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.inside = True
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data


def test_both_pages_have_the_same_cells(tmp_path, report):
    odd = Table("Odd", ["a|b", "n"], [["<script>x</script>", 2], ["`c|d` *e*", None]])
    report = replace(report, tables=[*report.tables, odd])
    kept = write_markdown(tmp_path / "docs", "fake", report, "python -m x", ["torch 2"])
    text = kept.read_text()
    assert [line for line in text.splitlines() if line.startswith("|")] == [
        "| method | value |",
        "| --- | ---: |",
        "| a | 1.50 [1.00, 2.00] |",
        "| a\\|b | n |",
        "| --- | ---: |",
        "| \\<script>x\\</script> | 2 |",
        f"| `c\\|d` \\*e\\* | {ABSENT} |",
        "| setting | value |",
        "| --- | --- |",
        "| auc | 0.7 |",
    ]
    assert "![A curve](fake/curve.png)\n\n*A curve*" in text
    assert (tmp_path / "docs" / "fake" / "curve.png").read_bytes().startswith(b"\x89PNG")
    cells = Cells()
    page = write_report(tmp_path, report, {"seeds": [0, 1]}, {"git_commit": None}).read_text()
    cells.feed(page)
    assert cells.rows == [
        ["method", "value"],
        ["a", "1.50 [1.00, 2.00]"],
        ["a|b", "n"],
        ["<script>x</script>", "2"],
        ["c|d *e*", ABSENT],
        ["setting", "value"],
        ["auc", "0.7"],
        ["setting", "value"],
        ["seeds", "0, 1"],
        ["setting", "value"],
        ["git_commit", ABSENT],
    ]
    for part in ("<em>A curve</em>", "1 comparison was made.", "Settings and versions", "note"):
        assert part in page


def test_the_same_report_gives_the_same_bytes(tmp_path, report):
    pages = [write_report(tmp_path / name, report, {}, {}).read_bytes() for name in "ab"]
    assert pages[0] == pages[1]
    assert b"<dc:date>" not in render_figure(report.sections[0].blocks[3].canvas, "svg")


def test_the_bar_follows_the_log(tmp_path):
    log, stream = tmp_path / "log.jsonl", io.StringIO()
    log.write_text('{"task": "x", "step": 9, "num_steps": 10}\n')  # of an earlier attempt
    task = Task(name="x", function="m:f", out=tmp_path)
    display = Display([task], log, stream)
    try:
        display.started(task)
        with log.open("a") as file:
            file.write(json.dumps({"task": "x", "step": 2, "num_steps": 8}) + '\n{"task": "x", "st')
        display.tick()
        (line,) = [t for t in display._bar.tasks if "x" in t.description]
        assert (line.completed, line.fields["note"]) == (0.25, "step 2/8")
        display.ended(task, Ending("x", 1.0))
        assert display._bar.tasks[0].completed == 1.0
    finally:
        display.close()
