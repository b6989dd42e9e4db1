"""The preparation of one corpus: its chunks, the steps for each, and the directory that holds finished ones.

    .CORPUS.partial/IDENTITY/    next to the corpus; see `partial.py`
        job.json                 identity of the job: settings, sources, chunks
        lines/, boilerplate.npy  only to drop boilerplate lines, see `cleaning/boilerplate.py`
        texts/00012.jsonl        the part of a chunk that belongs to the tokenizer's sample, one document per line
        texts/00012.json         stats of that part; its presence marks the part as finished
        tokenizer/
        chunks/00012/            an encoded chunk, see `encode.py`
        links/documents-*.bin    pairs of near copies, see `near_duplicates`; lines-*.bin likewise

Every file and directory appears atomically, so any number of processes on any number of hosts can work on a job and be
killed at any time.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import pathlib
from collections.abc import Callable, Generator, Iterator
from typing import Any

from bert_jax.errors import BadInput
from bert_jax.files import discard, json_digest, new_file, write_whole
from bert_jax.json_files import DamagedJson, read_json
from bert_jax.text.chunks import Chunk, Source
from bert_jax.text.cleaning.boilerplate import FILE_NAME, find_boilerplate, write_pairs
from bert_jax.text.cleaning.cleaner import read_cleaned
from bert_jax.text.documents import Document, read_chunk
from bert_jax.text.encode import DOCUMENT, LINE, Encoder, read_chunk_record, write_chunk
from bert_jax.text.near_duplicates.comparison import links_of_bucket
from bert_jax.text.near_duplicates.files import StoredSketches
from bert_jax.text.near_duplicates.settings import NearDuplicates
from bert_jax.text.reasons import describe_dropped
from bert_jax.text.sources.options import ReadOptions
from bert_jax.text.stats import Stats
from bert_jax.text.tokenizer import load_saved_tokenizer

_VERSION = 5  # of the format of encoded chunks
_RECORD_BYTES = {'documents': DOCUMENT.itemsize, 'lines': LINE.itemsize}


@dataclasses.dataclass(frozen=True)
class PrepareJob:
    """Sources divided into chunks, and the directory for finished work."""

    directory: pathlib.Path
    options: ReadOptions
    sources: tuple[Source, ...]

    @functools.cached_property
    def chunks(self) -> tuple[Chunk, ...]:
        return tuple(itertools.chain.from_iterable(source.chunks for source in self.sources))

    @functools.cached_property
    def tokenizer_directory(self) -> pathlib.Path:
        return self.directory / 'tokenizer'

    @functools.cached_property
    def encoder(self) -> Encoder:
        """The encoder of the tokenizer in `tokenizer_directory`."""
        return Encoder(load_saved_tokenizer(self.tokenizer_directory))

    @functools.cached_property
    def near_duplicates(self) -> NearDuplicates | None:
        """The search for near copies; None if they stay."""
        if not self.options.near_duplicates:
            return None
        return NearDuplicates(self.options.near_duplicates, self.options.near_duplicate_unit)

    @property
    def links_directory(self) -> pathlib.Path:
        return self.directory / 'links'

    def links(self) -> dict[str, list[pathlib.Path]]:
        """Returns {table: files of the links between its records}, for each table that was searched for near copies."""
        tables = () if self.near_duplicates is None else self.near_duplicates.tables
        return {table: sorted(self.links_directory.glob(f'{table}-*.bin')) for table in tables}

    def sketches(self, table: str) -> StoredSketches:
        """Returns the sketches of all chunks, which must be finished."""
        chunks = [self.chunk_directory(index) for index in range(len(self.chunks))]
        return StoredSketches(chunks, table, _RECORD_BYTES[table])

    def chunk_directory(self, chunk_index: int) -> pathlib.Path:
        return self.directory / 'chunks' / f'{chunk_index:05d}'

    def is_encoded(self, chunk_index: int) -> bool:
        """Whether a chunk is finished; removes a chunk without its record, or with a file of another size."""
        directory = self.chunk_directory(chunk_index)
        if read_chunk_record(directory) is not None:
            return True
        if directory.is_dir():
            discard(directory)
        return False

    def chunk_stats(self, chunk_index: int) -> Stats:
        """Returns the stats of a finished chunk."""
        record = read_chunk_record(self.chunk_directory(chunk_index))
        if record is None:
            raise FileNotFoundError(2, 'removed meanwhile', str(self.chunk_directory(chunk_index)))
        return Stats.from_json(record)

    def find_boilerplate(self, run: Callable[[str, list[tuple], str], None], shard: tuple[int, int] | None) -> None:
        """Finds the lines that recur across documents, if they are to be dropped.

        Each shard begins with other chunks, and skips those that another one has read.

        Args:
          run: the method of a pool.
        """
        if not self.options.boilerplate_documents or self.boilerplate.exists():
            return
        chunks, (index, count) = range(len(self.chunks)), shard or (0, 1)
        first = len(chunks) * index // count
        run('count_lines', [(chunk,) for chunk in (*chunks[first:], *chunks[:first])], 'lines')
        directories = [self._lines_directory(chunk) for chunk in chunks]
        find_boilerplate(directories, self.options.boilerplate_documents, self.boilerplate, self.directory)

    @property
    def boilerplate(self) -> pathlib.Path:
        """The file with the lines to drop."""
        return self.directory / FILE_NAME

    # --- Steps that worker processes run. ---

    def count_lines(self, chunk_index: int) -> tuple[int, int]:
        """Reads the lines of a chunk for `find_boilerplate`; returns (documents, characters)."""
        directory, stats = self._lines_directory(chunk_index), Stats()
        if directory.is_dir():
            return 0, 0
        directory.parent.mkdir(exist_ok=True)
        documents = read_chunk(self.chunks[chunk_index], self.options, stats)
        num_documents = write_pairs(documents, directory, self.options.boilerplate_documents)
        return num_documents, stats.characters

    def _lines_directory(self, chunk_index: int) -> pathlib.Path:
        return self.directory / 'lines' / f'{chunk_index:05d}'

    def sample(self, chunk_index: int, num_bytes: int) -> tuple[int, int]:
        """Writes the first `num_bytes` of text of a chunk to `texts`; returns (documents, characters)."""
        path = self._text_path(chunk_index)
        record = read_json_or_none(path)
        if record is None:
            path.parent.mkdir(exist_ok=True)
            with new_file(path.with_suffix('.jsonl'), temporary_in=self.directory) as temporary:
                record = self._write_sample(temporary, chunk_index, num_bytes)
            write_whole(path, json.dumps(record), temporary_in=self.directory)
        return record['num_documents'], record['characters']

    def _write_sample(self, path: pathlib.Path, chunk_index: int, num_bytes: int) -> dict[str, Any]:
        stats, num_documents, size, is_whole = Stats(), 0, 0, True
        with (
            path.open('w', encoding='utf-8') as file,
            contextlib.closing(self._read(chunk_index, stats)) as documents,
        ):
            for document in documents:
                if size >= num_bytes:
                    is_whole = False
                    break
                text, size = document.text, size + len(document.text.encode()) - document.text.count('\n')
                if size > num_bytes:
                    text, is_whole = _beginning(text, size - num_bytes)
                file.write(json.dumps([text, document.group]) + '\n')
                num_documents += 1
        return stats.as_json() | {'num_documents': num_documents, 'is_whole': is_whole}

    def read_sample(self) -> Iterator[str]:
        """Yields the sentences of the sample, in the order of the source.

        Raises:
          BadInput: if there are records and all are bad, or if nothing is left after cleaning.
        """
        stats, is_empty = self.sample_stats(), True
        if stats.bad and stats.counts['bad_record_skipped'] == stats.records:
            raise stats.bad_records_error('no record can be used')
        for chunk_index in range(len(self.chunks)):
            if read_json_or_none(self._text_path(chunk_index)) is not None:
                for document in self._sampled_documents(chunk_index):
                    is_empty = False
                    yield from document.sentences
        if is_empty and stats.dropped_characters:
            raise BadInput(
                'config.data.source',
                f'holds no text after cleaning (left out: {describe_dropped(stats.counts)})',
                'documents that pass the rules',
                'bert-jax prepare --show_dropped=3 with fewer rules shows what they drop',
            )

    def sample_stats(self) -> Stats:
        """Returns the stats of the sample."""
        stats = Stats()
        for chunk_index in range(len(self.chunks)):
            if (record := read_json_or_none(self._text_path(chunk_index))) is not None:
                stats.add(Stats.from_json(record))
        return stats

    def encode(self, chunk_index: int) -> tuple[int, int]:
        """Encodes a chunk; returns (documents, characters)."""
        directory = self.chunk_directory(chunk_index)
        if not self.is_encoded(chunk_index):
            record, stats = read_json_or_none(self._text_path(chunk_index)), Stats()
            if record is not None and record['is_whole']:  # the sample holds the whole chunk: do not read it again
                stats = Stats.from_json(record)
                documents = self._sampled_documents(chunk_index)
            else:
                documents = self._read(chunk_index, stats)
            write_chunk(
                documents,
                stats,
                self.encoder,
                directory,
                hash_lines=self.options.deduplicate_lines,
                near_duplicates=self.near_duplicates,
            )
        record = read_chunk_record(directory)
        assert record is not None  # written above
        return record['num_documents'], record['characters']

    def compare(self, table: str, band: int, part: int, num_parts: int) -> None:
        """Writes the links of a bucket of sketches to `links`."""
        path = self.links_directory / f'{table}-{band:03d}-{part:05d}-of-{num_parts:05d}.bin'
        if not path.is_file():
            assert self.near_duplicates is not None  # otherwise there are no buckets
            path.parent.mkdir(exist_ok=True)
            links = links_of_bucket(self.sketches(table), self.near_duplicates, band, part, num_parts)
            with new_file(path, temporary_in=self.directory) as temporary:
                links.tofile(temporary)

    def _read(self, chunk_index: int, stats: Stats) -> Generator[Document, None, None]:
        return read_cleaned(self.chunks[chunk_index], self.options, stats, self.directory)

    def _sampled_documents(self, chunk_index: int) -> Iterator[Document]:
        with self._text_path(chunk_index).with_suffix('.jsonl').open(encoding='utf-8') as file:
            for line in file:
                text, group = json.loads(line)
                yield Document(text, group, not self.options.split_sentences)

    def _text_path(self, chunk_index: int) -> pathlib.Path:
        return self.directory / 'texts' / f'{chunk_index:05d}.json'


def _beginning(text: str, excess: int) -> tuple[str, bool]:
    """Drops the lines in the last `excess` bytes of a text; returns (the other lines, whether those are all lines)."""
    end = len(text)
    while excess > 0:
        start = text.rfind('\n', 0, end) + 1
        excess -= len(text[start:end].encode())
        if excess < 0 or start == 0:
            break
        end = start - 1
    return text[:end], end == len(text)


def identity_of_job(sources: list[Source], settings: dict[str, Any]) -> dict[str, Any]:
    """Returns everything that encoded chunks depend on, as JSON values."""
    chunks = itertools.chain.from_iterable(source.chunks for source in sources)
    identity = {
        'version': _VERSION,
        'settings': settings,
        'files': {source.name: source.files for source in sources},
        'chunks': json_digest([_chunk_as_json(chunk) for chunk in chunks]),
    }
    return json.loads(json.dumps(identity))


def _chunk_as_json(chunk: Chunk) -> dict[str, Any]:
    """A chunk as it is hashed in `job.json`; the keys never change, so that interrupted jobs stay valid."""
    ranges = [dataclasses.asdict(file_range) for file_range in chunk.ranges]
    return {'kind': chunk.kind, 'source': chunk.source_index, 'parts': ranges, 'num_bytes': chunk.num_bytes}


def read_json_or_none(path: pathlib.Path) -> dict[str, Any] | None:
    """Returns the object in a JSON file, or None if the file is missing or damaged."""
    try:
        return read_json(path)
    except (FileNotFoundError, DamagedJson):
        return None
