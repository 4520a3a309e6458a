"""Texts stay what they are on a page, and a page carries its figures."""

from html.parser import HTMLParser

import pytest

from gpr_rl.page import escape, html_page, svg_uri, table


class Shown(HTMLParser):
    """Collects the text of a page, its cells, its code words and its tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.tags, self.cells, self.code = "", [], [], []
        self._now = ""
        self.feed(page[page.index("<main>") :])

    def handle_starttag(self, tag, attrs):
        self._now = tag
        self.tags.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        self._now = ""

    def handle_data(self, data):
        self.text += data
        if self._now == "code":
            self.code.append(data)
        if self.cells and data.strip():
            self.cells[-1] += data


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "a | b || c",
        "2 * 3 * 4 **bold** _soft_ __init__ rq_kmeans_plus",
        "# no heading",
        "- no item",
        "1. no item",
        "> no quote",
        ">no quote",
        "---",
        "[no](http://link) ![no](image.png) <http://link> [1, 2]",
        "[a]: http://link",
        "back\\slash \\* \\| &amp; &#65;",
        "~~kept~~ 5 > 3 & 2 < 3",
        "one ` alone",
        "``` fence",
    ],
)
def test_a_text_is_shown_as_it_is(text):
    plain = Shown(html_page("t", escape(text), {}))
    assert plain.text.strip() == text
    assert plain.tags == ["main", "p"]
    item = Shown(html_page("t", f"- {escape(text)}", {}))
    assert item.text.strip() == text
    assert item.tags == ["main", "ul", "li"]
    cells = Shown(html_page("t", table(["a", text], [[text, "z"]], [False, True]), {}))
    assert cells.cells == ["a", text, text, "z"]


def test_marked_words_are_code_and_nothing_else_is():
    shown = Shown(html_page("t", escape("see `a_b*<i>` and `--x` or *y*, one ` more"), {}))
    assert shown.code == ["a_b*<i>", "--x"]
    assert shown.text.strip() == "see a_b*<i> and --x or *y*, one ` more"
    cells = Shown(html_page("t", table(["`a|b`"], [["`c` | d"]], [False]), {}))
    assert cells.cells == ["a|b", "c | d"]
    assert cells.code == ["a|b", "c"]


def test_only_columns_of_numbers_stand_to_the_right():
    page = html_page("t", table(["name", "n"], [["x", "1"]], [False, True]), {})
    assert page.count("text-align:right") == 2  # head and cell
    assert '<td style="text-align:right">1</td>' in page
    assert "<td>x</td>" in page


def test_raw_html_in_markdown_is_shown():
    page = html_page("<b>", "<script>x</script>\n\nand <b>this</b>", {})
    assert "<script" not in page
    assert "<title>&lt;b&gt;</title>" in page
    assert "and &lt;b&gt;this" in page


def test_figures_are_inlined_and_headings_listed():
    text = "# T\n\nlead\n\n## One `x`\n\n![A & b](f/one.svg)\n\n## Two\n\nend"
    page = html_page("T", text, {"f/one.svg": svg_uri(b"<svg/>")})
    assert '<img src="data:image/svg+xml;base64,PHN2Zy8+" alt="A &amp; b">' in page
    assert '<a href="#s1">One <code>x</code></a><a href="#s2">Two</a>' in page
    assert page.index("lead") < page.index("<nav>") < page.index('<h2 id="s1">')
    assert '<h2 id="s2">Two</h2>' in page
    with pytest.raises(ValueError, match=r"must carry its images: 'f/one.svg' is not among \[\]"):
        html_page("T", text, {})
