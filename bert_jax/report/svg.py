"""Charts drawn by Matplotlib as SVG for a page: one drawing serves the light and the dark colour scheme.

Matplotlib draws with stand-in colours. They become CSS variables, whose values `templates/style.css` defines.
"""

import dataclasses
import io
import re
from collections.abc import Callable
from typing import Any

from markupsafe import Markup

_NUM_COLOURS = 8  # --series-0 to --series-7
_DASHES = (('-', 'solid'), ('-.', 'dashed'), (':', 'dotted'))  # Matplotlib's name, CSS's
MUTED = '#0a0c00'
GRID = '#0a0c01'
PAGE = '#0a0c02'
_VARIABLES = {f'#0a0b{i:02x}': f'var(--series-{i})' for i in range(_NUM_COLOURS)}
_VARIABLES |= {MUTED: 'var(--muted)', GRID: 'var(--grid)', PAGE: 'var(--page)'}


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A chart: the attributes of an `<svg>` element and the markup inside it.

    Attributes:
      title: read out by screen readers.
      view_box: the `viewBox` attribute.
      content: from Matplotlib, which escapes the text it draws.
    """

    title: str
    view_box: str
    content: Markup


def line_of(i: int) -> dict[str, str]:
    """Colour and dashes of the i-th series, as keyword arguments of Matplotlib's `plot`."""
    return {'color': f'#0a0b{i % _NUM_COLOURS:02x}', 'linestyle': _DASHES[i // _NUM_COLOURS % len(_DASHES)][0]}


def line_style(i: int) -> str:
    """Colour and dashes of the i-th series, as CSS for an element with a top border."""
    dashes = _DASHES[i // _NUM_COLOURS % len(_DASHES)][1]
    return f'color: var(--series-{i % _NUM_COLOURS}); border-top-style: {dashes}'


def draw(key: str, title: str, fill: Callable[[Any], None]) -> Drawing:
    """A chart.

    Args:
      key: letters and digits, unique within its page; ids in the drawing start with it.
      title: read out by screen readers.
      fill: draws into Matplotlib axes.
    """
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        'svg.fonttype': 'none',
        'svg.hashsalt': key,
        'font.size': 9,
        'path.simplify_threshold': 0.3,
    }
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
    return _adapt(drawing.getvalue(), key, title)


def _adapt(svg: str, key: str, title: str) -> Drawing:
    """Makes a stand-alone drawing part of a page: no fixed size, ids that start with `key`, colours of the page."""
    start = re.search(r'<svg[^>]*viewBox="([^"]*)"[^>]*>', svg)
    if start is None:
        raise ValueError('Matplotlib wrote an image without an <svg viewBox=…>')
    content = svg[start.end() : svg.rindex('</svg>')]
    content = content.replace('xlink:href', 'href')
    content = re.sub(r'( id="|href="#|url\(#)', lambda start: f'{start[0]}{key}-', content)
    for stand_in, variable in _VARIABLES.items():
        content = content.replace(stand_in, variable)
    return Drawing(title, start.group(1), Markup(content))
