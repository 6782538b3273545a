"""Self-contained HTML pages: no scripts, embedded images, light and dark colour schemes."""

import base64
import html
import io
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --faint: #5c5c5c; --paper: #ffffff; --card: #f3f3f1;
  --line: #d0d0cc; --link: #005a9c; --warn: #a83200; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececea; --faint: #a9a9a4; --paper: #161616; --card: #232323; --line: #454541; --link: #7cc0f5;
    --warn: #ff9a6b; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 75rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.75rem; }
h2 { margin: 2.5rem 0 .25rem; font-size: 1.25rem; border-top: 1px solid var(--line); padding-top: 1.25rem; }
p { margin: .25rem 0 1rem; max-width: 48rem; }
a { color: var(--link); }
.faint { color: var(--faint); }
.note { white-space: pre-line; }
.warn { color: var(--warn); font-weight: 600; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .75rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: pre-wrap; }
th { color: var(--faint); font-weight: 600; }
.cards { display: flex; flex-wrap: wrap; gap: .75rem; align-items: flex-start; }
.card { display: flex; flex-wrap: wrap; gap: .5rem; padding: .5rem; border-radius: .375rem;
  background: var(--card); }
figure { margin: 0; width: 8rem; }
figure img { display: block; width: 8rem; height: 8rem; image-rendering: pixelated; }
.strips { flex-direction: column; }
.strips figure { width: 36rem; max-width: 100%; }
.strips img { width: 100%; height: auto; }
figcaption { font-size: .8125rem; line-height: 1.35; overflow-wrap: anywhere; }
.chart { display: block; min-width: 40rem; max-width: 100%; height: auto; }
@media (prefers-color-scheme: dark) { .inverts { filter: invert(.91) hue-rotate(180deg); } }
"""


def page(title: str, body: str) -> str:
    """Build an HTML document from a title, as text, and a body, as HTML."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def escape(text: str) -> str:
    """Escape text for HTML; bytes of file names that are not UTF-8 become question marks."""
    return html.escape(text.encode(errors="replace").decode())


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Build a table from cells of HTML; the first column is left-aligned, the others right-aligned."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "\n".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table>\n<tr>{head}</tr>\n{body}\n</table></div>'


def figure(pixels: npt.NDArray[np.uint8], caption: str) -> str:
    """Embed an image, uint8 (H, W) or (H, W, 3), above a caption, which is HTML."""
    return f'<figure><img alt="" src="{_png(pixels)}"><figcaption>{caption}</figcaption></figure>'


def chart(pixels: npt.NDArray[np.uint8], alt: str, inverts: bool = True) -> str:
    """Embed a chart that was drawn on white.

    Args:
        pixels: uint8 (H, W, 3).
        alt: alternative text that describes the chart.
        inverts: invert the chart when the page is dark; disable it for text on coloured cells, which would lose its
            contrast.
    """
    size = f'width="{pixels.shape[1]}" height="{pixels.shape[0]}"'
    kind = "chart inverts" if inverts else "chart"
    return f'<div class="scroll"><img class="{kind}" {size} alt="{escape(alt)}" src="{_png(pixels)}"></div>'


def _png(pixels: npt.NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
