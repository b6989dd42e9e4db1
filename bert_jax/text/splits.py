"""One split of a corpus on disk: written document by document, read by memory mapping.

    tokens-00000.npy …               uint16 or uint32 [tokens of the shard]; all shards but the last are full
    sentences.npy                    int64 [S + 1], offset of each sentence, in tokens of the split
    documents.npy                    int64 [D + 1], offset of each document, in sentences

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
    """One split of a corpus, memory-mapped; pickling sends its path, not its contents.

    The checksum of every MiB is verified when something in it is read for the first time.

    Attributes:
      num_tokens: tokens of the split.
    """

    def __init__(self, directory: pathlib.Path, counts: dict[str, int], tokens_per_shard: int, files: dict[str, dict]):
        """Maps the files of `directory`; `counts` is {documents, sentences, tokens}, `files` {name: {bytes, blocks}}.

        Raises:
          BadInput: for a file that is missing, unreadable, or has another length than the counts require.
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

    @property
    def end(self) -> int:
        """The position after the last token."""
        return self.num_tokens

    @property
    def size(self) -> list[int]:
        """What tells it from other splits of its corpus: its end, and the offsets that it has."""
        return [self.num_tokens, len(self.sentences), len(self.documents)]

    def gather(self, token_positions: np.ndarray) -> np.ndarray:
        """Returns the token ids, int32, at positions in the split, int64; both arrays have the same shape.

        Raises:
          BadInput: if a checksum does not match.
        """
        if len(self._shards) == 1:
            return self._shards[0].read(token_positions).astype(np.int32)
        ids = np.empty(token_positions.shape, np.int32)
        shards, offsets = np.divmod(token_positions, self._tokens_per_shard)
        for shard in np.unique(shards):
            in_shard = shards == shard
            ids[in_shard] = self._shards[shard].read(offsets[in_shard])
        return ids

    def unigram_counts(self, vocab_size: int) -> np.ndarray:
        """Counts how often each token occurs, int64 [V].

        Raises:
          BadInput: for an id outside the vocabulary, or if a checksum does not match.
        """
        counts = np.zeros(vocab_size, np.int64)
        for shard in self._shards:
            ids = shard.read_all()
            for start in range(0, len(ids), _TOKENS_AT_ONCE):
                block_counts = np.bincount(ids[start : start + _TOKENS_AT_ONCE], minlength=vocab_size)
                if len(block_counts) > vocab_size:
                    expected = f'ids below the vocabulary size, {vocab_size:,}'
                    raise damaged_file_error(shard.path, f'contains the id {len(block_counts) - 1:,}', expected)
                counts += block_counts
        return counts


class SplitRange:
    """Consecutive documents of a split; positions of sentences and tokens are those of the split.

    Attributes:
      num_tokens: tokens of these documents.
    """

    def __init__(self, split: Split, first: int, last: int):
        """Takes the documents first … last - 1."""
        self._split, self._first, self._last = split, first, last
        start, self.end = (int(split.sentences[split.documents[document]]) for document in (first, last))
        self.num_tokens = self.end - start

    @property
    def sentences(self) -> np.ndarray:
        """int64 [S + 1], token offsets, of the whole split."""
        return self._split.sentences

    @property
    def documents(self) -> np.ndarray:
        """int64 [documents of the range + 1], sentence offsets."""
        return self._split.documents[self._first : self._last + 1]

    @property
    def size(self) -> list[int]:
        """As of a split, with its bounds."""
        return [*self._split.size, self._first, self._last]

    def gather(self, token_positions: np.ndarray) -> np.ndarray:
        """Returns the token ids at positions in the split; see `Split.gather`."""
        return self._split.gather(token_positions)


class _VerifiedArray:
    """A memory-mapped .npy file; the checksum of each block is verified when the block is first read."""

    def __init__(self, path: pathlib.Path, array: np.memmap, blocks: list[str]):
        self.path, self._array, self._blocks = path, array, blocks
        self._header = array.offset // array.itemsize  # in items
        self._shift = (BLOCK_BYTES // array.itemsize).bit_length() - 1
        self._is_checked = np.zeros(len(blocks), bool)
        self._num_checked = 0

    def read(self, positions: np.ndarray) -> np.ndarray:
        """Returns the items at the given positions."""
        if self._num_checked < len(self._blocks):
            touched = (positions + self._header) >> self._shift
            if not self._is_checked[touched].all():
                self._check(np.unique(touched))
        return self._array[positions]

    def read_all(self) -> np.ndarray:
        """Returns all items."""
        if self._num_checked < len(self._blocks):
            self._check(np.arange(len(self._blocks)))
        return self._array

    def _check(self, block_indices: np.ndarray) -> None:
        with self.path.open('rb') as file:
            for index in block_indices[~self._is_checked[block_indices]]:
                file.seek(int(index) * BLOCK_BYTES)
                if block_digest(file.read(BLOCK_BYTES)) != self._blocks[index]:
                    raise damaged_file_error(
                        self.path, f'is damaged: MiB {index} has another checksum', self._blocks[index]
                    )
                self._is_checked[index] = True
        self._num_checked = int(self._is_checked.sum())


class NpyWriter:
    """Writes a growing one-dimensional .npy file; `close` writes the final length to its header."""

    def __init__(self, path: pathlib.Path, dtype: Any):
        self._dtype, self._length = np.dtype(dtype), 0
        self._file = path.open('wb')
        self._write_header()

    def _write_header(self) -> None:
        # numpy pads the header so that a first dimension of any size fits
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
    """Writes the files of one split; `counts` is {documents, sentences, tokens} written so far."""

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
        """Writes documents: their ids, tokens per sentence, and sentences per document; no count is 0."""
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
            shard_index, used = divmod(counts['tokens'], self._tokens_per_shard)
            if used == 0 or self._shard is None:
                self._close_shard()
                self._shard = NpyWriter(self._directory / f'tokens-{shard_index:05d}.npy', self._dtype)
            fitting, ids = np.split(ids, [self._tokens_per_shard - used])
            self._shard.append(fitting)
            counts['tokens'] += len(fitting)

    def _close_shard(self) -> None:
        if self._shard is not None:
            self._shard.close()

    def close(self) -> None:
        """Completes the files."""
        self._close_shard()
        self._sentences.close()
        self._documents.close()


def _map(path: pathlib.Path, length: int, dtypes: tuple[type, ...]) -> np.memmap:
    try:
        array = map_array(path)
    except (OSError, ValueError) as error:
        raise damaged_file_error(
            path, f'cannot be read ({type(error).__name__})', f'an array of {length:,} numbers'
        ) from None
    if array.shape != (length,) or array.dtype not in dtypes:
        expected = f'{length:,} numbers of type {" or ".join(np.dtype(dtype).name for dtype in dtypes)}'
        raise damaged_file_error(path, f'holds {array.dtype} of shape {array.shape}', expected)
    return array


def damaged_file_error(path: pathlib.Path, found: str, expected: str) -> BadInput:
    """Returns the error for a file of a corpus that has changed since it was written."""
    directory = path.parent if path.name == 'tokenizer' else path.parent.parent
    return BadInput(str(path), found, expected, rebuild_command(directory))


def rebuild_command(directory: pathlib.Path) -> str:
    """Returns the command that replaces a damaged corpus."""
    return f'rm -r {directory} && bert-jax prepare --config=…'
