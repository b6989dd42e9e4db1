"""A vocabulary that lacks the characters of a script is reported, by script, before training."""

import dataclasses

import pytest

from bert_jax import config
from bert_jax.cli.diagnose import diagnose
from bert_jax.text.prepare import prepare, tokenizer_preview
from bert_jax.text.special_tokens import SPECIAL_TOKENS
from bert_jax.text.tokenizer import load_tokenizer
from bert_jax.text.unknown_words import find_unknown_scripts

LETTERS = 'abcdefghijklmnopqrstuvwxyz.0123456789'
ENGLISH = ['the cat sat on the mat.'] * 40
RUSSIAN = ['кот сидел на ковре.', 'кот ушел.'] * 10


@pytest.fixture
def path(tmp_path):
    tokens = [*SPECIAL_TOKENS, *LETTERS, *(f'##{letter}' for letter in LETTERS), *'кот', '##к', '##о', '##т']
    (tmp_path / 'vocab.txt').write_text('\n'.join(tokens) + '\n', 'utf-8')
    return str(tmp_path / 'vocab.txt')


def test_unknown_words_are_counted_by_script(path):
    tokenizer = load_tokenizer(path)
    assert find_unknown_scripts(tokenizer, ENGLISH) == [] == find_unknown_scripts(tokenizer, [])
    [issue] = find_unknown_scripts(tokenizer, ENGLISH + RUSSIAN)
    # Of six words, кот is known, twice, and к, о and т of the characters.
    assert '66.7% of the words with Cyrillic characters (it lacks 11 of 14 characters)' in issue.found
    assert 'Latin' not in issue.found and '--config.tokenizer.path= trains' in issue.fix
    [issue] = find_unknown_scripts(tokenizer, ENGLISH + ['Größe groß weiß'] * 5 + ['我们在学习。'] * 3)
    assert 'Latin characters (it lacks 1 of' in issue.found and 'Han' not in issue.found  # ß; three words are too few


def test_prepare_and_doctor_warn_about_a_script(tmp_path, path):
    (tmp_path / 'text.txt').write_text('\n\n'.join(ENGLISH + RUSSIAN), 'utf-8')
    data = config.Data(source=f'text:{tmp_path}/text.txt', corpus=str(tmp_path / 'corpus'), pairing='none')
    settings = config.Tokenizer(path=path)
    [warning] = prepare(data, settings, progress=False).warnings
    assert warning.startswith(f'config.tokenizer.path={path}: turns into [UNK]') and 'Cyrillic' in warning
    assert tokenizer_preview(data, settings, progress=False)['warnings'] == [warning]
    problems = diagnose(dataclasses.replace(config.Config(), data=data, tokenizer=settings))
    assert [problem.where for problem in problems if 'Cyrillic' in problem.found] == [f'config.tokenizer.path={path}']
    data = dataclasses.replace(data, corpus=str(tmp_path / 'other'))
    [warning] = prepare(data, config.Tokenizer(), initial=load_tokenizer(path), progress=False).warnings
    assert warning.startswith('the tokenizer of the initial model: turns into [UNK]')


def test_vocabulary_smaller_than_requested_is_reported_by_prepare_and_doctor(tmp_path):
    (tmp_path / 'text.txt').write_text('\n\n'.join(f'{line} {index}' for index, line in enumerate(ENGLISH)))
    data = config.Data(source=f'text:{tmp_path}/text.txt', corpus=str(tmp_path / 'corpus'), pairing='none')
    settings = config.Tokenizer(vocab_size=5000)
    summary = prepare(data, settings, progress=False)
    assert summary.vocab_size < 200 and summary.vocab_size_requested == 5000
    [warning] = summary.warnings
    assert f'has only {summary.vocab_size} of the 5,000 requested tokens; this text yields no more' in warning
    problems = diagnose(dataclasses.replace(config.Config(), data=data, tokenizer=settings))
    assert [problem.fix for problem in problems if 'requested tokens' in problem.found] == [
        f'--config.tokenizer.vocab_size={summary.vocab_size}, or add more text'
    ]
