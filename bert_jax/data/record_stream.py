"""Makes batches from records, with new masks in every epoch or with the stored ones.

`B` rows, `L` positions, `P` predictions per row.
"""

import dataclasses

import numpy as np

from bert_jax import config
from bert_jax.data.batches import Batch, Stream
from bert_jax.data.masking import Masked, MaskVocabulary, mask_tokens
from bert_jax.data.record_set import RecordSet
from bert_jax.data.sampler import RowSelection, Sampler
from bert_jax.data.tfrecords import Examples
from bert_jax.errors import BadInput
from bert_jax.text.tokenizer import Tokenizer


def with_lengths_of(records: RecordSet, data: config.Data) -> config.Data:
    """Returns the settings with L inferred from the records, and P too if the stored masks are used.

    Raises:
      BadInput: if `max_predictions` is set and records hold more.
    """
    data = dataclasses.replace(data, sequence_length=records.sequence_length)
    if data.remask:
        return data
    stored = max(records.num_predictions, 1)
    if data.max_predictions == -1:
        return dataclasses.replace(data, max_predictions=stored)
    if stored > data.max_predictions:
        raise BadInput(
            'config.data.max_predictions',
            f'is {data.max_predictions}; with data.remask=False the stored masks are used, up to {stored} per record',
            f'at least {stored}, or -1',
            f'--config.data.max_predictions={stored}',
        )
    return data


class RecordStream(Stream[Batch]):
    """The batches of a set of records; each row is one record."""

    def __init__(
        self,
        records: RecordSet,
        data: config.Data,
        tokenizer: Tokenizer,
        *,
        batch_size: int | config.BatchSizes,
        seed: int | None,
        phase: int = 0,
    ):
        """Args: `seed` of the run for training, None for evaluation; `phase`, its index.

        Raises:
          BadInput: if the records were written with another vocabulary, or lack labels for `pairing`.
        """
        super().__init__(Sampler(len(records), batch_size, seed, phase))
        self.data, self._records, self._tokenizer = with_lengths_of(records, data), records, tokenizer
        self._mask_vocabulary = MaskVocabulary.of(tokenizer, data.masking)
        for file in records.files:
            if file.summary.largest_id >= tokenizer.vocab_size:
                raise self._beyond(file.path, file.summary.largest_at, file.summary.largest_id)
            if data.pairing != 'none' and file.summary.unlabeled_at >= 0:
                raise BadInput(
                    f'{file.path}, byte {file.summary.unlabeled_at}',
                    'the record has no next_sentence_labels',
                    f'labels for data.pairing={data.pairing}',
                    '--config.data.pairing=none',
                )
        if self.num_rows:
            self._read(np.zeros(1, np.int64))

    def unigram_counts(self) -> np.ndarray:
        """Returns the count of each token in the text of all rows, without special tokens, int64 [V]."""
        counts = np.zeros(self._tokenizer.vocab_size, np.int64)
        for start in range(0, self.num_rows, 1024):
            examples = self._read(np.arange(start, min(start + 1024, self.num_rows)))
            ids = examples.original_ids()
            counts += np.bincount(ids[self._is_text(ids, examples.lengths)], minlength=len(counts))
        return counts

    def _assemble(self, selection: RowSelection) -> Batch:
        rows, present, keys, _ = selection
        examples = self._read(rows)
        num_positions = self.data.sequence_length
        lengths = np.where(present, examples.lengths, 0)
        position = np.arange(num_positions, dtype=np.int64)[None]
        in_row = position < lengths[:, None]
        masked = self._masked(examples, present, lengths, keys)
        paired = present & (self.data.pairing != 'none')
        return Batch(
            input_ids=masked.input_ids,
            token_type_ids=np.where(in_row, _widened(examples.token_type_ids, num_positions), 0),
            sequence_ids=in_row.astype(np.int32),
            position_ids=np.where(in_row, position, 0).astype(np.int32),
            masked_lm_positions=masked.positions,
            masked_lm_ids=masked.ids,
            masked_lm_weights=masked.weights,
            cls_positions=np.zeros((len(rows), 1), np.int32),
            next_sentence_labels=np.where(paired, examples.next_sentence_labels, 0)[:, None],
            next_sentence_weights=paired.astype(np.float32)[:, None],
        )

    def _masked(self, examples: Examples, present: np.ndarray, lengths: np.ndarray, keys: np.ndarray) -> Masked:
        num_positions, num_predictions = self.data.sequence_length, config.num_predictions(self.data)
        ids = examples.original_ids() if self.data.remask else examples.input_ids
        ids = _widened(ids, num_positions)
        ids = np.where(np.arange(num_positions) < lengths[:, None], ids, np.int32(self._tokenizer.pad_id))
        if self.data.remask:
            return mask_tokens(
                ids,
                self._is_text(ids, lengths),
                lengths,
                keys,
                self.data.masking,
                self._mask_vocabulary,
                num_predictions=num_predictions,
            )
        stored = (examples.masked_lm_positions, examples.masked_lm_ids, examples.masked_lm_weights)
        kept = (np.where(present[:, None], _widened(slots, num_predictions), 0).astype(slots.dtype) for slots in stored)
        return Masked(ids, *kept)

    def _is_text(self, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Returns [B, L] bool, the tokens that may be predicted; a [MASK] without a label may not."""
        tokenizer = self._tokenizer
        special = (ids == tokenizer.cls_id) | (ids == tokenizer.sep_id) | (ids == tokenizer.mask_id)
        return (np.arange(ids.shape[1]) < lengths[:, None]) & ~special

    def _read(self, rows: np.ndarray) -> Examples:
        examples, locations = self._records.read(rows)
        largest = np.maximum(examples.input_ids.max(axis=1), examples.masked_lm_ids.max(axis=1, initial=0))
        beyond, first = largest >= self._tokenizer.vocab_size, examples.input_ids[:, 0]
        if beyond.any():
            row = beyond.argmax()
            raise self._beyond(*locations[row], int(largest[row]))
        if (first != self._tokenizer.cls_id).any():
            row = (first != self._tokenizer.cls_id).argmax()
            path, offset = locations[row]
            raise BadInput(
                f'{path}, byte {offset}',
                f"the record starts with the id {first[row]}; the tokenizer's [CLS] is {self._tokenizer.cls_id}",
                'the vocabulary that the records were written with',
                '--config.tokenizer.path=vocab.txt',
            )
        return examples

    def _beyond(self, path: str, offset: int, token_id: int) -> BadInput:
        return BadInput(
            f'{path}, byte {offset}',
            f'the record holds the token id {token_id}',
            f"ids below the vocabulary's {self._tokenizer.vocab_size}",
            '--config.tokenizer.path=vocab.txt',
        )


def _widened(values: np.ndarray, width: int) -> np.ndarray:
    """Pads [B, …] with 0 to [B, width]."""
    return np.pad(values, ((0, 0), (0, width - values.shape[1])))
