"""Preparing one corpus: its chunks, what is done with each, and the directory where finished ones wait for the merge.

    .CORPUS.partial/IDENTITY/    next to the corpus; see `partial.py`
        job.json                 what is prepared: settings, sources, chunks
        texts/00012.jsonl        the part of a chunk that belongs to the tokenizer's sample, a document a line
        texts/00012.json         what was found while it was read; with it the sample is finished
        tokenizer/
        chunks/00012/            an encoded chunk, see `encode.py`

Every file and directory appears whole, so that any number of processes on any number of hosts may work on it and be
killed.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from bert_jax.files import discard, json_digest, new_file, write_whole
from bert_jax.json_files import DamagedJson, read_json
from bert_jax.text.chunks import Chunk, Source
from bert_jax.text.documents import Document, ReadOptions, read_chunk
from bert_jax.text.encode import Encoder, read_chunk_record, write_chunk
from bert_jax.text.stats import Stats
from bert_jax.text.tokenizer import load_saved_tokenizer

_VERSION = 4  # of what chunks hold


@dataclasses.dataclass(frozen=True)
class PrepareJob:
    """Sources cut into chunks, and the directory for what is made of them."""

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
        """Of the tokenizer that is in its directory."""
        return Encoder(load_saved_tokenizer(self.tokenizer_directory))

    def chunk_directory(self, number: int) -> pathlib.Path:
        return self.directory / 'chunks' / f'{number:05d}'

    def is_encoded(self, number: int) -> bool:
        """Whether a chunk is finished. One without its record or with a file of another size is removed."""
        directory = self.chunk_directory(number)
        if read_chunk_record(directory) is not None:
            return True
        if directory.is_dir():
            discard(directory)
        return False

    def chunk_stats(self, number: int) -> Stats:
        """What was found while a finished chunk was read."""
        record = read_chunk_record(self.chunk_directory(number))
        if record is None:
            raise FileNotFoundError(2, 'removed meanwhile', str(self.chunk_directory(number)))
        return Stats.from_json(record)

    # --- What the processes do. ---

    def sample(self, number: int, num_bytes: int) -> tuple[int, int]:
        """Writes the first `num_bytes` of text of a chunk to `texts`; returns how many documents and characters."""
        path = self._text_path(number)
        record = read_json_or_none(path)
        if record is None:
            path.parent.mkdir(exist_ok=True)
            with new_file(path.with_suffix('.jsonl'), temporary_in=self.directory) as temporary:
                record = self._write_sample(temporary, number, num_bytes)
            write_whole(path, json.dumps(record), temporary_in=self.directory)
        return record['num_documents'], record['characters']

    def _write_sample(self, path: pathlib.Path, number: int, num_bytes: int) -> dict[str, Any]:
        stats, num_documents, size, is_whole = Stats(), 0, 0, True
        with (
            path.open('w', encoding='utf-8') as file,
            contextlib.closing(read_chunk(self.chunks[number], self.options, stats)) as documents,
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
        """The sentences of the texts that were sampled, in the order of the source.

        Raises:
          BadInput: when there are records and all are bad.
        """
        stats = self.sample_stats()
        if stats.bad and stats.counts['bad_record_skipped'] == stats.records:
            raise stats.bad_records_error('no record is good')
        for number in range(len(self.chunks)):
            if read_json_or_none(self._text_path(number)) is not None:
                for document in self._sampled_documents(number):
                    yield from document.sentences

    def sample_stats(self) -> Stats:
        """What was found while the sample was read."""
        stats = Stats()
        for number in range(len(self.chunks)):
            if (record := read_json_or_none(self._text_path(number))) is not None:
                stats.add(Stats.from_json(record))
        return stats

    def encode(self, number: int) -> tuple[int, int]:
        """Encodes a chunk; returns its numbers of documents and characters."""
        directory = self.chunk_directory(number)
        if not self.is_encoded(number):
            record, stats = read_json_or_none(self._text_path(number)), Stats()
            if record is not None and record['is_whole']:  # reading it took time: it is not read twice
                stats = Stats.from_json(record)
                documents = self._sampled_documents(number)
            else:
                documents = read_chunk(self.chunks[number], self.options, stats)
            write_chunk(documents, stats, self.encoder, directory, hash_lines=self.options.deduplicate_lines)
        record = read_chunk_record(directory)
        assert record is not None  # it has just been written
        return record['num_documents'], record['characters']

    def _sampled_documents(self, number: int) -> Iterator[Document]:
        with self._text_path(number).with_suffix('.jsonl').open(encoding='utf-8') as file:
            for line in file:
                text, group = json.loads(line)
                yield Document(text, group, not self.options.split_sentences)

    def _text_path(self, number: int) -> pathlib.Path:
        return self.directory / 'texts' / f'{number:05d}.json'


def _beginning(text: str, excess: int) -> tuple[str, bool]:
    """The lines of a text without those that lie in its last `excess` bytes, and whether that is all of them."""
    end = len(text)
    while excess > 0:
        start = text.rfind('\n', 0, end) + 1
        excess -= len(text[start:end].encode())
        if excess < 0 or start == 0:
            break
        end = start - 1
    return text[:end], end == len(text)


def identity_of_job(sources: list[Source], settings: dict[str, Any]) -> dict[str, Any]:
    """What chunks depend on, as JSON gives it back."""
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
    """The object in a JSON file; None where there is none, or a damaged one."""
    try:
        return read_json(path)
    except (FileNotFoundError, DamagedJson):
        return None
