"""A corpus on disk: the token ids of every document, ready to be memory-mapped.

    CORPUS/manifest.json                 counts, settings, checksums
    CORPUS/tokenizer/                    what `load_tokenizer` reads
    CORPUS/{train,validation}/
        tokens-00000.npy …               uint16 or uint32 [tokens of the shard], all shards but the last are full
        sentences.npy                    int64 [S + 1], where each sentence starts, in tokens of the split
        documents.npy                    int64 [D + 1], where each document starts, in sentences

D documents, S sentences, V vocabulary. A corpus is written by `bert_jax.text.prepare` and never changed.
"""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import numpy as np

from bert_jax.errors import BadInput
from bert_jax.text.tokenizer import Tokenizer, load_tokenizer

FORMAT_VERSION = 1
SPLITS = ('train', 'validation')
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


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A corpus with its tokenizer; `manifest` is what `manifest.json` holds."""

    directory: str
    tokenizer: Tokenizer
    manifest: dict[str, Any]
    train: Split
    validation: Split

    def __reduce__(self):
        return load_corpus, (self.directory,)


def load_corpus(directory: str | pathlib.Path) -> Corpus:
    """Opens a corpus. Sizes and the tokenizer are checked against the manifest; `verify` checks every byte.

    Raises:
      BadInput: when there is no corpus, or when a file differs from what the manifest says.
    """
    path = pathlib.Path(directory)
    manifest = read_manifest(path)
    if manifest is None:
        raise BadInput(
            f'config.data.corpus={directory}',
            'holds no corpus',
            'a directory that `prepare` wrote',
            'python -m bert_jax prepare --config=…',
        )
    for name, file in manifest['files'].items():
        size = (path / name).stat().st_size if (path / name).is_file() else None
        if size != file['bytes']:
            found = 'is missing' if size is None else f'has {size} bytes'
            raise _differs(path / name, found, f'{file["bytes"]} bytes')
    tokenizer = load_tokenizer(path / 'tokenizer', lowercase=True, strip_accents=False)
    if tokenizer.hash != manifest['tokenizer_hash']:
        raise _differs(path / 'tokenizer', 'is not the tokenizer that wrote the corpus', manifest['tokenizer_hash'])
    splits = {name: Split(path / name, manifest['splits'][name], manifest['tokens_per_shard']) for name in SPLITS}
    return Corpus(str(directory), tokenizer, manifest, **splits)


def read_manifest(directory: pathlib.Path) -> dict[str, Any] | None:
    """The manifest of a corpus, or None where there is no corpus.

    Raises:
      BadInput: for a manifest that is damaged or of another format version.
    """
    path = directory / 'manifest.json'
    try:
        manifest = json.loads(path.read_text('utf-8'))
        version = manifest['format_version']
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError):
        raise BadInput(str(path), 'is damaged', 'the manifest of a corpus', _mend(directory)) from None
    if version != FORMAT_VERSION:
        raise BadInput(str(path), f'has format version {version}', str(FORMAT_VERSION), _mend(directory))
    return manifest


def verify(corpus: Corpus) -> None:
    """Reads all of a corpus: checksums, that offsets ascend to their ends, and that every id is in the vocabulary.

    Raises:
      BadInput: names the first file that is not as it was written.
    """
    directory = pathlib.Path(corpus.directory)
    for name, file in corpus.manifest['files'].items():
        if file_digest(directory / name) != file['sha256']:
            raise _differs(directory / name, 'has another checksum', file['sha256'])
    for name in SPLITS:
        split = getattr(corpus, name)
        ends = (('sentences', split.num_tokens), ('documents', len(split.sentences) - 1))
        for field, end in ends:
            offsets = getattr(split, field)
            if offsets[0] != 0 or offsets[-1] != end or (np.diff(offsets) <= 0).any():
                raise _differs(directory / name / f'{field}.npy', 'holds offsets out of order', f'from 0 up to {end}')
        split.unigram_counts(corpus.tokenizer.vocab_size)


def file_digest(path: pathlib.Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _map(path: pathlib.Path, length: int, dtypes: tuple[type, ...]) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode='r', allow_pickle=False)
    except (OSError, ValueError) as error:
        raise _differs(path, f'cannot be read ({type(error).__name__})', f'{length} numbers') from None
    if array.shape != (length,) or array.dtype not in dtypes:
        expected = f'{length} of {" or ".join(np.dtype(dtype).name for dtype in dtypes)}'
        raise _differs(path, f'holds {array.dtype} of shape {array.shape}', expected)
    return array


def _differs(path: pathlib.Path, found: str, expected: str) -> BadInput:
    directory = path.parent if path.name == 'tokenizer' else path.parent.parent
    return BadInput(str(path), found, expected, _mend(directory))


def _mend(directory: pathlib.Path) -> str:
    return f'rm -r {directory}, then python -m bert_jax prepare --config=…'
