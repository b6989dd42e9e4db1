"""Makes the batch of a step: a pure function of (corpus, data config, seed, step).

`B` rows, `L` positions, `P` predictions per row, `E` sequences per row.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterator
from typing import Generic, NamedTuple, TypeVar

import grain
import numpy as np

from bert_jax import config
from bert_jax.data import random
from bert_jax.data.examples import Pairs, make_pairs
from bert_jax.data.fill import num_sequences
from bert_jax.data.masking import MaskVocabulary, mask_tokens
from bert_jax.data.sampler import BucketedSampler, RowSelection, Sampler
from bert_jax.data.windows import WindowIndex, load_windows, sample_lengths
from bert_jax.errors import BadInput
from bert_jax.model.inputs import Array, Inputs
from bert_jax.text.corpus import Corpus
from bert_jax.text.splits import Split, SplitRange

BatchT = TypeVar('BatchT')  # `Batch`, or the batch of a task


class Batch(NamedTuple):
    """The input of one step, whatever the source of the data."""

    input_ids: Array  # [B, L] int32, after masking
    token_type_ids: Array  # [B, L] int32, 0 for sentence A and padding, 1 for B
    sequence_ids: Array  # [B, L] int32, 0 is padding, k the k-th sequence of the row
    position_ids: Array  # [B, L] int32, position inside its own sequence
    masked_lm_positions: Array  # [B, P] int32, 0 for filler
    masked_lm_ids: Array  # [B, P] int32, the original ids
    masked_lm_weights: Array  # [B, P] float32, 1 for a real prediction
    cls_positions: Array  # [B, E] int32, the start of each sequence
    next_sentence_labels: Array  # [B, E] int32, nsp: 1 is random; sop: 1 is swapped
    next_sentence_weights: Array  # [B, E] float32, 1 for a real pair

    @property
    def inputs(self) -> Inputs:
        """The fields that the model reads."""
        return Inputs(self.input_ids, self.token_type_ids, self.sequence_ids, self.position_ids)

    @property
    def num_predictions(self) -> int:
        """Number of positions that the masked-LM head runs on, filler included."""
        return self.masked_lm_ids.size


class Stream(abc.ABC, Generic[BatchT]):
    """The batches of one split, indexed by step in the order of a `Sampler`; subclasses fill the rows."""

    def __init__(self, sampler: Sampler):
        self._sampler = sampler

    @property
    def num_rows(self) -> int:
        """Rows in an epoch."""
        return self._sampler.num_rows

    @property
    def batch_size(self) -> int:
        """B, over all processes, after the batch-size warm-up."""
        return self._sampler.batch_size

    def batch_size_at(self, step: int) -> int:
        """Returns the rows of the batch of a step, over all processes; they differ during a batch-size warm-up."""
        sizes = self._sampler.batch_sizes
        return self.batch_size if sizes.is_constant else sizes.at(step)

    def __len__(self) -> int:
        """Steps in one pass."""
        return len(self._sampler)

    def batch(self, step: int, rows: slice = slice(None)) -> BatchT:
        """Returns the batch of a step, or some of its rows; it does not depend on the process or on earlier calls."""
        return self._assemble(self._sampler.rows(step, rows))

    @abc.abstractmethod
    def _assemble(self, selection: RowSelection) -> BatchT:
        """Makes a batch of the selected rows; absent rows become padding of weight 0."""


class CorpusStream(Stream[Batch]):
    """The batches of a corpus split. A row is one window, or with packing the windows that share it.

    In training with `data.bucket_lengths`, L and P vary from batch to batch with its bucket.
    """

    def __init__(
        self,
        corpus: Corpus,
        data: config.Data,
        split_name: str,
        *,
        batch_size: int | config.BatchSizes,
        seed: int | None,
        phase: int = 0,
        part: SplitRange | None = None,
    ):
        """Args: `seed` of the run for training, None for evaluation; `phase`, its index; `part`, of the split."""
        if config.chooses_max_sequences(data):
            data = dataclasses.replace(data, max_sequences=num_sequences(sample_lengths(corpus.train, data), data))
        self.data = data
        self.directory = corpus.directory
        self.split: Split | SplitRange = part or getattr(corpus, split_name)
        self.tokenizer = corpus.tokenizer
        self._mask_vocabulary = MaskVocabulary.of(corpus.tokenizer, data.masking)
        self.windows: WindowIndex = load_windows(corpus.directory, split_name, self.split, data)
        self._shapes = [dataclasses.replace(data, sequence_length=length) for length in config.row_lengths(data)]
        if seed is None or len(self._shapes) == 1:
            super().__init__(Sampler(self.windows.num_rows, batch_size, seed, phase))
        else:
            by_bucket, sizes = self.windows.by_bucket, self.windows.bucket_sizes
            super().__init__(BucketedSampler(by_bucket, sizes, batch_size, seed, phase))

    def _assemble(self, selection: RowSelection) -> Batch:
        rows, present, keys, bucket = selection
        num_sequences, data = config.max_sequences(self.data), self._shapes[bucket]
        first, index = self.windows.rows[rows], np.arange(num_sequences)
        real = index < np.where(present, self.windows.rows[rows + 1] - first, 0)[:, None]  # BE
        windows, sequence_keys = (first[:, None] + index)[real], random.fold_in(keys[:, None], index)[real]
        pairs = make_pairs(self.windows, windows, sequence_keys, self.data)
        ids, is_text, token_type_ids, sequence_ids, position_ids, lengths = self._lay_out(
            pairs, real, data.sequence_length
        )
        ids[is_text] = self._text(pairs)
        masked = mask_tokens(
            ids,
            is_text,
            lengths,
            keys,
            data.masking,
            self._mask_vocabulary,
            num_predictions=config.num_predictions(data),
            sequence_ids=sequence_ids,
        )
        labels = np.zeros(real.shape, np.int32)
        labels[real] = pairs.label
        paired = real & (self.data.pairing != 'none')
        return Batch(
            input_ids=masked.input_ids,
            token_type_ids=token_type_ids,
            sequence_ids=sequence_ids,
            position_ids=position_ids,
            masked_lm_positions=masked.positions,
            masked_lm_ids=masked.ids,
            masked_lm_weights=masked.weights,
            cls_positions=np.where(real, np.cumsum(lengths, axis=1) - lengths, 0).astype(np.int32),
            next_sentence_labels=labels,
            next_sentence_weights=paired.astype(np.float32),
        )

    def _lay_out(self, pairs: Pairs, real: np.ndarray, num_positions: int) -> tuple[np.ndarray, ...]:
        """Lays out rows as runs of tokens: [CLS] A [SEP] B [SEP] for each sequence, then one run of padding.

        Returns:
          (ids without the text, is_text, token_type_ids, sequence_ids, position_ids), [B, L]; lengths [B, E] int64.
        """
        num_rows, num_sequences = real.shape
        tokenizer = self.tokenizer
        runs = np.zeros((num_rows, num_sequences, 5), np.int64)
        has_b = pairs.b_length > 0
        runs[real] = np.stack([has_b >= 0, pairs.a_length, has_b >= 0, pairs.b_length, has_b], axis=1)
        lengths = runs.sum(axis=2)
        padding = num_positions - lengths.sum(axis=1)
        runs = np.concatenate([runs.reshape(num_rows, -1), padding[:, None]], axis=1).ravel()

        def spread(of_a_sequence: list[int], padding: int, dtype: type) -> np.ndarray:
            row = np.array(of_a_sequence * num_sequences + [padding], dtype)
            return np.repeat(np.tile(row, num_rows), runs).reshape(num_rows, num_positions)

        ids = spread([tokenizer.cls_id, 0, tokenizer.sep_id, 0, tokenizer.sep_id], tokenizer.pad_id, np.int32)
        is_text = spread([False, True, False, True, False], False, bool)
        token_type_ids = spread([0, 0, 0, 1, 1], 0, np.int32)
        whole = np.concatenate([lengths, padding[:, None]], axis=1).ravel()
        indices = np.array([*range(1, num_sequences + 1), 0], np.int32)
        sequence_ids = np.repeat(np.tile(indices, num_rows), whole).reshape(num_rows, num_positions)
        starts = np.repeat((np.cumsum(whole) - whole).astype(np.int32), whole)
        position_ids = (np.arange(starts.size, dtype=np.int32) - starts).reshape(num_rows, num_positions)
        position_ids *= sequence_ids > 0
        return ids, is_text, token_type_ids, sequence_ids, position_ids, lengths

    def _text(self, pairs: Pairs) -> np.ndarray:
        """Returns the token ids of all pairs, concatenated, int32.

        Raises:
          BadInput: if an id is outside the vocabulary.
        """
        starts = np.stack([pairs.a_start, pairs.b_start], axis=1).ravel()
        lengths = np.stack([pairs.a_length, pairs.b_length], axis=1).ravel()
        before = np.cumsum(lengths) - lengths
        ids = self.split.gather(np.repeat(starts - before, lengths) + np.arange(lengths.sum()))
        if ids.max(initial=0) >= self.tokenizer.vocab_size:
            raise BadInput(
                self.directory,
                f'holds the token id {ids.max()}',
                f"ids below the vocabulary's {self.tokenizer.vocab_size}",
                'delete the corpus and prepare it again',
            )
        return ids


def prefetch(
    stream: Stream[BatchT],
    start: int,
    stop: int,
    rows: Callable[[int], slice],
    position: Callable[[int], int] = int,
) -> Iterator[BatchT]:
    """Yields the batches of steps start … stop - 1, made ahead of time in a thread; seeking costs nothing.

    Args:
      rows: maps the number of rows of a batch to those that are wanted.
      position: maps a step to the index of the batch that it reads; by default they are equal.
    """

    def batch(step: int) -> BatchT:
        index = position(int(step))
        return stream.batch(index, rows(stream.batch_size_at(index)))

    dataset = grain.MapDataset.range(start, stop).map(batch)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))
