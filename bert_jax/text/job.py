"""Preparing one corpus: its chunks, what is done with each, and the directory where finished ones wait for the merge.

    PARTIAL/job.json          what is prepared: settings, sources, chunks
    PARTIAL/texts/00012.json  the part of a chunk that belongs to the tokenizer's sample
    PARTIAL/tokenizer/
    PARTIAL/chunks/00012/     an encoded chunk, see `encode.py`

Every file and directory appears whole, so that any number of processes on any number of hosts may work on it and be
killed.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from bert_jax.errors import BadInput
from bert_jax.files import discard, json_digest, read_json, remove_leftovers, write_whole
from bert_jax.text.chunks import Chunk, Source
from bert_jax.text.documents import Document, Reading, Tally, read_chunk
from bert_jax.text.encode import Encoder, read_record, write_chunk
from bert_jax.text.tokenizer import load_saved_tokenizer

_VERSION = 3  # of what chunks hold


@dataclasses.dataclass(frozen=True)
class Job:
    """Sources cut into chunks, and the directory for what is made of them."""

    directory: pathlib.Path
    reading: Reading
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
        if read_record(directory) is not None:
            return True
        if directory.is_dir():
            discard(directory)
        return False

    # --- What the processes do. ---

    def sample(self, number: int, num_bytes: int) -> tuple[int, int]:
        """Writes the first `num_bytes` of text of a chunk to `texts`; returns how many documents and characters."""
        path = self._text_path(number)
        text: dict[str, Any] | None = _read_json(path)
        if text is None:
            documents: list[Any] = []
            tally, size, is_whole = Tally(), 0, True
            for document in read_chunk(self.chunks[number], self.reading, tally):
                if size >= num_bytes:
                    is_whole = False
                    break
                lines = []
                for line in document.lines:
                    if size >= num_bytes:
                        is_whole = False
                        break
                    lines.append(line)
                    size += len(line.encode())
                documents.append([lines, document.group])
            text = {
                'documents': documents,
                'dropped': dict(tally.counts),
                'records': tally.records,
                'bad': tally.bad,
                'is_whole': is_whole,
            }
            path.parent.mkdir(exist_ok=True)
            write_whole(path, json.dumps(text), temporary_in=self.directory)
        return len(text['documents']), sum(len(line) for lines, _ in text['documents'] for line in lines)

    def read_sample(self) -> Iterator[str]:
        """The sentences of the texts that were sampled, in the order of the source.

        Raises:
          BadInput: when there are records and all are bad.
        """
        tally = Tally()
        for number in range(len(self.chunks)):
            if (text := _read_json(self._text_path(number))) is None:
                continue
            tally.add(Tally(Counter(text['dropped']), text['records'], text['bad']))
            for document in self._documents(text):
                yield from document.sentences
        if tally.bad and tally.counts['bad_record_skipped'] == tally.records:
            raise tally.refusal('no record is good')

    def encode(self, number: int) -> tuple[int, int]:
        """Encodes a chunk; returns its numbers of documents and characters."""
        directory = self.chunk_directory(number)
        if not self.is_encoded(number):
            text, tally = _read_json(self._text_path(number)), Tally()
            if text is not None and text['is_whole']:  # reading it took time: it is not read twice
                tally = Tally(Counter(text['dropped']), text['records'], text['bad'])
                documents = self._documents(text)
            else:
                documents = read_chunk(self.chunks[number], self.reading, tally)
            write_chunk(documents, tally, self.encoder, directory, hash_lines=self.reading.deduplicate_lines)
        record = read_record(directory)
        assert record is not None  # it has just been written
        return record['num_documents'], record['characters']

    def _documents(self, text: dict[str, Any]) -> Iterator[Document]:
        """Those of a text that `sample` wrote."""
        return (Document(lines, group, not self.reading.split_sentences) for lines, group in text['documents'])

    def _text_path(self, number: int) -> pathlib.Path:
        return self.directory / 'texts' / f'{number:05d}.json'


def open_job(
    directory: pathlib.Path, reading: Reading, sources: list[Source], settings: dict[str, Any], *, alone: bool
) -> Job:
    """Makes the directory of a job, or finds what an interrupted one left there.

    Args:
      alone: that no other shard works on it: what was left by a job on other text or settings is removed.

    Raises:
      BadInput: when other shards were started with other settings, or on other text.
    """
    job = Job(directory, reading, tuple(sources))
    identity = {
        'version': _VERSION,
        'settings': settings,
        'files': {source.name: source.files for source in sources},
        'chunks': json_digest([dataclasses.asdict(chunk) for chunk in job.chunks]),
    }
    identity = json.loads(json.dumps(identity))
    remove_leftovers(directory)
    path = directory / 'job.json'
    there = _read_json(path)
    if there != identity:
        if there is not None and not alone:
            raise BadInput(
                str(directory),
                f'holds shards with other {", ".join(key for key in identity if there.get(key) != identity[key])}',
                'the same settings and text for all shards',
                f'rm -r {directory} to start again',
            )
        if directory.exists() and alone:
            discard(directory)
        (directory / 'chunks').mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(identity))
    return job


def _read_json(path: pathlib.Path) -> Any:
    """What a JSON file holds; None where there is none."""
    try:
        return read_json(path)
    except (FileNotFoundError, ValueError):
        return None
