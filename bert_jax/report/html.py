"""HTML pages from jinja2 templates: the values that every page can hold, and the environment that renders them.

A page is a dataclass of plain values; its template says where they go. Templates escape every value. The only markup
made in Python is the inside of a drawing (`report/svg.py`) and the places where a long name may break.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, Literal

import jinja2
from markupsafe import Markup

from bert_jax.report.svg import Drawing, line_style

SHARED = 'bert_jax.report'  # the package with the templates that pages share: base.html, macros.html, style.css

ColumnKind = Literal['label', 'number', 'text']


@dataclasses.dataclass(frozen=True)
class Text:
    """Text with decoration.

    Attributes:
      text: the text itself.
      note: shown smaller and muted, after it.
      series: shows the line of the series with this index before it; None shows none.
    """

    text: str
    note: str = ''
    series: int | None = None


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
      heading: '' for none.
      kind: a `label` says what its row is about, a `number` is aligned right.
    """

    heading: str | Text
    kind: ColumnKind


@dataclasses.dataclass(frozen=True)
class Group:
    """Rows of a table, with one cell for each column, and a heading across all columns, if any."""

    rows: Sequence[Sequence[str | Text]]
    heading: str | Text = ''


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
      columns: without any heading among them, the table has no header.
      groups: rows, divided by lines and optional headings.
      style: CSS classes, separated by spaces.
    """

    columns: list[Column]
    groups: list[Group]
    style: str = ''

    @property
    def has_header(self) -> bool:
        return any(column.heading for column in self.columns)


@dataclasses.dataclass(frozen=True)
class Figure:
    """A drawing with its caption; `series` names its lines where the drawing has a legend to itself."""

    caption: Text
    drawing: Drawing
    series: list[str] = dataclasses.field(default_factory=list)


def render(template: str, page: Any, package: str = SHARED) -> str:
    """A page as HTML.

    Args:
      template: file name in `templates/` of `package`; it sees the shared templates too.
      page: a dataclass, which the template sees as `page`. A name that it does not have is an error.
      package: name of the package that holds the template.
    """
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in dict.fromkeys((package, SHARED))]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {'breakable': _breakable, 'line_style': line_style}
    text = environment.get_template(template).render(page=page)
    return text.encode('utf-8', 'backslashreplace').decode()  # JSON may hold halves of characters, which no file can


def _breakable(name: str) -> Markup:
    """A name, escaped, that may break after the signs that join its parts, but not within a number."""
    return Markup('<wbr>').join(re.split(r'(?<=[_,=/])(?=.)|(?<=\.)(?=[a-zA-Z])', name))
