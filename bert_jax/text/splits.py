"""One split of a corpus on disk: written a document at a time, read by memory mapping.

    tokens-00000.npy …               uint16 or uint32 [tokens of the shard], all shards but the last are full
    sentences.npy                    int64 [S + 1], where each sentence starts, in tokens of the split
    documents.npy                    int64 [D + 1], where each document starts, in sentences

D documents, S sentences, V vocabulary.
"""

import pathlib
from typing import Any

import numpy as np

from bert_jax.errors import BadInput
from bert_jax.files import map_array
from bert_jax.text.checksums import BLOCK_BYTES, block_digest

_TOKENS_AT_ONCE = 1 << 24


class Split:
    """One split of a corpus, memory-mapped; pickling it sends its place, not its contents.

    Every MiB is compared with its checksum when something in it is read for the first time.

    Attributes:
      num_tokens: tokens in all.
    """

    def __init__(self, directory: pathlib.Path, counts: dict[str, int], tokens_per_shard: int, files: dict[str, dict]):
        """Maps the files of `directory`; `counts` is {documents, sentences, tokens}, `files` {name: {bytes, blocks}}.

        Raises:
          BadInput: for a file that is missing, unreadable, or of another length than the counts say.
        """
        self._arguments = directory, counts, tokens_per_shard, files
        self._tokens_per_shard = tokens_per_shard
        self.num_tokens = counts['tokens']

        def open_file(name: str, length: int, *dtypes: type) -> _VerifiedArray:
            return _VerifiedArray(directory / name, _map(directory / name, length, dtypes), files[name]['blocks'])

        self._sentences = open_file('sentences.npy', counts['sentences'] + 1, np.int64)
        self._documents = open_file('documents.npy', counts['documents'] + 1, np.int64)
        self._shards = [
            open_file(f'tokens-{n:05d}.npy', min(tokens_per_shard, self.num_tokens - start), np.uint16, np.uint32)
            for n, start in enumerate(range(0, self.num_tokens, tokens_per_shard))
        ]

    def __reduce__(self):
        return Split, self._arguments

    @property
    def sentences(self) -> np.ndarray:
        """int64 [S + 1], token offsets."""
        return self._sentences.read_all()

    @property
    def documents(self) -> np.ndarray:
        """int64 [D + 1], sentence offsets."""
        return self._documents.read_all()

    def gather(self, token_positions: np.ndarray) -> np.ndarray:
        """Token ids, int32, of positions in the split, int64 of any shape; the result has the same shape.

        Raises:
          BadInput: for a checksum that differs.
        """
        if len(self._shards) == 1:
            return self._shards[0].read(token_positions).astype(np.int32)
        ids = np.empty(token_positions.shape, np.int32)
        shards, offsets = np.divmod(token_positions, self._tokens_per_shard)
        for shard in np.unique(shards):
            here = shards == shard
            ids[here] = self._shards[shard].read(offsets[here])
        return ids

    def unigram_counts(self, vocab_size: int) -> np.ndarray:
        """How often each token occurs, int64 [V].

        Raises:
          BadInput: for an id beyond the vocabulary, or a checksum that differs.
        """
        counts = np.zeros(vocab_size, np.int64)
        for shard in self._shards:
            ids = shard.read_all()
            for start in range(0, len(ids), _TOKENS_AT_ONCE):
                part = np.bincount(ids[start : start + _TOKENS_AT_ONCE], minlength=vocab_size)
                if len(part) > vocab_size:
                    expected = f'ids below the size of the vocabulary, {vocab_size}'
                    raise damaged_file_error(shard.path, f'holds the id {len(part) - 1}', expected)
                counts += part
        return counts


