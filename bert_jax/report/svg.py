"""Draws charts as SVG with Matplotlib; one drawing serves both the light and the dark colour scheme of a page.

Matplotlib draws with placeholder colours, which are replaced by CSS variables defined in `templates/style.css`.
"""

import dataclasses
import io
import re
from collections.abc import Callable
from typing import Any

from markupsafe import Markup

_NUM_COLOURS = 8  # --series-0 to --series-7
_DASHES = (('-', 'solid'), ('-.', 'dashed'), (':', 'dotted'))  # names in Matplotlib and in CSS
MUTED = '#0a0c00'
GRID = '#0a0c01'
PAGE = '#0a0c02'
_VARIABLES = {f'#0a0b{i:02x}': f'var(--series-{i})' for i in range(_NUM_COLOURS)}
_VARIABLES |= {MUTED: 'var(--muted)', GRID: 'var(--grid)', PAGE: 'var(--page)'}


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A chart, as the attributes and the content of an `<svg>` element.

    Attributes:
      title: the title for screen readers.
      view_box: the `viewBox` attribute.
      content: markup by Matplotlib, which escapes the text in it.
    """

    title: str
    view_box: str
    content: Markup


def plot_style(series: int) -> dict[str, str]:
    """Returns colour and dashes of a series as keyword arguments of Matplotlib's `plot`."""
    dashes = _DASHES[series // _NUM_COLOURS % len(_DASHES)][0]
    return {'color': f'#0a0b{series % _NUM_COLOURS:02x}', 'linestyle': dashes}


def line_style(series: int) -> str:
    """Returns colour and dashes of a series as CSS for an element with a top border."""
    dashes = _DASHES[series // _NUM_COLOURS % len(_DASHES)][1]
    return f'color: var(--series-{series % _NUM_COLOURS}); border-top-style: {dashes}'


def draw(key: str, title: str, plot: Callable[[Any], None]) -> Drawing:
    """Draws a chart.

    Args:
      key: a prefix for the ids in the drawing; letters and digits, unique within the page.
      title: the title for screen readers.
      plot: a function that draws into Matplotlib axes.
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
        plot(axes)
        axes.grid(color=GRID, linewidth=0.8)
        axes.tick_params(which='both', length=0, labelcolor=MUTED)
        axes.spines[:].set_visible(False)
        drawing = io.StringIO()
        figure.savefig(drawing, format='svg', metadata={'Date': None, 'Creator': None, 'Format': None, 'Type': None})
    return _adapt(drawing.getvalue(), key, title)


def _adapt(svg: str, key: str, title: str) -> Drawing:
    """Adapts an SVG file to a page: removes its fixed size, prefixes ids with `key`, and uses the page's colours."""
    element = re.search(r'<svg[^>]*viewBox="([^"]*)"[^>]*>', svg)
    if element is None:
        raise ValueError('Matplotlib wrote an image without an <svg viewBox=…> element')
    content = svg[element.end() : svg.rindex('</svg>')]
    content = content.replace('xlink:href', 'href')
    content = re.sub(r'( id="|href="#|url\(#)', lambda match: f'{match[0]}{key}-', content)
    for placeholder, variable in _VARIABLES.items():
        content = content.replace(placeholder, variable)
    return Drawing(title, element.group(1), Markup(content))
