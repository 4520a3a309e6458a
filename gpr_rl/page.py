"""One HTML page that opens offline, made from Markdown.

The Markdown itself is put together with `escape` and `table`, which keep a text what it is:
nothing in it is taken for markup, except words between backticks, which are set in code type.
"""

import base64
import html
import re
from collections.abc import Mapping, Sequence

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML

_MARKUP = re.compile(r"[\\*<]|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])|~(?=~)|&(?=#?\w+;)")
_LINE_START = re.compile(r"^(\d{0,9})(>|[#+\-=.)](?=[\s#+\-=]|$))")
_STYLE = """
:root { color-scheme: light; --ink: #1c2330; --soft: #5b6575; --line: #dfe3ea; --tint: #f5f7fa;
  --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); font: 16px/1.55 system-ui, -apple-system,
  "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 2.5rem 1.5rem 5rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .6rem; }
h1 + p { font-size: 1.08rem; color: var(--soft); }
h2 { font-size: 1.3rem; margin: 2.8rem 0 .8rem; padding-top: 1rem;
  border-top: 1px solid var(--line); }
p, ul { max-width: 46rem; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; margin: 1.4rem 0 0; font-size: .92rem; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
img { max-width: 100%; height: auto; }
p > em:only-child { color: var(--soft); font-size: .92rem; font-style: normal; }
.scroll { overflow-x: auto; margin: .4rem 0 1.2rem; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 600; border-bottom: 2px solid var(--line); }
th, td { padding: .38rem 1.2rem .38rem 0; vertical-align: top; }
td { border-bottom: 1px solid var(--line); } tbody tr:hover { background: var(--tint); }
code { font: .92em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  background: var(--tint); padding: .05em .3em; border-radius: 3px; }
@media print { main { max-width: none; padding: 0; } nav { display: none; } }
"""
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body><main>
{body}</main></body></html>
"""


def escape(text: str) -> str:
    """Return a text in one line of Markdown that shows it as it is, `marked` words as code."""
    parts = " ".join(text.split()).split("`")
    pieces = []
    for number, part in enumerate(parts):
        is_code = number % 2 == 1 and number < len(parts) - 1
        if is_code and part:
            pieces.append(f"`{part}`")
        elif is_code:
            pieces.append("\\`\\`")
        else:  # a last mark without a partner stays a mark
            pieces.append("\\`" * (number % 2) + _MARKUP.sub(r"\\\g<0>", part))
    return _LINE_START.sub(r"\1\\\2", "".join(pieces))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], is_number: Sequence[bool]) -> str:
    """Return a Markdown table of plain texts; columns of numbers stand to the right."""
    rules = ["---:" if number else "---" for number in is_number]
    lines = [_row([escape(name) for name in columns]), _row(rules)]
    return "\n".join([*lines, *(_row([escape(cell) for cell in row]) for row in rows)])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def svg_uri(content: bytes) -> str:
    """Return the address under which a page carries an SVG figure itself."""
    return "data:image/svg+xml;base64," + base64.b64encode(content).decode()


def html_page(title: str, markdown: str, images: Mapping[str, str]) -> str:
    """Return the page of a Markdown text with tables; raw HTML in it is shown, not obeyed.

    `images` says where the text's images are to be loaded from, e.g. data URIs.

    Raises:
        ValueError: An image of the text that `images` lacks.
    """
    parser = MarkdownIt("commonmark", {"html": False, "xhtmlOut": False}).enable("table")
    parser.add_render_rule("table_open", lambda *_: '<div class="scroll"><table>\n')
    parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
    tokens = parser.parse(markdown)
    renderer = parser.renderer
    assert isinstance(renderer, RendererHTML)
    links: list[str] = []
    for token, inside in zip(tokens, [*tokens[1:], None], strict=True):
        for part in token.children or ():
            if part.type == "image":
                name = str(part.attrGet("src"))
                if name not in images:
                    known = sorted(images)
                    raise ValueError(f"a page must carry its images: {name!r} is not among {known}")
                part.attrSet("src", images[name])
        if token.type == "heading_open" and token.tag == "h2" and inside is not None:
            token.attrSet("id", f"s{len(links) + 1}")
            text = renderer.renderInline(inside.children or [], parser.options, {})
            links.append(f'<a href="#s{len(links) + 1}">{text}</a>')
    first = next((i for i, token in enumerate(tokens) if token.attrGet("id")), len(tokens))
    top = renderer.render(tokens[:first], parser.options, {})
    rest = renderer.render(tokens[first:], parser.options, {})
    contents = f"<nav>{''.join(links)}</nav>\n" if links else ""
    return _PAGE.format(title=html.escape(title), style=_STYLE, body=top + contents + rest)
