"""Tokenizers give the same ids as `transformers`, in every process, and keep the ids of a vocabulary."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.text.tokenizer import SPECIAL_TOKENS, load_saved_tokenizer, load_tokenizer, train_tokenizer

WORDS = 'the quick brown fox jumps over lazy dogs while naïve café owners überhaupt sing 你好 世界 unbelievable running'
TEXTS = [' '.join(np.random.default_rng(i).permutation(WORDS.split())) + '.' for i in range(300)]
PROBES = [
    *TEXTS[:5],
    'Naïve CAFÉ',
    'a\u0301b zzz Ω',
    '',
    ' ',
    '你好x',
    "don't [MASK] [SEP] it",
    'x' * 101,
    'tab\tnew\u00a0line',
]
KINDS = ('wordpiece', 'sentencepiece', 'bpe')


def train(kind='wordpiece', **settings):
    size = {'wordpiece': 200, 'sentencepiece': 120, 'bpe': 384}[kind]
    return train_tokenizer(config.Tokenizer(kind=kind, vocab_size=size, **settings), iter(TEXTS))


@pytest.mark.parametrize('lowercase', [True, False])
@pytest.mark.parametrize('strip_accents', [True, False])
def test_saved_wordpiece_matches_transformers(tmp_path, lowercase, strip_accents):
    transformers = pytest.importorskip('transformers')
    tokenizer = train(lowercase=lowercase, strip_accents=strip_accents)
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    expected = [theirs(text, add_special_tokens=False, split_special_tokens=True)['input_ids'] for text in PROBES]
    assert tokenizer.encode_batch(PROBES) == expected
    assert theirs.all_special_ids and theirs.mask_token_id == tokenizer.mask_id == 4
    assert theirs.convert_ids_to_tokens(range(tokenizer.vocab_size)) == tokenizer.tokens
    assert theirs('fox', 'dogs')['token_type_ids'].count(1) == len(tokenizer.encode_batch(['dogs'])[0]) + 1
    assert theirs('the [MASK]')['input_ids'][-2] == tokenizer.mask_id


@pytest.mark.parametrize('kind', KINDS)
def test_special_tokens_come_first_and_never_come_from_text(kind):
    tokenizer = train(kind)
    assert tokenizer.tokens[:5] == list(SPECIAL_TOKENS)
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id) == tuple(
        range(5)
    )
    for ids in tokenizer.encode_batch(['[MASK][SEP] [CLS]', '[PAD]']):
        assert not {0, 2, 3, 4} & set(ids)


@pytest.mark.parametrize('kind', KINDS)
def test_saved_tokenizer_loads_unchanged(tmp_path, kind):
    tokenizer = train(kind, lowercase=False, strip_accents=True)
    tokenizer.save(tmp_path)
    loaded = load_saved_tokenizer(tmp_path)
    assert (loaded.hash, loaded.lowercase, loaded.strip_accents) == (tokenizer.hash, False, True)
    assert loaded.tokens == tokenizer.tokens and loaded.kind == kind
    assert loaded.encode_batch(PROBES) == tokenizer.encode_batch(PROBES)
    assert loaded.hash != train(kind, lowercase=True, strip_accents=True).hash


@pytest.mark.processes
@pytest.mark.parametrize('kind', KINDS)
def test_training_is_deterministic_across_processes(kind):
    command = f'from tests.text.test_tokenizer import train; print(train({kind!r}).hash)'
    environment = os.environ | {'PYTHONPATH': os.getcwd(), 'PYTHONHASHSEED': '7', 'RAYON_NUM_THREADS': '3'}
    output = subprocess.run(
        [sys.executable, '-c', command], env=environment, capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == train(kind).hash


@pytest.mark.parametrize('kind', KINDS)
def test_words_begin_at_tokens_that_do_not_continue_one(kind):
    tokenizer = train(kind)
    ids = tokenizer.encode_batch(['the quick unbelievable running fox'])[0]
    assert not tokenizer.continues_word(np.arange(5)[None]).any()
    assert np.count_nonzero(~tokenizer.continues_word(np.array([ids]))) == 5
    assert tokenizer.decode([tokenizer.cls_id, *ids, tokenizer.sep_id]) == 'the quick unbelievable running fox'


def test_vocabulary_keeps_its_ids(tmp_path):
    lines = ['dog', '##s', '[MASK]', '[unused0]', '[SEP]', '[CLS]', '[UNK]', 'é', '[PAD]']
    (tmp_path / 'vocab.txt').write_text('\r\n'.join(lines) + '\r\n', 'utf-8')
    tokenizer = load_tokenizer(tmp_path / 'vocab.txt', lowercase=True, strip_accents=False)
    assert tokenizer.tokens == lines
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.mask_id) == (8, 6, 2)
    assert tokenizer.encode_batch(['Dogs É cat']) == [[0, 1, 7, 6]]


def test_error_names_the_problem_of_a_vocabulary(tmp_path):
    path = tmp_path / 'vocab.txt'
    for text, message in [
        ('[PAD]\n[UNK]\n[CLS]\na\n', r'has no \[SEP\], \[MASK\]'),
        ('\n'.join([*SPECIAL_TOKENS, 'a', 'b', 'a']), 'vocab.txt:8: repeats line 6'),
    ]:
        path.write_text(text)
        with pytest.raises(BadInput, match=message):
            load_tokenizer(path, lowercase=True, strip_accents=False)
    for name, message in (('a.model', 'is not a'), ('tokenizer.json', 'is not JSON')):
        (tmp_path / name).write_text('nonsense')
        with pytest.raises(BadInput, match=message):
            load_tokenizer(tmp_path / name, lowercase=True, strip_accents=False)
    with pytest.raises(BadInput, match='does not exist'):
        load_tokenizer(tmp_path / 'nowhere', lowercase=True, strip_accents=False)
    train_tokenizer(config.Tokenizer(vocab_size=100), iter(['ab cd'])).save(tmp_path / 'sound')
    content = json.loads((tmp_path / 'sound' / 'tokenizer.json').read_text())
    content['model']['vocab'] = {}  # the special tokens are still added tokens
    (tmp_path / 'tokenizer.json').write_text(json.dumps(content))
    with pytest.raises(BadInput, match=r'has no \[UNK\] in its vocabulary'):
        load_tokenizer(tmp_path / 'tokenizer.json', lowercase=True, strip_accents=False)


def test_training_stops_at_sample_bytes():
    def endless():
        while True:
            yield from TEXTS

    settings = config.Tokenizer(vocab_size=100, sample_bytes=5000)
    assert train_tokenizer(settings, endless()).vocab_size <= 100
    with pytest.raises(BadInput, match='no text'):
        train_tokenizer(settings, iter([]))
