"""Distinct texts in a file, for collections that do not fit into memory."""

import hashlib
from array import array
from collections.abc import Iterator
from pathlib import Path

_DIGEST_BYTES = 16


class DistinctTexts:
    """Distinct texts in the order in which they were first added, without blanks around them.

    The texts are in a file; memory holds a digest and a position of each.
    """

    def __init__(self, path: Path) -> None:
        """Creates the file."""
        self._file = path.open('w+b')
        self._ends = array('q', [0])
        self._index_of: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._index_of)

    def add(self, text: str) -> int:
        """Adds a text, unless an equal one was added before; returns its index."""
        data = text.strip().encode()
        digest = hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()
        index = self._index_of.setdefault(digest, len(self._index_of))
        if index + 1 == len(self._ends):
            self._file.seek(self._ends[-1])
            self._file.write(data)
            self._ends.append(self._ends[-1] + len(data))
        return index

    def find(self, text: str) -> int:
        """Returns the index of a text, or -1 if it was not added."""
        digest = hashlib.blake2b(text.strip().encode(), digest_size=_DIGEST_BYTES).digest()
        return self._index_of.get(digest, -1)

    def __getitem__(self, index: int) -> str:
        self._file.seek(self._ends[index])
        return self._file.read(self._ends[index + 1] - self._ends[index]).decode()

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
