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

_TOKENS_AT_ONCE = 1 << 24


class Split:
    """One split of a corpus, memory-mapped; pickling it sends its place, not its contents.

    Attributes:
      sentences: int64 [S + 1], token offsets.
      documents: int64 [D + 1], sentence offsets.
      num_tokens: tokens in all.
    """

    def __init__(self, directory: pathlib.Path, counts: dict[str, int], tokens_per_shard: int):
        """Maps the files of `directory`; `counts` is {documents, sentences, tokens} of the manifest.

        Raises:
          BadInput: for a file that is missing, unreadable, or of another length than the manifest says.
        """
        self._arguments = directory, counts, tokens_per_shard
        self._tokens_per_shard = tokens_per_shard
        self.num_tokens = counts['tokens']
        self.sentences = _map(directory / 'sentences.npy', counts['sentences'] + 1, (np.int64,))
        self.documents = _map(directory / 'documents.npy', counts['documents'] + 1, (np.int64,))
        self._shards = [
            _map(
                directory / f'tokens-{shard:05d}.npy',
                min(tokens_per_shard, self.num_tokens - start),
                (np.uint16, np.uint32),
            )
            for shard, start in enumerate(range(0, self.num_tokens, tokens_per_shard))
        ]

    def __reduce__(self):
        return Split, self._arguments

    def gather(self, token_positions: np.ndarray) -> np.ndarray:
        """Token ids, int32, of positions in the split, int64 of any shape; the result has the same shape."""
        if len(self._shards) == 1:
            return self._shards[0][token_positions].astype(np.int32)
        ids = np.empty(token_positions.shape, np.int32)
        shards, offsets = np.divmod(token_positions, self._tokens_per_shard)
        for shard in np.unique(shards):
            here = shards == shard
            ids[here] = self._shards[shard][offsets[here]]
        return ids

    def unigram_counts(self, vocab_size: int) -> np.ndarray:
        """How often each token occurs, int64 [V].

        Raises:
          BadInput: for an id beyond the vocabulary.
        """
        counts = np.zeros(vocab_size, np.int64)
        for number, shard in enumerate(self._shards):
            for start in range(0, len(shard), _TOKENS_AT_ONCE):
                part = np.bincount(shard[start : start + _TOKENS_AT_ONCE], minlength=vocab_size)
                if len(part) > vocab_size:
                    raise BadInput(
                        f'{self._arguments[0]}/tokens-{number:05d}.npy',
                        f'holds the id {len(part) - 1}',
                        f'ids below the size of the vocabulary, {vocab_size}',
                        'python -m bert_jax prepare --config=… into another data.corpus',
                    )
                counts += part
        return counts


class _NpyWriter:
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
        values = np.asarray(values, self._dtype)
        self._file.write(values.tobytes())
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
        self._sentences = _NpyWriter(directory / 'sentences.npy', np.int64)
        self._documents = _NpyWriter(directory / 'documents.npy', np.int64)
        self._sentences.append([0])
        self._documents.append([0])
        self._shard: _NpyWriter | None = None
        self.counts = {'documents': 0, 'sentences': 0, 'tokens': 0}

    def add(self, sentences: list[list[int]]) -> None:
        """Writes a document: the ids of each of its sentences, none of them empty."""
        ends = self.counts['tokens'] + np.cumsum([len(sentence) for sentence in sentences])
        self._sentences.append(ends)
        self.counts['documents'] += 1
        self.counts['sentences'] += len(sentences)
        self._documents.append([self.counts['sentences']])
        ids = np.concatenate([np.asarray(sentence, self._dtype) for sentence in sentences])
        while len(ids):
            number, used = divmod(self.counts['tokens'], self._tokens_per_shard)
            if used == 0:
                self._close_shard()
                self._shard = _NpyWriter(self._directory / f'tokens-{number:05d}.npy', self._dtype)
            part, ids = np.split(ids, [self._tokens_per_shard - used])
            self._shard.append(part)
            self.counts['tokens'] += len(part)

    def _close_shard(self) -> None:
        if self._shard is not None:
            self._shard.close()

    def close(self) -> None:
        """Finishes the files."""
        self._close_shard()
        self._sentences.close()
        self._documents.close()


def _map(path: pathlib.Path, length: int, dtypes: tuple[type, ...]) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode='r', allow_pickle=False)
    except (OSError, ValueError) as error:
        raise differs(path, f'cannot be read ({type(error).__name__})', f'{length} numbers') from None
    if array.shape != (length,) or array.dtype not in dtypes:
        expected = f'{length} of {" or ".join(np.dtype(dtype).name for dtype in dtypes)}'
        raise differs(path, f'holds {array.dtype} of shape {array.shape}', expected)
    return array


def differs(path: pathlib.Path, found: str, expected: str) -> BadInput:
    """The error for a file of a corpus that is not as it was written."""
    directory = path.parent if path.name == 'tokenizer' else path.parent.parent
    return BadInput(str(path), found, expected, mend(directory))


def mend(directory: pathlib.Path) -> str:
    """What to do about a damaged corpus."""
    return f'rm -r {directory}, then python -m bert_jax prepare --config=…'
