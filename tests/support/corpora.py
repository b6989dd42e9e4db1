"""Small corpora in memory in which every token encodes its position."""

import dataclasses
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from bert_jax.config import Data
from bert_jax.data.windows import WindowIndex, build_windows, open_windows


@dataclasses.dataclass
class MemorySplit:
    """A `Split` whose token at position i is i + 10, so that a batch shows where its text comes from.

    If there are more positions than tokens in the vocabulary, the tokens start again at 10.
    """

    sentences: np.ndarray
    documents: np.ndarray
    vocab_size: int = 60_000

    @property
    def num_tokens(self) -> int:
        return int(self.sentences[-1])

    @property
    def end(self) -> int:
        return self.num_tokens

    @property
    def size(self) -> list[int]:
        return [self.num_tokens, len(self.sentences), len(self.documents)]

    def gather(self, positions: np.ndarray) -> np.ndarray:
        assert positions.min(initial=0) >= 0 and positions.max(initial=0) < self.num_tokens
        return (positions % (self.vocab_size - 10) + 10).astype(np.int32)


def tokenizer_of(vocab_size: int) -> SimpleNamespace:
    """Returns the attributes of a `Tokenizer` that the data pipeline reads; every third token continues a word."""
    special = {'pad_id': 0, 'unk_id': 1, 'cls_id': 2, 'sep_id': 3, 'mask_id': 4}
    ids = np.arange(vocab_size)
    return SimpleNamespace(
        **special, vocab_size=vocab_size, continues_word=lambda ids: ids % 3 == 0, is_special=ids < 5
    )


TOKENIZER = tokenizer_of(60_000)


def random_split(seed: int, num_documents: int = 60, longest: int = 40) -> MemorySplit:
    """Returns a split of documents with 1 to 30 sentences of 1 to `longest` tokens."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 31, num_documents)
    lengths = rng.integers(1, longest + 1, counts.sum())
    return MemorySplit(np.concatenate([[0], np.cumsum(lengths)]), np.concatenate([[0], np.cumsum(counts)]))


def corpus_of(split: MemorySplit, directory: str) -> SimpleNamespace:
    """Returns a `Corpus` with the same split for training and validation."""
    tokenizer = tokenizer_of(split.vocab_size)
    return SimpleNamespace(directory=directory, tokenizer=tokenizer, train=split, validation=split)


def plan_of(split: MemorySplit, data: Data) -> WindowIndex:
    """Returns the window index of a split, whose files are deleted but still mapped."""
    with tempfile.TemporaryDirectory() as name:
        build_windows(split, data, Path(name))
        return open_windows(Path(name))
