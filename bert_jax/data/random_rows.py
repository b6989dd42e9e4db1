"""Makes rows of random ids in a run's shape, for timing steps and for plans without a corpus.

`B` rows, `L` positions, `P` predictions per row, `E` sequences per row.
"""

import numpy as np

from bert_jax import config
from bert_jax.data import random
from bert_jax.data.batches import Batch, Stream
from bert_jax.data.sampler import RowSelection, Sampler

PAD, CLS, SEP, MASK, FIRST = range(5)  # ids; ids from FIRST on represent text
_ROWS = 2**20  # in an epoch
_MOST_PACKED = 4  # sequences per packed row, if E allows


class RandomRows(Stream[Batch]):
    """Full rows of ids with the frequencies of text (Zipf's law), random masked positions and random lengths.

    Without packing a row is one sequence. With packing it is cut into 1 to 4 sequences at random positions.
    """

    def __init__(self, data: config.Data, vocab_size: int, *, batch_size: int, seed: int):
        self.data, self.vocab_size = data, vocab_size
        super().__init__(Sampler(_ROWS, batch_size, seed))

    def _assemble(self, selection: RowSelection) -> Batch:
        rows, keys = selection.rows, selection.keys
        length, num_predictions = self.data.sequence_length, config.num_predictions(self.data)
        starts = self._starts(keys)  # BE
        position = np.arange(length)
        has = starts < length
        ids_of = (position >= starts[:, :, None]).sum(axis=1)  # BL, counted from 1
        begin = np.take_along_axis(starts, ids_of - 1, axis=1)
        ends = np.append(np.minimum(starts[:, 1:], length), np.full((len(rows), 1), length), axis=1)
        end = np.take_along_axis(ends, ids_of - 1, axis=1)
        middle = (begin + end) // 2
        drawn = random.uniform(random.bits(random.fold_in(keys, 1), length))
        text = FIRST + ((self.vocab_size - FIRST + 1) ** drawn).astype(np.int64) - 1
        ids = np.where(position == begin, CLS, np.where((position == middle) | (position == end - 1), SEP, text))
        can_mask = np.where(ids >= FIRST, random.uniform(random.bits(random.fold_in(keys, 2), length)), 2.0)
        positions = np.argpartition(can_mask, num_predictions - 1, axis=1)[:, :num_predictions]
        masked = np.take_along_axis(ids, positions, axis=1)
        weights = masked >= FIRST
        positions = np.where(weights, positions, 0)
        np.put_along_axis(ids, positions, np.where(weights, MASK, CLS), axis=1)
        labels = random.below(random.bits(random.fold_in(keys, 3), starts.shape[1]), 2)
        return Batch(
            input_ids=ids.astype(np.int32),
            token_type_ids=(position > middle).astype(np.int32),
            sequence_ids=ids_of.astype(np.int32),
            position_ids=(position - begin).astype(np.int32),
            masked_lm_positions=positions.astype(np.int32),
            masked_lm_ids=np.where(weights, masked, 0).astype(np.int32),
            masked_lm_weights=weights.astype(np.float32),
            cls_positions=np.where(has, starts, 0).astype(np.int32),
            next_sentence_labels=np.where(has, labels, 0).astype(np.int32),
            next_sentence_weights=(has & (self.data.pairing != 'none')).astype(np.float32),
        )

    def _starts(self, keys: np.ndarray) -> np.ndarray:
        """Returns [B, E], the start of each sequence; L for absent ones."""
        most, length = config.max_sequences(self.data), self.data.sequence_length
        cuts = min(most, _MOST_PACKED, length // 8)
        count = 1 + random.below(random.bits(random.fold_in(keys, 4), 1), cuts)  # B1
        eighths = np.argsort(random.bits(random.fold_in(keys, 5), length // 8 - 1), axis=1)[:, : cuts - 1]
        inner = np.where(np.arange(1, cuts) < count, 8 * (1 + eighths), length)
        starts = np.full((len(keys), most), length)
        starts[:, 0], starts[:, 1:cuts] = 0, np.sort(inner, axis=1)
        return starts
