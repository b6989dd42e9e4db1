"""The displayed rows are what the model reads: undoing the masks restores the text."""

from types import SimpleNamespace

import pytest

from bert_jax.config import Data
from bert_jax.data.batches import CorpusStream
from bert_jax.data.show import decode_rows, describe_rows
from tests.support.corpora import TOKENIZER, corpus_of, random_split

NAMED = SimpleNamespace(**vars(TOKENIZER), token=lambda token_id: f't{token_id}')


@pytest.mark.parametrize('pairing, packing', [('nsp', False), ('nsp', True), ('sop', False), ('none', True)])
def test_undoing_the_masks_restores_consecutive_text(tmp_path, pairing: str, packing: bool) -> None:
    split = random_split(4, num_documents=100, longest=6)
    data = Data(sequence_length=64, pairing=pairing, packing=packing)
    batch = CorpusStream(corpus_of(split, str(tmp_path)), data, 'train', batch_size=8, seed=0).batch(0)
    rows = decode_rows(batch, NAMED, pairing)
    assert [len(row) for row in rows] == batch.sequence_ids.max(axis=1).tolist()
    for row, sequences in enumerate(rows):
        for index, sequence in enumerate(sequences):
            words = sequence['text'].split() + sequence['next'].split()
            for masked in sequence['masked']:
                position = masked['position'] - batch.cls_positions[row, index]
                assert words[position] == masked['now']
                words[position] = masked['was']
            ids = [int(word[1:]) for word in words]
            parts = ' '.join(map(str, ids[1:-1])).split(f' {TOKENIZER.sep_id} ')
            assert len(parts) == (1 if pairing == 'none' else 2)
            for part in parts:
                text = list(map(int, part.split()))
                assert text == list(range(text[0], text[0] + len(text)))
            if pairing == 'nsp':
                says_random = sequence['pair'] == 'B is from another document'
                assert says_random == bool(batch.next_sentence_labels[row, index])
            if pairing == 'sop':
                swapped = int(parts[0].split()[0]) > int(parts[1].split()[0])
                assert sequence['pair'] == ('A and B swapped' if swapped else 'A and B in order')
            assert pairing != 'none' or sequence['pair'] == sequence['next'] == ''
    shown = describe_rows(rows)
    assert shown.count('Row ') == sum(map(len, rows))
    assert shown.count('->') + shown.count('kept') == int(batch.masked_lm_weights.sum())
