"""What counts as a near copy, and the parameters of locality-sensitive hashing that follow from it."""

import dataclasses
import functools
from typing import NamedTuple

NUM_VALUES = 128  # of a sketch
WORDS_PER_SHINGLE = 5
_MIN_RECALL = 0.9  # of pairs that are just similar enough
_MAX_ROWS = 16


class Bands(NamedTuple):
    """Texts become candidates if all `num_rows` values of one of `num_bands` bands of their sketches are equal."""

    num_bands: int
    num_rows: int


@dataclasses.dataclass(frozen=True)
class NearDuplicates:
    """The search for near copies.

    Attributes:
      similarity: of the words of two texts (Jaccard similarity of multisets) from which they are near copies.
      unit: what is compared, 'document' or 'paragraph' (documents first, then paragraphs).
    """

    similarity: float
    unit: str = 'document'

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables of a chunk whose records are compared, in order; see `encode.py`."""
        return ('documents', 'lines') if self.unit == 'paragraph' else ('documents',)

    @functools.cached_property
    def bands(self) -> Bands:
        """The fewest and longest bands that find a pair which is just similar enough nine times out of ten.

        A text in which a share p of the words is replaced, here and there, has word similarity (1 - p) / (1 + p), and
        keeps a share (1 - p)^5 of its shingles. More similar pairs are found more often.
        """
        kept = (2 * self.similarity / (1 + self.similarity)) ** WORDS_PER_SHINGLE
        shingles = kept / (2 - kept)  # Jaccard similarity
        for num_rows in range(_MAX_ROWS, 1, -1):
            bands = Bands(NUM_VALUES // num_rows, num_rows)
            if recall(shingles, bands) >= _MIN_RECALL:
                return bands
        return Bands(NUM_VALUES, 1)


def recall(similarity: float, bands: Bands) -> float:
    """Returns the probability that two texts become candidates, given the Jaccard similarity of their shingles."""
    return 1 - (1 - similarity**bands.num_rows) ** bands.num_bands