class _VerifiedArray:
    """A mapped .npy file whose blocks are compared with their checksums at the first touch."""

    def __init__(self, path: pathlib.Path, array: np.memmap, blocks: list[str]):
        self.path, self._array, self._blocks = path, array, blocks
        self._header = array.offset // array.itemsize  # in items
        self._shift = (BLOCK_BYTES // array.itemsize).bit_length() - 1
        self._is_checked = np.zeros(len(blocks), bool)
        self._num_checked = 0

    def read(self, positions: np.ndarray) -> np.ndarray:
        """The items at some positions."""
        if self._num_checked < len(self._blocks):
            touched = (positions + self._header) >> self._shift
            if not self._is_checked[touched].all():
                self._check(np.unique(touched))
        return self._array[positions]

    def read_all(self) -> np.ndarray:
        """All of the file, checked."""
        if self._num_checked < len(self._blocks):
            self._check(np.arange(len(self._blocks)))
        return self._array

    def _check(self, numbers: np.ndarray) -> None:
        with self.path.open('rb') as file:
            for number in numbers[~self._is_checked[numbers]]:
                file.seek(int(number) * BLOCK_BYTES)
                if block_digest(file.read(BLOCK_BYTES)) != self._blocks[number]:
                    raise damaged_file_error(self.path, f'has another checksum in MiB {number}', self._blocks[number])
                self._is_checked[number] = True
        self._num_checked = int(self._is_checked.sum())


class NpyWriter:
    """A one-dimensional .npy file that grows; the length in its header is right once it is closed."""

    def __init__(self, path: pathlib.Path, dtype: Any):
        self._dtype, self._length = np.dtype(dtype), 0
        self._file = path.open('wb')
        self._write_header()

    def _write_header(self) -> None:
        # numpy pads the header with room for a first dimension of any size
        header = {'descr': np.lib.format.dtype_to_descr(self._dtype), 'fortran_order': False, 'shape': (self._length,)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, values: Any) -> None:
        values = np.ascontiguousarray(values, self._dtype)
        self._file.write(values.data)
        self._length += len(values)

    def close(self) -> None:
        self._file.seek(0)
        self._write_header()
        self._file.close()


class SplitWriter:
    """Writes the files of one split; `counts` is {documents, sentences, tokens} so far."""

    def __init__(self, directory: pathlib.Path, dtype: Any, tokens_per_shard: int):
        directory.mkdir()
        self._tokens_per_shard = tokens_per_shard
        self._directory, self._dtype = directory, dtype
        self._sentences = NpyWriter(directory / 'sentences.npy', np.int64)
        self._documents = NpyWriter(directory / 'documents.npy', np.int64)
        self._sentences.append([0])
        self._documents.append([0])
        self._shard: NpyWriter | None = None
        self.counts = {'documents': 0, 'sentences': 0, 'tokens': 0}

    def add(self, ids: np.ndarray, sentence_lengths: np.ndarray, sentences_of_document: np.ndarray) -> None:
        """Writes documents: all their ids, the length of each sentence, the number of sentences of each; none is 0."""
        counts = self.counts
        for writer, start, lengths in (
            (self._sentences, counts['tokens'], sentence_lengths),
            (self._documents, counts['sentences'], sentences_of_document),
        ):
            offsets = np.cumsum(lengths, dtype=np.int64)
            offsets += start
            writer.append(offsets)
        counts['documents'] += len(sentences_of_document)
        counts['sentences'] += len(sentence_lengths)
        while len(ids):
            number, used = divmod(counts['tokens'], self._tokens_per_shard)
            if used == 0 or self._shard is None:
                self._close_shard()
                self._shard = NpyWriter(self._directory / f'tokens-{number:05d}.npy', self._dtype)
            part, ids = np.split(ids, [self._tokens_per_shard - used])
            self._shard.append(part)
            counts['tokens'] += len(part)

    def _close_shard(self) -> None:
        if self._shard is not None:
            self._shard.close()

    def close(self) -> None:
        """Finishes the files."""
        self._close_shard()
        self._sentences.close()
        self._documents.close()


def _map(path: pathlib.Path, length: int, dtypes: tuple[type, ...]) -> np.memmap:
    try:
        array = map_array(path)
    except (OSError, ValueError) as error:
        raise damaged_file_error(path, f'cannot be read ({type(error).__name__})', f'{length} numbers') from None
    if array.shape != (length,) or array.dtype not in dtypes:
        expected = f'{length} of {" or ".join(np.dtype(dtype).name for dtype in dtypes)}'
        raise damaged_file_error(path, f'holds {array.dtype} of shape {array.shape}', expected)
    return array


def damaged_file_error(path: pathlib.Path, found: str, expected: str) -> BadInput:
    """The error for a file of a corpus that is not as it was written."""
    directory = path.parent if path.name == 'tokenizer' else path.parent.parent
    return BadInput(str(path), found, expected, rebuild_command(directory))


def rebuild_command(directory: pathlib.Path) -> str:
    """What to do about a damaged corpus."""
    return f'rm -r {directory}, then python -m bert_jax prepare --config=…'
