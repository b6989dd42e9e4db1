"""Reads the pairs and passages among which hard negatives are mined.

`N` pairs, `A` distinct anchors.
"""

import contextlib
import dataclasses
import functools
import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bert_jax.activity import progress
from bert_jax.config.finetuning import Task
from bert_jax.data.labelled import Record, read_records, read_utf8_lines, split_source, table_source
from bert_jax.errors import BadInput
from bert_jax.evaluation.retrieval.dataset import passage_text
from bert_jax.evaluation.retrieval.texts import DistinctTexts


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs of an anchor and a positive, as indices of distinct texts.

    Attributes:
      source: the file of the pairs, or FORMAT:FILE.
      columns: names of the columns of the anchor and the positive.
      anchor_of: [N] int64, indices of `anchors`.
      positive_of: [N] int64, indices of `passages`.
      anchors: A texts.
      passages: the positives, and further passages.
      directory: a temporary directory, which holds the texts.
    """

    source: str
    columns: tuple[str, str]
    anchor_of: np.ndarray
    positive_of: np.ndarray
    anchors: DistinctTexts
    passages: DistinctTexts
    directory: Path

    def records(self) -> Iterator[Record]:
        """Yields the records of the file again, in order."""
        return _read_columns(self.source, self.columns)

    def positives(self, anchor: int) -> np.ndarray:
        """Returns the distinct positives of an anchor, those of all pairs with this anchor."""
        first, positives = self._by_anchor
        return positives[first[anchor] : first[anchor + 1]]

    @functools.cached_property
    def _by_anchor(self) -> tuple[np.ndarray, np.ndarray]:
        """(Start of each anchor in the second array [A + 1], distinct positives sorted by anchor)."""
        distinct = np.unique(np.stack([self.anchor_of, self.positive_of], axis=1), axis=0)
        return np.searchsorted(distinct[:, 0], np.arange(len(self.anchors) + 1)), distinct[:, 1]


@contextlib.contextmanager
def open_pairs(source: str, columns: tuple[str, str], passages: str) -> Iterator[Pairs]:
    """Reads and checks pairs, and perhaps a file of passages; copies distinct texts to a temporary directory (TMPDIR).

    Args:
      source: a file of pairs, or FORMAT:FILE.
      columns: names of the columns of the anchor and the positive.
      passages: file with further passages, with the columns `text` and perhaps `title`, or a text file with one passage
        per line; '' for none.

    Raises:
      BadInput: names the file and line of a missing or empty text; also if there are no pairs.
    """
    if passages and not Path(passages).is_file():
        raise BadInput(
            f'--passages={passages}', 'is not a file', 'a file with a column "text", or one passage per line'
        )
    with (
        tempfile.TemporaryDirectory(prefix='bert_jax-mine-') as name,
        contextlib.closing(DistinctTexts(Path(name) / 'anchors')) as anchors,
        contextlib.closing(DistinctTexts(Path(name) / 'passages')) as known,
    ):
        anchor_of, positive_of = _copy_pairs(source, columns, anchors, known)
        if passages:
            for text in _read_passages(passages):
                known.add(text)
        yield Pairs(source, columns, anchor_of, positive_of, anchors, known, Path(name))


def _copy_pairs(
    source: str, columns: tuple[str, str], anchors: DistinctTexts, passages: DistinctTexts
) -> tuple[np.ndarray, np.ndarray]:
    """Adds the texts of all pairs; returns their indices, [N] and [N]."""
    anchor_of, positive_of = array('q'), array('q')
    with progress(lambda: f'reading {source}, {len(anchor_of):,} pairs', unit=' pairs', leave=False, delay=1.0) as bar:
        for record in _read_columns(source, columns):
            anchor_of.append(anchors.add(record.fields[columns[0]]))
            positive_of.append(passages.add(record.fields[columns[1]]))
            bar.update()
    if not anchor_of:
        raise BadInput(source, 'has no pairs', 'at least one line')
    return np.array(anchor_of), np.array(positive_of)


def _read_columns(source: str, columns: tuple[str, str]) -> Iterator[Record]:
    """Yields the records of a file of pairs; both texts have characters other than blanks.

    Raises:
      BadInput: names the file and line of a missing or empty text.
    """
    try:
        for record in read_records(table_source(source), Task(), columns):
            for column in columns:
                text = record.fields.get(column)
                if not isinstance(text, str) or not text.strip():
                    raise BadInput(record.where, f'has no text in the column {column!r}', 'two texts per line')
            yield record
    except BadInput as error:  # its fix names the fields of a fine-tune
        raise BadInput(*error.args[:3], '--anchor=NAME and --positive=NAME name the columns') from None


def _read_passages(name: str) -> Iterator[str]:
    if not split_source(name)[0]:
        yield from filter(str.strip, read_utf8_lines(Path(name)))
        return
    for where, fields in read_records(table_source(name), Task(), ()):
        if not isinstance(fields.get('text'), str) or not passage_text(fields):
            raise BadInput(where, 'has no text', 'a passage in the column "text", perhaps with a "title"')
        yield passage_text(fields)
