"""The page about a corpus shows its counts and what was dropped, needs no network, and contains no text."""

import json
import re
from pathlib import Path

import pytest

from bert_jax import config
from bert_jax.report.corpus import write_corpus_report
from bert_jax.text.prepare import prepare
from tests.support.commands import run
from tests.support.pages import read_page

SECRET = 'zanzibar'  # occurs once, so that it is no frequent token
SENTENCE = 'The cat that sat on the mat will be with the dog of the house and have to leave.'


@pytest.fixture(scope='module')
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp('corpus')
    documents = [f'{SENTENCE} {index} {SENTENCE}\nAnother line of words number {index}.' for index in range(40)]
    documents += [f'мир {index} труд' for index in range(20)]
    documents += [
        '{ code }',
        f'Read our {SECRET} privacy policy today\nA line that stays here forever.',
        '<b>$x$</b> a b.',
    ]
    (directory / 'text.txt').write_text('\n\n'.join(documents))
    data = config.Data(
        source=f'text:{directory}/text.txt',
        corpus=str(directory / 'corpus'),
        languages=('*',),
        quality_rules=('c4_policy', 'c4_curly_bracket'),
    )
    prepare(data, config.Tokenizer(vocab_size=200), progress=False)
    return directory / 'corpus'


def test_page_shows_counts_scripts_languages_and_reasons(corpus: Path) -> None:
    page = read_page(write_corpus_report(str(corpus)))
    text = ' '.join(' '.join(page.text).split())
    manifest = json.loads((corpus / 'manifest.json').read_text())
    for expected in (
        f'{manifest["splits"]["train"]["tokens"]:,}',
        'Latin',
        'Cyrillic',
        'documents with a curly bracket, as in code',
        'C4, section 2.2',
        'lines about cookies, privacy policy or terms of use',
        'c4_policy',
        'tokens per word',
        'do not occur',
        'data.quality_rules',
        'median',
    ):
        assert expected in text, expected
    for code in manifest['languages']:
        assert code in page.text
    assert sum(tag == 'svg' for tag, _ in page.elements) == 2


def test_page_is_self_contained_and_the_same_each_time(corpus: Path) -> None:
    first = write_corpus_report(str(corpus)).read_text()
    assert write_corpus_report(str(corpus)).read_text() == first
    assert not re.search(r'(src|href)="(?!#)', first) and '@import' not in first and 'url(http' not in first
    assert 'prefers-color-scheme: dark' in first and '<script' not in first
    assert not re.search('#0a0[bc]', first)  # placeholders of colours


def test_page_contains_no_text(corpus: Path) -> None:
    page = write_corpus_report(str(corpus)).read_text()
    assert SECRET not in page and 'sat on' not in page and 'Another line' not in page


def test_corpus_of_an_earlier_version_has_a_page(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bert_jax.report import corpus as module

    opened = module.load_corpus(str(corpus))
    for name in ('dropped_characters', 'languages', 'scripts', 'characters_read', 'train_sources'):
        del opened.manifest[name]
    monkeypatch.setattr(module, 'load_corpus', lambda directory: opened)
    page = read_page(write_corpus_report(str(tmp_path)))
    assert 'Scripts' not in page.text and 'Sizes' in page.text


def test_prepare_writes_the_page_and_shows_dropped_text_only_on_request(corpus: Path, capsys) -> None:
    (corpus / 'report.html').unlink(missing_ok=True)
    flags = [f'--config.data.source=text:{corpus.parent}/text.txt', f'--config.data.corpus={corpus}']
    flags += ['--config.data.languages=("*",)', '--config.data.quality_rules=("c4_policy","c4_curly_bracket")']
    flags += ['--config.tokenizer.vocab_size=200']
    assert run(['prepare', '--config=bert.py:tiny', *flags], corpus.parent) == 0
    shown = capsys.readouterr()
    assert f'{corpus}/report.html' in shown.out and (corpus / 'report.html').is_file()
    assert SECRET not in shown.out + shown.err
    assert run(['prepare', '--config=bert.py:tiny', *flags, '--show_dropped=5'], corpus.parent) == 0
    out = capsys.readouterr().out
    assert 'c4_policy: lines about cookies' in out and f'  1  Read our {SECRET} privacy policy today' in out
    assert run(['prepare', '--config=bert.py:tiny', *flags, '--show_dropped=5', '--json'], corpus.parent) == 0
    result = json.loads(capsys.readouterr().out)
    assert result['dropped_examples'] == {
        'c4_curly_bracket': ['{ code }'],
        'c4_policy': [f'Read our {SECRET} privacy policy today'],
    }
    assert result['report'] == f'{corpus}/report.html' and result['dropped_characters']['c4_curly_bracket'] == 8
