"""What was left out, replaced or found to be bad while text was read, and when it is too much."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from bert_jax.errors import BadInput

_SHOWN = 3  # bad records and files, by name
_HOPELESS = 100  # bad records, more than half of a chunk's: reading on is no use
_HOPELESS_BYTES = 10_000  # not UTF-8, more than a fifth of the text of a file's part: likewise
_NOT_BY_CHANCE = 50  # bytes; fewer may spoil a small file among many good ones
_MOST_FILES = 1000  # with invalid text that are remembered, those with most of it
_CONVERT = 'convert it (of Windows-1252: iconv -f WINDOWS-1252 -t UTF-8)'
_OR_MORE = _CONVERT + ', or --config.data.bad_text=SHARE'


@dataclasses.dataclass
class Stats:
    """What was found while reading.

    Attributes:
      counts: {reason: count} of what was left out or replaced: `empty_document`, `empty_file`, `invalid_utf8_replaced`
        (lines or records) and the `invalid_bytes` in them, `nul_bytes_removed`, `long_line_split` and
        `long_document_cut` (times cut), `bad_record_skipped`, `unparsable_module`.
      records: in all, of sources that have records.
      bad: the first bad records, [file and line, what is wrong, what is expected].
      characters: of the documents.
      invalid: {path: [invalid bytes, characters]} of the files that hold bytes that are not text in UTF-8.
    """

    counts: Counter = dataclasses.field(default_factory=Counter)
    records: int = 0
    bad: list[list[str]] = dataclasses.field(default_factory=list)
    characters: int = 0
    invalid: dict[str, list[int]] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> 'Stats':
        """The tally of which `as_json` was stored in a record, perhaps among other values."""
        values = [record[name] for name in ('records', 'bad', 'characters', 'invalid')]
        return cls(Counter(record['counts']), *values)

    def as_json(self) -> dict[str, Any]:
        """The attributes as JSON values."""
        return dataclasses.asdict(self) | {'counts': dict(self.counts)}

    def add(self, other: 'Stats') -> None:
        """Adds what was found elsewhere after this."""
        self.counts += other.counts
        self.records += other.records
        self.bad = (self.bad + other.bad)[:_SHOWN]
        self.characters += other.characters
        for path, values in other.invalid.items():
            known = self.invalid.get(path, [0, 0])
            self.invalid[path] = [known[0] + values[0], known[1] + values[1]]
        if len(self.invalid) > 2 * _MOST_FILES:
            self.invalid = dict(self.worst_files(_MOST_FILES))

    # --- Records. ---

    def skip(self, where: Callable[[], str], found: str, expected: str) -> None:
        """Counts a bad record.

        Raises:
          BadInput: when more than half of the records are bad.
        """
        self.counts['bad_record_skipped'] += 1
        if len(self.bad) < _SHOWN:
            self.bad.append([where(), found, expected])
        if self.counts['bad_record_skipped'] >= max(_HOPELESS, self.records / 2):
            raise self.bad_records_error('more than half of the records so far are bad')

    def bad_records_error(self, why: str, fix: str = '') -> BadInput:
        """The error for too many bad records; it names the first."""
        where, found, expected = self.bad[0]
        return BadInput(where, f'{found}; {why}', expected, fix)

    def check_records(self, allowed: float) -> None:
        """Raises `BadInput` when more than a share of `allowed` of the records is bad."""
        num_bad = self.counts['bad_record_skipped']
        if num_bad > allowed * self.records:
            fix = 'fix the file, or --config.data.bad_records=SHARE'
            raise self.bad_records_error(f'{num_bad:,} of {self.records:,} records are bad', fix)

    # --- Invalid text. ---

    @contextlib.contextmanager
    def file(self, path: str) -> Iterator[Callable[[], None]]:
        """What is found inside the block belongs to a file.

        Yields:
          A function that raises `BadInput` when so little of the file is text that reading on is no use.
        """
        invalid, characters = self._num_invalid, self.characters

        def found() -> tuple[int, int]:
            return self._num_invalid - invalid, self.characters - characters

        def check() -> None:
            if found()[0] > max(_HOPELESS_BYTES, found()[1] / 5):
                raise not_utf8_error(path, *found(), 'text in UTF-8', _OR_MORE)

        try:
            yield check
        finally:
            if found()[0]:
                self.add(Stats(invalid={path: [*found()]}))

    @property
    def _num_invalid(self) -> int:
        return self.counts['invalid_bytes'] + self.counts['nul_bytes_removed']

    def check_text(self, allowed: float, margin: float = 1) -> None:
        """Raises `BadInput` when more than a share of `allowed` of the text, or of one file's, is not UTF-8.

        Args:
          margin: factor on `allowed`, for a sample.
        """
        expected = f'UTF-8; data.bad_text={allowed} is the share of the text that may be replaced'
        limit = allowed * margin
        too_much = self._num_invalid > limit * self.characters
        for path, (invalid, characters) in self.worst_files(len(self.invalid)):
            if too_much or (invalid >= _NOT_BY_CHANCE and invalid > limit * characters):
                raise not_utf8_error(path, invalid, characters, expected, _OR_MORE)

    def worst_files(self, count: int) -> list[tuple[str, list[int]]]:
        """Up to `count` of (path, [invalid bytes, characters]), those with most invalid bytes first."""
        return sorted(self.invalid.items(), key=lambda item: (-item[1][0], item[0]))[:count]

    def describe_invalid(self) -> list[str]:
        """A line for each of the files with most invalid bytes, and one for the rest."""
        lines = [f'{path}: replaced {_share(*values)}' for path, values in self.worst_files(_SHOWN)]
        num_others = len(self.invalid) - len(lines)
        return lines + ([f'… and bytes that are not UTF-8 in {num_others:,} more files'] if num_others else [])


def _share(invalid: int, characters: int) -> str:
    return f'{invalid:,} bytes that are not UTF-8 ({min(1, invalid / max(1, characters)):.2%} of its text)'


def not_utf8_error(path: str, invalid: int, characters: int, expected: str, fix: str = _CONVERT) -> BadInput:
    """The error for a file with too many bytes that are not UTF-8."""
    return BadInput(path, f'holds {_share(invalid, characters)}', expected, fix)
