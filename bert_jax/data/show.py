"""Decodes rows of a batch for display. It is the only module of the data stage that shows text of the corpus."""

from typing import Any

import numpy as np

from bert_jax.data.batches import Batch
from bert_jax.text.tokenizer import Tokenizer

_PAIRS = {
    'nsp': ('B follows A', 'B is from another document'),
    'sop': ('A and B in order', 'A and B swapped'),
}


def decode_rows(batch: Batch, tokenizer: Tokenizer, pairing: str) -> list[list[dict[str, Any]]]:
    """Decodes the sequences of each row: `text` and `next` as the model reads them (masked), `pair` and `masked`.

    `masked` is a list of {`position`, `was`, `now`} with positions in the row; `next` is B, or '' without one.
    """
    rows = []
    for row in range(len(batch.input_ids)):
        where, is_prediction = batch.masked_lm_positions[row], batch.masked_lm_weights[row] > 0
        was = dict(zip(where[is_prediction].tolist(), batch.masked_lm_ids[row][is_prediction].tolist(), strict=True))
        sequences = []
        for index in range(1, batch.sequence_ids[row].max(initial=0) + 1):
            positions = np.flatnonzero(batch.sequence_ids[row] == index)
            types, ids = batch.token_type_ids[row][positions], np.asarray(batch.input_ids[row])
            pair = ''
            if batch.next_sentence_weights[row, index - 1]:
                pair = _PAIRS[pairing][batch.next_sentence_labels[row, index - 1]]
            masked = [
                {'position': place, 'was': tokenizer.token(was[place]), 'now': tokenizer.token(int(ids[place]))}
                for place in positions.tolist()
                if place in was
            ]
            sequences.append(
                {
                    'text': _words(ids[positions[types == 0]], tokenizer),
                    'next': _words(ids[positions[types == 1]], tokenizer),
                    'pair': pair,
                    'masked': masked,
                }
            )
        rows.append(sequences)
    return rows


def _words(ids: np.ndarray, tokenizer: Tokenizer) -> str:
    return ' '.join(map(tokenizer.token, ids.tolist()))


def describe_rows(rows: list[list[dict[str, Any]]]) -> str:
    """Formats the rows of `decode_rows` for a terminal."""
    lines = []
    for row, sequences in enumerate(rows, start=1):
        for index, sequence in enumerate(sequences, start=1):
            title = f'Row {row}' + (f', sequence {index} of {len(sequences)}' if len(sequences) > 1 else '')
            lines.append(title + (f': {sequence["pair"]}' if sequence['pair'] else ''))
            lines.append(f'  A  {sequence["text"]}')
            if sequence['next']:
                lines.append(f'  B  {sequence["next"]}')
            for masked in sequence['masked']:
                now = 'kept' if masked['now'] == masked['was'] else f'-> {masked["now"]}'
                lines.append(f'  {masked["position"]:5}  {masked["was"]} {now}')
    return '\n'.join(lines)
