"""What the project's HTML pages look like: one style, one set of colours, drawings that are part of the page."""

import html
import io
import re
from collections.abc import Callable
from typing import Any

# Every colour is a CSS variable, so that one drawing serves light and dark. Matplotlib draws with stand-ins.
_NUM_COLOURS = 8
_DASHES = (('-', 'solid'), ('-.', 'dashed'), (':', 'dotted'))  # Matplotlib's name, CSS's
MUTED, GRID, PAGE = '#0a0c00', '#0a0c01', '#0a0c02'
_STAND_INS = {f'#0a0b{i:02x}': f'var(--series-{i})' for i in range(_NUM_COLOURS)}
_STAND_INS |= {MUTED: 'var(--muted)', GRID: 'var(--grid)', PAGE: 'var(--page)'}

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1c1f23; --muted: #666d75; --grid: #e4e7ea; --card: #f6f7f8;
  --series-0: #2563c9; --series-1: #c8500a; --series-2: #168a5b; --series-3: #b0348f; --series-4: #8a6d00;
  --series-5: #1490a8; --series-6: #7a52d1; --series-7: #5c646d; }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --text: #e6e9ec; --muted: #9aa3ac; --grid: #2b3137;
  --card: #1c2025; --series-0: #74a7ff; --series-1: #ff9a57; --series-2: #4fcf98; --series-3: #f083cf;
  --series-4: #e0c04a; --series-5: #55cfe6; --series-6: #b79bff; --series-7: #aab3bc; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 78rem; padding: 1rem; background: var(--page); color: var(--text);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: .2rem 0; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin: 1.8rem 0 .6rem; }
h3, figcaption { font-size: .95rem; font-weight: 600; margin: 0 0 .3rem; }
p, .legend { color: var(--muted); margin: .2rem 0; }
.charts { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
.sections { columns: 4 17rem; column-gap: 1rem; }
figure, .sections > div { margin: 0; padding: .7rem .8rem; background: var(--card); border-radius: .5rem;
  min-width: 0; }
.sections > div { break-inside: avoid; margin: 0 0 1rem; }
figure { --page: var(--card); } svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font-family: inherit !important; }
small { color: var(--muted); font-weight: 400; white-space: nowrap; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin-bottom: .7rem; }
.legend b { color: var(--text); font-weight: 500; overflow-wrap: anywhere; }
.line, .dot, .dash { display: inline-block; width: 1.3rem; height: 0; margin-right: .4rem; vertical-align: middle;
  border-top: 3px solid currentColor; }
.dash { border-top: 2px dashed; } .dot { width: .55rem; height: .55rem; border: 0; border-radius: 50%;
  background: currentColor; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top; font-weight: 400; }
tr + tr > *, tbody + tbody > tr:first-child > * { border-top: 1px solid var(--grid); }
thead th { color: var(--muted); font-size: .85rem; } tbody th { overflow-wrap: anywhere; }
.number { text-align: right; white-space: nowrap; }
.settings td { overflow-wrap: anywhere; min-width: 5rem; } .settings th { min-width: 8rem; }
.examples { width: 100%; font-size: .87rem; }
td small { display: block; white-space: normal; }
.group th { font-weight: 600; padding-top: .7rem; } .sections table { width: 100%; font-size: .87rem; }
.sections th { color: var(--muted); } .sections td { text-align: right; padding-right: 0; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .3rem 0 1rem; font-size: .87rem; }
summary { cursor: pointer; margin: 1.4rem 0 .6rem; font-weight: 600; }
"""


def page(title: str, body: str) -> str:
    """A whole page. `title` is text, `body` is HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{html.escape(title)} – bert_jax</title><style>{_STYLE}</style></head>\n'
        f'<body>{body}\n</body></html>\n'
    )


def line_of(i: int) -> dict[str, str]:
    """Colour and dashes of the i-th series, as Matplotlib's `plot` takes them."""
    return {'color': f'#0a0b{i % _NUM_COLOURS:02x}', 'linestyle': _DASHES[i // _NUM_COLOURS % len(_DASHES)][0]}


def swatch(i: int) -> str:
    """A piece of the i-th series' line, to stand before its name."""
    dashes = _DASHES[i // _NUM_COLOURS % len(_DASHES)][1]
    return f'<span class="line" style="color: var(--series-{i % _NUM_COLOURS}); border-top-style: {dashes}"></span>'


def draw(key: str, title: str, fill: Callable[[Any], None]) -> str:
    """A chart as an `<svg>` element.

    Args:
      key: unique in its page, letters and digits.
      title: read out by screen readers.
      fill: draws into Matplotlib axes.
    """
    import matplotlib
    from matplotlib.figure import Figure

    style = {'svg.fonttype': 'none', 'svg.hashsalt': key, 'font.size': 9, 'path.simplify_threshold': 0.3}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(5, 2.9), layout='constrained')
        axes = figure.add_subplot()
        figure.patch.set_alpha(0)
        axes.patch.set_alpha(0)
        fill(axes)
        axes.grid(color=GRID, linewidth=0.8)
        axes.tick_params(which='both', length=0, labelcolor=MUTED)
        axes.spines[:].set_visible(False)
        drawing = io.StringIO()
        figure.savefig(drawing, format='svg', metadata={'Date': None, 'Creator': None, 'Format': None, 'Type': None})
    return _inline(drawing.getvalue(), key, title)


def _inline(svg: str, key: str, title: str) -> str:
    """Makes a drawing part of a page: no fixed size, ids of its own, colours from the page."""
    svg = svg[svg.index('<svg') :]
    view_box = re.search(r'viewBox="[^"]*"', svg).group()
    svg = re.sub(r'<svg[^>]*>', f'<svg {view_box} role="img" aria-label="{html.escape(title)}">', svg, count=1)
    svg = svg.replace('xlink:href', 'href')
    svg = re.sub(r'( id="|href="#|url\(#)', rf'\g<1>{key}-', svg)
    for stand_in, variable in _STAND_INS.items():
        svg = svg.replace(stand_in, variable)
    return svg
