"""A tag belongs to the first token of its word, and every word is predicted once."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bert_jax import config
from bert_jax.config.finetuning import Task
from bert_jax.errors import BadInput
from bert_jax.finetune.rows import TaskStream
from bert_jax.finetune.tags import TaggingSplit, read_tags
from bert_jax.text.tokenizer import train_tokenizer
from tests.support.models import read_tokenizer


def _open(tmp_path: Path, content: str, length: int = 16, **task: object) -> TaggingSplit:
    (tmp_path / 'a.txt').write_text(content)
    settings = Task(kind='tagging', directory=str(tmp_path), text='words', label='tags', sequence_length=length, **task)
    return read_tags('conll:a.txt', settings, read_tokenizer(tmp_path), None)


CONLL = '-DOCSTART- -X- O\n\nada N B-PER\nxyz N I-PER\nin P O\n\nthe D O\nqr5 N B-LOC\n. . O\n'


def test_only_first_tokens_of_words_have_tags(tmp_path: Path) -> None:
    split, tokenizer = _open(tmp_path, CONLL), read_tokenizer(tmp_path)
    assert split.labels == ('O', 'B-LOC', 'B-PER', 'I-PER')
    assert split.gold == [['B-PER', 'I-PER', 'O'], ['O', 'B-LOC', 'O']]
    stream = TaskStream(split.rows, batch_size=2, seed=None, sequence_length=16, pad_id=tokenizer.pad_id)
    batch = stream.batch(0)
    for ids, labels, weights, gold in zip(*batch[:1], batch.labels, batch.weights, split.gold, strict=True):
        pieces = [tokenizer.token(token) for token in ids]
        starts = [n for n, piece in enumerate(pieces) if not piece.startswith(('##', '['))]
        assert np.flatnonzero(weights).tolist() == starts
        assert [split.labels[label] for label in labels[starts]] == gold
    assert [tokenizer.token(token) for token in batch.input_ids[0, :8]] == (
        ['[CLS]', 'ada', 'x', '##y', '##z', 'in', '[SEP]', '[PAD]']
    )


def test_tags_of_byte_level_bpe_follow_the_blank_before_a_word(tmp_path: Path) -> None:
    """The rows have the ids of the sentence as a text, on whose words' first tokens the tags are."""
    sentence, tags = 'Ada xyzzy in the qr5 .'.split(), ['B-PER', 'I-PER', 'O', 'O', 'B-LOC', 'O']
    (tmp_path / 'a.txt').write_text(''.join(f'{word} {tag}\n' for word, tag in zip(sentence, tags, strict=True)))
    tokenizer = train_tokenizer(config.Tokenizer(kind='bpe', vocab_size=320), iter(['in the town of the fox'] * 9))
    settings = Task(kind='tagging', directory=str(tmp_path), text='words', label='tags', sequence_length=64)
    split = read_tags('conll:a.txt', settings, tokenizer, None)
    [ids] = tokenizer.encode_batch([' '.join(sentence)])
    assert split.rows.ids.tolist() == [tokenizer.cls_id, *ids, tokenizer.sep_id]
    starts = split.word_starts[0]
    assert [tokenizer.decode([index])[0] for index in split.rows.ids[starts]] == ['A', *' ' * 5]
    assert [split.labels[label] for label in split.rows.labels[starts]] == tags
    assert (np.delete(split.rows.labels, starts) == -1).all()


def test_word_without_tokens_becomes_unk(tmp_path: Path) -> None:
    split = _open(tmp_path, 'ada B-PER\n\u200d O\nfilm O\n')
    assert len(split.word_starts[0]) == 3 and split.rows.labels.tolist() == [-1, 1, 0, 0, -1]


def test_every_word_of_a_long_sentence_is_predicted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = [''.join(rng.choice([*'xyz'], rng.integers(1, 9))) for _ in range(60)]
    tags = [f'B-{len(word)}' for word in words]
    split = _open(tmp_path, ''.join(f'{word} {tag}\n' for word, tag in zip(words, tags, strict=True)), length=10)
    assert len(split.rows) > 20 and split.num_examples == 1 and split.counts['sentence split into windows'] == 1
    assert np.diff(split.rows.starts).max() <= 10
    # The outputs are the label of each token.
    outputs = np.zeros((len(split.rows), 10, len(split.labels)), np.float32)
    for row, (start, stop) in enumerate(zip(split.rows.starts, split.rows.starts[1:], strict=False)):
        labels = split.rows.labels[start:stop]
        outputs[row, np.flatnonzero(labels >= 0), labels[labels >= 0]] = 1
    assert split.predictions(outputs) == [tags] == split.gold
    assert split.metrics(['entity_f1', 'token_accuracy'], [tags]) == {'entity_f1': 1, 'token_accuracy': 1}


def test_words_longer_than_a_window_are_cut_and_counted(tmp_path: Path) -> None:
    split = _open(tmp_path, f'{"xy" * 20} B-X\nada O\n', length=10)
    assert split.counts == Counter({'word cut': 1, 'sentence split into windows': 1})
    assert np.diff(split.rows.starts).tolist() == [10, 3]


def test_language_prefix_is_removed(tmp_path: Path) -> None:
    plain = _open(tmp_path, 'ada\tB-PER\n')
    assert _open(tmp_path, 'en:ada\tB-PER\n', token_prefix='en:').rows.content_hash() == plain.rows.content_hash()


@pytest.mark.parametrize(
    'source, content, words',
    [
        ('conll:a.txt', 'ada\n', 'a.txt:1: has one column'),
        ('jsonl:a.txt', '{"words": ["ada", "bob"], "tags": ["O"]}\n', 'has 2 words and 1 tag'),
        ('jsonl:a.txt', '{"words": ["ada"], "tag": ["O"]}\n', "a.txt:1: has no column 'tags'"),
        ('conll:b.txt', '', 'b.txt: does not exist'),
    ],
)
def test_invalid_record_is_reported_with_its_position(source: str, content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / 'a.txt').write_text(content)
    task = Task(kind='tagging', directory=str(tmp_path), text='words', label='tags')
    with pytest.raises(BadInput) as caught:
        read_tags(source, task, read_tokenizer(tmp_path), None)
    assert words in str(caught.value)
