"""Renders HTML pages from jinja2 templates, and defines the values that every page may contain.

A page is a dataclass of plain values, and its template lays them out. Templates escape every value. Python makes only
two kinds of markup: the content of a drawing (`report/svg.py`), and the positions where a long name may break.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, Literal

import jinja2
from markupsafe import Markup

from bert_jax.report.svg import Drawing, line_style

SHARED_PACKAGE = 'bert_jax.report'  # has the templates that all pages share: base.html, macros.html, style.css

ColumnKind = Literal['label', 'number', 'text']


@dataclasses.dataclass(frozen=True)
class Text:
    """Text with decoration.

    Attributes:
      text: the text itself.
      note: smaller, muted text after it.
      series: index of the series whose line appears before the text, or None.
    """

    text: str
    note: str = ''
    series: int | None = None


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
      heading: '' for no heading.
      kind: `label` for the name of a row, `number` for values aligned right.
    """

    heading: str | Text
    kind: ColumnKind


@dataclasses.dataclass(frozen=True)
class Group:
    """Rows of a table with one cell per column, and an optional heading across all columns."""

    rows: Sequence[Sequence[str | Text]]
    heading: str | Text = ''


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
      columns: if none of them has a heading, the table has no header.
      groups: groups of rows, separated by lines and optional headings.
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
    """A drawing with its caption; `series` names its lines if the drawing has its own legend."""

    caption: Text
    drawing: Drawing
    series: list[str] = dataclasses.field(default_factory=list)


def render(template: str, page: Any, package: str = SHARED_PACKAGE) -> str:
    """Renders a page as HTML.

    Args:
      template: file name in `templates/` of `package`; it may include the shared templates.
      page: a dataclass, `page` in the template. Using an attribute that it does not have is an error.
      package: name of the package with the template.
    """
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in dict.fromkeys((package, SHARED_PACKAGE))]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {'breakable': _breakable, 'line_style': line_style}
    text = environment.get_template(template).render(page=page)
    return text.encode('utf-8', 'backslashreplace').decode()  # JSON may contain lone surrogates, which UTF-8 cannot


def _breakable(name: str) -> Markup:
    """Escapes a name and lets it break after the characters that join its parts, but not within a number."""
    return Markup('<wbr>').join(re.split(r'(?<=[_,=/])(?=.)|(?<=\.)(?=[a-zA-Z])', name))
