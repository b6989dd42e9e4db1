"""step -> Batch, a pure function of (corpus, data config, seed, step).

`B` rows, `L` positions, `P` predictions per row, `E` sequences per row.
"""

import abc
from collections.abc import Iterator
from typing import NamedTuple

import grain
import numpy as np

from bert_jax import config
from bert_jax.data.examples import Plan, load_plan, make_pairs
from bert_jax.data.masking import mask_tokens
from bert_jax.data.order import Order
from bert_jax.errors import BadInput
from bert_jax.text.corpus import Corpus


class Batch(NamedTuple):
    """One step's input; every source of data makes this."""

    input_ids: np.ndarray  # [B, L] int32, after masking
    token_type_ids: np.ndarray  # [B, L] int32, 0 for sentence A and padding, 1 for B
    sequence_ids: np.ndarray  # [B, L] int32, 0 is padding, k the k-th sequence of the row
    position_ids: np.ndarray  # [B, L] int32, position inside its own sequence
    masked_lm_positions: np.ndarray  # [B, P] int32, 0 for filler
    masked_lm_ids: np.ndarray  # [B, P] int32, what was there
    masked_lm_weights: np.ndarray  # [B, P] float32, 1 for a real prediction
    cls_positions: np.ndarray  # [B, E] int32, where each sequence starts
    next_sentence_labels: np.ndarray  # [B, E] int32, nsp: 1 is random; sop: 1 is swapped
    next_sentence_weights: np.ndarray  # [B, E] float32, 1 for a real pair


class Stream(abc.ABC):
    """The batches of one split, by number, in the order of `Order`; each source says what stands in its rows."""

    def __init__(self, order: Order):
        self._order = order

    @property
    def num_rows(self) -> int:
        """Rows in an epoch."""
        return self._order.num_rows

    @property
    def batch_size(self) -> int:
        """B, over all hosts."""
        return self._order.batch_size

    def __len__(self) -> int:
        """Steps in one pass."""
        return len(self._order)

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """The batch of a step, or the given rows of it; the same whoever asks, in whatever order."""
        return self._assemble(*self._order.rows(step, rows))

    @abc.abstractmethod
    def _assemble(self, rows: np.ndarray, present: np.ndarray, keys: np.ndarray) -> Batch:
        """The batch of these rows of the source, [B] int64; where `present` is false, padding of weight 0."""


class CorpusStream(Stream):
    """The batches of a split of a corpus: a row is a window."""

    def __init__(self, corpus: Corpus, data: config.Data, split_name: str, *, batch_size: int, seed: int | None):
        """Args: `seed` of the run for training, None for evaluation."""
        self.data = data
        self.directory = corpus.directory
        self.split = getattr(corpus, split_name)
        self.tokenizer = corpus.tokenizer
        self.plan: Plan = load_plan(corpus.directory, split_name, self.split, data)
        super().__init__(Order(self.plan.num_windows, batch_size, seed))

    def _assemble(self, windows: np.ndarray, present: np.ndarray, keys: np.ndarray) -> Batch:
        tokenizer, num_positions = self.tokenizer, self.data.sequence_length
        pairs = make_pairs(self.plan, windows, keys, self.data.pairing)
        position = np.arange(num_positions, dtype=np.int64)[None]
        a_end = (1 + pairs.a_length)[:, None]  # position of the [SEP] after A
        has_b = (pairs.b_length > 0)[:, None]
        b_end = np.where(has_b, a_end + 1 + pairs.b_length[:, None], a_end)  # position of the last [SEP]
        lengths = np.where(present, b_end[:, 0] + 1, 0)
        in_a = (position >= 1) & (position < a_end)
        in_b = (position > a_end) & (position < b_end)
        source = np.where(in_a, pairs.a_start[:, None] + position - 1, pairs.b_start[:, None] + position - a_end - 1)
        in_row, is_text = position < lengths[:, None], (in_a | in_b) & present[:, None]
        ids = np.full((len(windows), num_positions), tokenizer.pad_id, np.int32)
        text = self.split.gather(source[is_text])
        if text.max(initial=0) >= tokenizer.vocab_size:
            raise BadInput(
                self.directory,
                f'holds the token id {text.max()}',
                f"ids below the vocabulary's {tokenizer.vocab_size}",
                'rm -r the corpus and prepare it again',
            )
        ids[is_text] = text
        ids[in_row & (position == 0)] = tokenizer.cls_id
        ids[in_row & ((position == a_end) | (position == b_end))] = tokenizer.sep_id
        masked = mask_tokens(
            ids,
            is_text,
            lengths,
            keys,
            self.data.masking,
            num_predictions=config.num_predictions(self.data),
            mask_id=tokenizer.mask_id,
            vocab_size=tokenizer.vocab_size,
        )
        paired = present & (self.data.pairing != 'none')
        return Batch(
            input_ids=masked.input_ids,
            token_type_ids=(in_row & (position > a_end)).astype(np.int32),
            sequence_ids=in_row.astype(np.int32),
            position_ids=np.where(in_row, position, 0).astype(np.int32),
            masked_lm_positions=masked.positions,
            masked_lm_ids=masked.ids,
            masked_lm_weights=masked.weights,
            cls_positions=np.zeros((len(windows), 1), np.int32),
            next_sentence_labels=np.where(paired, pairs.label, 0).astype(np.int32)[:, None],
            next_sentence_weights=paired.astype(np.float32)[:, None],
        )


def prefetch(stream: Stream, start: int, stop: int, rows: slice) -> Iterator[Batch]:
    """The batches of steps start … stop - 1 in order, made ahead of time in a thread; seeking costs nothing."""
    dataset = grain.MapDataset.range(start, stop).map(lambda step: stream.batch(int(step), rows))
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))
