"""Counts what is dropped, replaced or invalid while text is read, and rejects sources with too much of it."""

import contextlib
import dataclasses
import math
import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from bert_jax.console import quantity
from bert_jax.errors import BadInput

_NUM_SHOWN = 3  # bad records, and files with invalid text, that are reported by name
_MAX_NAMED = 20  # files whose encoding was detected
_MIN_HOPELESS_RECORDS = 100  # with that many bad records, and more than half of all, reading stops
_MIN_HOPELESS_BYTES = 10_000  # with that many invalid bytes, and more than a fifth of a file range, reading stops
_MIN_INVALID_BYTES = 50  # fewer never reject a single file among many
_MAX_FILES = 1000  # remembered, those with most invalid bytes
_ALLOW_MORE = (
    ', --config.data.encoding=auto (or its name) to read it as it is, '
    'or --config.data.bad_text=FRACTION to replace the invalid bytes'
)


@dataclasses.dataclass
class Stats:
    """Counts collected while reading.

    Attributes:
      counts: {reason: count} of what was dropped or replaced: `empty_document`, `empty_file`, `invalid_utf8_replaced`
        (lines or records) and the `invalid_bytes` in them, `nul_bytes_removed`, `long_line_split` and
        `long_document_cut` (number of cuts), `bad_record_skipped`, `other_content_type` (WARC records that are not
        HTML), `unparsable_module`, and what `text/cleaning` drops.
      records: all records, of sources that have records.
      bad: the first bad records, [file and line, found, expected].
      characters: of all documents, before they are cleaned.
      invalid: {path: [invalid bytes, characters]} of files with bytes that are not UTF-8.
      dropped_characters: {reason: characters} of what cleaning dropped or replaced.
      languages: {code: documents} before other languages are dropped, if languages are identified.
      encodings: {path: encoding} of files whose encoding was detected and is not UTF-8.
    """

    counts: Counter = dataclasses.field(default_factory=Counter)
    records: int = 0
    bad: list[list[str]] = dataclasses.field(default_factory=list)
    characters: int = 0
    invalid: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    dropped_characters: Counter = dataclasses.field(default_factory=Counter)
    languages: Counter = dataclasses.field(default_factory=Counter)
    encodings: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> 'Stats':
        """Restores stats from the values of `as_json`; `record` may hold other keys too."""
        values = [record[name] for name in ('records', 'bad', 'characters', 'invalid')]
        counters = [Counter(record[name]) for name in ('dropped_characters', 'languages')]
        return cls(Counter(record['counts']), *values, *counters, record['encodings'])

    def as_json(self) -> dict[str, Any]:
        """Returns the attributes as JSON values."""
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}

    def add(self, other: 'Stats') -> None:
        """Adds the stats of text that comes later in the source."""
        self.counts += other.counts
        self.records += other.records
        self.bad = (self.bad + other.bad)[:_NUM_SHOWN]
        self.characters += other.characters
        self.dropped_characters += other.dropped_characters
        self.languages += other.languages
        for path, values in other.invalid.items():
            known = self.invalid.get(path, [0, 0])
            self.invalid[path] = [known[0] + values[0], known[1] + values[1]]
        if len(self.invalid) > 2 * _MAX_FILES:
            self.invalid = dict(self.worst_files(_MAX_FILES))
        for path, encoding in other.encodings.items():
            self.add_encoding(path, encoding)

    # --- Records. ---

    def skip_record(self, where: Callable[[], str], found: str, expected: str) -> None:
        """Counts a bad record.

        Raises:
          BadInput: if more than half of the records are bad.
        """
        self.counts['bad_record_skipped'] += 1
        if len(self.bad) < _NUM_SHOWN:
            self.bad.append([where(), found, expected])
        if self.counts['bad_record_skipped'] >= max(_MIN_HOPELESS_RECORDS, self.records / 2):
            raise self.bad_records_error('more than half of the records read so far are bad')

    def bad_records_error(self, why: str, fix: str = '') -> BadInput:
        """Returns the error for too many bad records; it names the first one."""
        where, found, expected = self.bad[0]
        return BadInput(where, f'{found}; {why}', expected, fix)

    def check_bad_records(self, allowed: float) -> None:
        """Raises `BadInput` if more than the fraction `allowed` of the records is bad."""
        num_bad = self.counts['bad_record_skipped']
        if num_bad > allowed * self.records:
            needed = math.ceil(1e4 * num_bad / self.records) / 1e4
            fix = f'correct the file, or skip bad records with --config.data.bad_records={needed}'
            found = f'{num_bad:,} of {quantity(self.records, "record")} {"is" if num_bad == 1 else "are"} bad'
            raise self.bad_records_error(found, fix)

    # --- Invalid text. ---

    @contextlib.contextmanager
    def of_file(self, path: str) -> Iterator[Callable[[], None]]:
        """Attributes everything that is counted inside the block to a file.

        Yields:
          A function that raises `BadInput` if so little of the file is text that it must be something else.
        """
        invalid_before, characters_before = self._num_invalid, self.characters

        def counts_of_file() -> tuple[int, int]:
            return self._num_invalid - invalid_before, self.characters - characters_before

        def check() -> None:
            invalid, characters = counts_of_file()
            if invalid > max(_MIN_HOPELESS_BYTES, characters / 5):
                raise not_utf8_error(path, invalid, characters, 'a text file in UTF-8', _ALLOW_MORE)

        try:
            yield check
        finally:
            invalid, characters = counts_of_file()
            if invalid:
                self.add(Stats(invalid={path: [invalid, characters]}))

    @property
    def _num_invalid(self) -> int:
        return self.counts['invalid_bytes'] + self.counts['nul_bytes_removed']

    def check_invalid_text(self, allowed: float, margin: float = 1) -> None:
        """Raises `BadInput` if more than the fraction `allowed` of all text, or of the text of one file, is not UTF-8.

        Args:
          margin: factor on `allowed`, for a sample.
        """
        expected = f'UTF-8, with at most {allowed:.2%} of invalid bytes (data.bad_text={allowed})'
        limit = allowed * margin
        too_much = self._num_invalid > limit * self.characters
        for path, (invalid, characters) in self.worst_files(len(self.invalid)):
            if too_much or (invalid >= _MIN_INVALID_BYTES and invalid > limit * characters):
                raise not_utf8_error(path, invalid, characters, expected, _ALLOW_MORE)

    def add_encoding(self, path: str, encoding: str) -> None:
        """Records the encoding that was detected in a file, for the first files that are not UTF-8."""
        if encoding != 'utf-8' and len(self.encodings) < _MAX_FILES:
            self.encodings[path] = encoding

    def describe_encodings(self) -> list[str]:
        """Returns one line for each of the first files with another encoding than UTF-8, and one for all others."""
        lines = [f'{path}: read as {encoding}' for path, encoding in list(self.encodings.items())[:_MAX_NAMED]]
        num_others = len(self.encodings) - len(lines)
        return lines + [f'… and {quantity(num_others, "more file")} in other encodings than UTF-8'] * (num_others > 0)

    def worst_files(self, count: int) -> list[tuple[str, list[int]]]:
        """Returns up to `count` of (path, [invalid bytes, characters]), most invalid bytes first."""
        return sorted(self.invalid.items(), key=lambda item: (-item[1][0], item[0]))[:count]

    def describe_invalid(self) -> list[str]:
        """Returns one line for each file with most invalid bytes, and one for all others."""
        lines = [f'{path}: replaced {_invalid_bytes(*values)}' for path, values in self.worst_files(_NUM_SHOWN)]
        num_others = len(self.invalid) - len(lines)
        more = f'… and bytes that are not UTF-8 in {quantity(num_others, "more file")}'
        return lines + [more] * (num_others > 0)


def _invalid_bytes(invalid: int, characters: int) -> str:
    verb, fraction = 'is' if invalid == 1 else 'are', min(1, invalid / max(1, characters))
    return f'{quantity(invalid, "byte")} that {verb} not UTF-8 text ({fraction:.2%} of the file)'


def not_utf8_error(path: str, invalid: int, characters: int, expected: str, more_fix: str = '') -> BadInput:
    """Returns the error for a file with too many bytes that are not UTF-8."""
    name = shlex.quote(path)
    fix = f'convert it, for example iconv -f WINDOWS-1252 -t UTF-8 {name} > {name}.utf8'
    return BadInput(path, f'holds {_invalid_bytes(invalid, characters)}', expected, fix + more_fix)
