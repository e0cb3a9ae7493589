"""Makes parts of pages that open anywhere: no scripts, nothing loaded, every text escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from string import Template
from typing import Any, NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DISCLAIMER = (
    "Research software, not a medical device. Nothing here may be used for diagnosis. A network can draw "
    "structures that are not in the scan, an embolus among them, and can wipe out real ones; one that was "
    "trained with discriminators invents more often. The figures say how often that was seen here, not that "
    "it cannot happen."
)
PAGE = Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title>
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1180px; padding: 0 1em; }
h1 { font-size: 1.7em; } h2 { font-size: 1.25em; margin: 1.8em 0 .3em; }
h3 { font-size: 1.05em; margin: 1.2em 0 .2em; }
p { max-width: 60em; } .wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .6em 0 1em; }
td, th { border-bottom: 1px solid #d5d5d5; padding: .3em .9em .3em .3em; text-align: left; }
td { vertical-align: top; } th { vertical-align: bottom; }
th { border-bottom: 2px solid #888; font-weight: 600; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }
td small { display: block; color: #555; max-width: 34em; line-height: 1.35; }
.passed { background: #d9f0dd; } .failed { background: #f8d7d3; } .unknown { background: #eee; }
.notice { border-left: 5px solid #c60; background: #fff4e5; padding: .6em 1em; }
.verdict { font-size: 1.15em; border-left: 5px solid #346; background: #eef3f8; padding: .6em 1em; }
img { max-width: 100%; } figure { margin: 1em 0 1.6em; } figcaption { color: #444; }
@media print {
  @page { size: A4; margin: 12mm; }
  body { margin: 0; max-width: none; font-size: 9.5pt; }
  .wide { overflow: visible; } .passed, .failed, .unknown, .notice, .verdict { print-color-adjust: exact; }
  h2, h3 { break-after: avoid; } figure, tr { break-inside: avoid; } td, th { padding-right: .5em; }
}
</style></head><body>
$body
</body></html>
""")


class Cell(NamedTuple):
    """Content of a cell: text, a smaller text below it, and a class of the page's style."""

    text: str
    small: str = ""
    kind: str = ""


def number(text: str, kind: str = "") -> Cell:
    """Makes a cell with a number, aligned to the right."""
    return Cell(text, kind=f"number {kind}".strip())


def html_table(head: Sequence[str | Cell], lines: Iterable[Sequence[Any]]) -> str:
    """Makes a table of escaped cells; other values become a `Cell`, numbers aligned to the right."""
    cells = "".join(_cell(name, "th") for name in head)
    body = "".join(f"<tr>{''.join(_cell(value, 'td') for value in line)}</tr>" for line in lines)
    return f'<div class="wide"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def html_picture(png: bytes, caption: str) -> str:
    """Embeds a picture in the page."""
    data = base64.b64encode(png).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def paragraph(text: str, kind: str = "") -> str:
    """Makes a paragraph of escaped text."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def bullets(title: str, lines: Sequence[str]) -> str:
    """Makes a heading with a count and a list below it; empty if there are no lines."""
    if not lines:
        return ""
    listed = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<h2>{escape(title)}: {len(lines)}</h2><ul>{listed}</ul>"


def png_of(figure: Figure) -> bytes:
    """Turns a matplotlib figure into PNG."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _cell(value: Any, tag: str) -> str:
    if not isinstance(value, Cell):
        value = number(str(value)) if isinstance(value, int) else Cell(str(value))
    kind = f' class="{escape(value.kind)}"' if value.kind else ""
    small = f"<small>{escape(value.small)}</small>" if value.small else ""
    return f"<{tag}{kind}>{escape(value.text)}{small}</{tag}>"
