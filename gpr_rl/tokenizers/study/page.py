"""The report of a tokenizer as one HTML page that opens offline."""

import base64
import io
import math
from collections.abc import Mapping
from pathlib import Path

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from gpr_rl.files import write_text
from gpr_rl.tokenizers.study.study import Study

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{{ title }}</title>
<style>
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}
th,td{padding:.25rem .8rem;text-align:right;border-bottom:1px solid #ddd}
th:first-child,td:first-child,td.text{text-align:left}
img{max-width:100%} .bad{border-left:4px solid #d55e00;padding-left:1rem}
.good{border-left:4px solid #009e73;padding-left:1rem} code{background:#f4f4f4;padding:0 .2rem}
</style>
<h1>{{ title }}</h1>
<div class="{{ 'bad' if study.verdict else 'good' }}"><h2>Verdict</h2>
{% if study.verdict %}<ul>{% for line in study.verdict %}<li>{{ line }}</li>{% endfor %}</ul>
{% else %}<p>Nothing wrong was found.</p>{% endif %}</div>
<h2>Quality</h2>
<table><tr><th>rows<th>number<th>collision rate<th>path similarity<th>reconstruction error</tr>
{% for name, (number, q) in study.parts.items() %}<tr><td>{{ name }}<td>{{ '{:,}'.format(number) }}
<td>{{ '%.4f'|format(q.collision_rate) }}<td>{{ dash(q.path_similarity) }}
<td>{{ dash(q.reconstruction_error) }}</tr>{% endfor %}</table>
<p>Collision rate: share of items whose whole path another item of the same line has too. Path
similarity: mean cosine similarity of the items of a shared path. Reconstruction error: mean
squared distance of an embedding and what its codes decode to.
{{ '%.2f'|format(100 * study.twins) }} % of the rows have the embedding of another row.</p>
<h2>Levels</h2>
<table><tr><th>level<th>codes<th>in use<th>entropy (nats)<th>at most<th>codes after a prefix</tr>
{% for level in levels %}<tr>{% for cell in level %}<td>{{ cell }}{% endfor %}</tr>{% endfor %}
</table>
<p><img alt="Items per code of every level, sorted"
src="data:image/svg+xml;base64,{{ figure }}"></p>
<h2>Largest collisions</h2>
{% if study.largest %}<table><tr><th>path<th>items<th>similarity<th>first rows{% if named %}
<th>names{% endif %}</tr>{% for c in study.largest %}<tr><td><code>{{ c.path|join('-') }}</code>
<td>{{ c.rows|length }}<td>{{ dash(c.similarity) }}<td>{{ c.rows[:5]|join(', ') }}
{% if named %}<td class="text">{{ c.names|join(' \u00b7 ') }}{% endif %}</tr>{% endfor %}</table>
{% else %}<p>No two items share a path.</p>{% endif %}
<h2>Made with</h2>
<table>{% for name, value in settings.items() %}<tr><td>{{ name }}<td class="text">{{ value }}</tr>
{% endfor %}</table></html>
"""


def write_page(path: Path, title: str, study: Study, settings: Mapping[str, object]) -> None:
    """Write the report of a study; settings are shown as they are."""
    whole = study.parts["all"][1]
    levels = [
        [
            number + 1,
            size,
            f"{float(whole.code_usage[number]):.1%}",
            f"{float(whole.entropy[number]):.3f}",
            f"{math.log(size):.3f}",
            f"{study.children[number]:.1f}",
        ]
        for number, size in enumerate(study.num_codes)
    ]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    text = environment.from_string(_PAGE).render(
        title=title,
        study=study,
        levels=levels,
        figure=Markup(base64.b64encode(_usage_figure(study)).decode()),
        named=any(collision.names for collision in study.largest),
        settings=settings,
        dash=lambda value: "\N{EN DASH}" if value != value else f"{value:.4g}",
    )
    write_text(path, text)


def _usage_figure(study: Study) -> bytes:
    figure = Figure(figsize=(8.0, 2.6), layout="constrained")
    axes = figure.subplots(1, len(study.counts), squeeze=False)[0]
    for level, (axis, count) in enumerate(zip(axes, study.counts, strict=True)):
        ordered = count.sort(descending=True).values.numpy()
        axis.fill_between(range(len(ordered)), ordered, step="pre", color="#0072b2")
        axis.axhline(ordered.mean(), color="#d55e00", linewidth=1, linestyle="--")
        axis.set_title(f"level {level + 1}", fontsize=10)
        axis.set_xlabel("code, most items first", fontsize=9)
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("items", fontsize=9)
    content = io.BytesIO()
    figure.savefig(content, format="svg")
    return content.getvalue()
