"""Tokenizer files are untrusted: whatever they contain, loading quickly returns a tokenizer or an error."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bert_jax import config
from bert_jax.__main__ import main
from bert_jax.errors import BadInput
from bert_jax.text import sentencepiece, tokenizer, vocabulary
from bert_jax.text.tokenizer import SPECIAL_TOKENS, load_tokenizer, train_tokenizer

TEXTS = ['the quick brown fox jumps over the lazy dog'] * 20
DEEP = '[' * 100_000 + ']' * 100_000
MANY_DIGITS = '9' * 400


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    train_tokenizer(config.Tokenizer(vocab_size=100, strip_accents=True), iter(TEXTS)).save(tmp_path)
    return tmp_path


def _set_id(name: str, value: int) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        if name == 'vocab':
            content['model']['vocab']['the'] = value
        elif name == 'special':
            content['added_tokens'][-1]['id'] = value
        else:
            content['added_tokens'].append(content['added_tokens'][0] | {'id': value, 'content': '<new>'})

    return change


@pytest.mark.parametrize('value', [4_294_967_290, 80_000_000, 5_000, -1, 10**400, 2**64, True, 1.5, '7', None])
@pytest.mark.parametrize('name', ['vocab', 'special', 'added'])
def test_id_far_above_the_number_of_tokens_is_rejected_at_once(name: str, value: Any, saved: Path) -> None:
    path = saved / 'tokenizer.json'
    content = json.loads(path.read_text('utf-8'))
    _set_id(name, value)(content)
    path.write_text(json.dumps(content), 'utf-8')
    start = time.monotonic()
    with pytest.raises(BadInput, match=r'tokenizer\.json: (has the id .* in a vocabulary of|contains a number of)'):
        load_tokenizer(saved)
    assert time.monotonic() - start < 1


def test_small_gaps_in_ids_are_allowed(saved: Path) -> None:
    path = saved / 'tokenizer.json'
    content = json.loads(path.read_text('utf-8'))
    size = len(content['model']['vocab'])
    content['model']['vocab']['late'] = size + 7
    path.write_text(json.dumps(content), 'utf-8')
    found = load_tokenizer(path)
    assert found.vocab_size == size + 8 and found.token(size) == f'[unused-id-{size}]'


@pytest.mark.parametrize(
    'text', [DEEP, '{"a": ' * 100_000, f'{{"model": {DEEP}}}', MANY_DIGITS, '9' * 5000, '[]', '{', '']
)
@pytest.mark.parametrize('name', ['tokenizer.json', 'tokenizer_config.json', 'config.json'])
def test_unreadable_json_is_rejected(name: str, text: str, saved: Path) -> None:
    if name != 'tokenizer.json':
        (saved / 'tokenizer.json').unlink()
        (saved / 'tokenizer_config.json').unlink()
    (saved / name).write_text(text)
    with pytest.raises(BadInput, match=name.replace('.', r'\.')):
        load_tokenizer(saved)


def test_number_with_too_many_digits_is_rejected(saved: Path) -> None:
    path = saved / 'tokenizer.json'
    whole = path.read_text('utf-8')
    for digits in (400, 5000):
        path.write_text(whole.replace('"max_input_chars_per_word": 100', f'"max_input_chars_per_word": {"9" * digits}'))
        with pytest.raises(BadInput, match=r'tokenizer\.json: contains a number of'):
            load_tokenizer(saved)
    path.write_text(whole.replace('"max_input_chars_per_word": 100', '"max_input_chars_per_word": 1000000000'))
    with pytest.raises(BadInput, match='max_input_chars_per_word is 1000000000'):  # time grows with its square
        load_tokenizer(saved)


def _with_pattern(saved: Path, pattern: str) -> Path:
    path = saved / 'tokenizer.json'
    content = json.loads(path.read_text('utf-8'))
    split = {'type': 'Split', 'pattern': {'Regex': pattern}, 'behavior': 'Isolated', 'invert': False}
    content['pre_tokenizer'] = split
    path.write_text(json.dumps(content), 'utf-8')
    return path


def test_endless_pattern_is_reported_without_the_text(saved: Path, capfd) -> None:
    found = load_tokenizer(_with_pattern(saved, '(x+)+$'))
    assert found.encode_batch(['the fox'])[0]
    for use in (found.encode_batch, found.encode_with_offsets):
        with pytest.raises(BadInput, match=r'tokenizer\.json: has rules that fail on this text') as caught:
            use(['secret' + 'x' * 40 + 'y'])
        assert 'secret' not in str(caught.value)
    capfd.readouterr()
    with pytest.raises(BadInput, match=r'is not a tokenizer\.json'):
        load_tokenizer(_with_pattern(saved, '(x'))


@pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')  # in ml_collections
def test_prepare_reports_endless_pattern_before_writing(saved: Path, capfd) -> None:
    path = _with_pattern(saved, '(x+)+$')
    (saved / 'text.txt').write_text('x' * 40 + 'y\n')
    (saved / 'pretrain.py').write_text(
        'import bert_jax.config\n\ndef get_config():\n    return bert_jax.config.bert("tiny")\n'
    )
    command = f'prepare --config={saved}/pretrain.py --config.data.source=text:{saved}/text.txt --workers=1'.split()
    command += [f'--config.tokenizer.path={path}', f'--config.data.corpus={saved}/corpus']
    assert main(['bert_jax', *command]) == 2
    assert 'has rules that fail on this text' in capfd.readouterr().err
    assert not list(saved.glob('.corpus*')) and not (saved / 'corpus').exists()


def test_files_larger_than_any_vocabulary_are_rejected(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / 'vocab.txt'
    with path.open('wb') as file:
        file.truncate(1 << 40)  # a sparse file
    for name in ('vocab.txt', 'tokenizer.json', 'a.model'):
        path = path.rename(tmp_path / name)
        with pytest.raises(BadInput, match='has 1,099,511,627,776 bytes'):
            load_tokenizer(path)
    path.unlink()
    for module in (tokenizer, sentencepiece, vocabulary):
        monkeypatch.setattr(module, 'MAX_TOKENS', 100)
    wanted = config.Tokenizer(kind='sentencepiece', vocab_size=64)
    small = train_tokenizer(wanted, iter(TEXTS))
    small.save(tmp_path / 'saved')
    for module in (tokenizer, sentencepiece, vocabulary):
        monkeypatch.setattr(module, 'MAX_TOKENS', small.vocab_size - 1)
    tokenizer._LAST_LOADED.clear()
    with pytest.raises(BadInput, match=r'sentencepiece\.model: has .* pieces'):
        load_tokenizer(tmp_path / 'saved')
    lines = [*SPECIAL_TOKENS, *(f't{i}' for i in range(100))]
    (tmp_path / 'vocab.txt').write_text('\n'.join(lines) + '\n')
    with pytest.raises(BadInput, match='has 105 lines'):
        load_tokenizer(tmp_path / 'vocab.txt')


@pytest.mark.parametrize('field', ['charsmap', 'score', 'type', 'piece'])
def test_damaged_sentencepiece_model_is_rejected_or_works(field: str, tmp_path: Path) -> None:
    wanted = config.Tokenizer(kind='sentencepiece', vocab_size=64)
    train_tokenizer(wanted, iter(TEXTS)).save(tmp_path)
    path = tmp_path / 'sentencepiece.model'
    for value in range(6):
        proto = sentencepiece._parse(path.read_bytes(), 'model')
        if field == 'charsmap':
            proto.normalizer_spec.precompiled_charsmap = [b'\x00', b'\xff' * 8, b'\xff\xff\xff\x7f', b'x' * 999][
                value % 4
            ]
        elif field == 'score':
            proto.pieces[value + 5].score = float(['nan', 'inf', '-inf', '1e38', '-1e38', '0'][value])
        elif field == 'type':
            proto.pieces[value + 5].type = value + 1
        else:
            proto.pieces[value + 5].piece = ['', '[PAD]', '\x00', '▁', 'x' * 100_000, '\ufffd'][value]
        (tmp_path / f'{value}.model').write_bytes(proto.SerializeToString())
        try:
            load_tokenizer(tmp_path / f'{value}.model').encode_batch(['the quick fox', '▁ x', '[PAD]'])
        except BadInput as error:
            assert str(error)
