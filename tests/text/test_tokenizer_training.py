"""Training a tokenizer: which words are ignored, what is printed, and what is reused for the corpus."""

import dataclasses
import json
import re
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from bert_jax import activity, config
from bert_jax.__main__ import main
from bert_jax.errors import BadInput
from bert_jax.text import job_tokenizer
from bert_jax.text.corpus import load_corpus
from bert_jax.text.prepare import prepare, tokenizer_preview
from bert_jax.text.tokenizer import Tokenizer, train_tokenizer
from tests.support.texts import write_text

TEXTS = ['the quick brown fox jumps over the lazy dogs.', 'a naïve café owner sings 한국어'] * 30


@pytest.fixture
def data(tmp_path: Path) -> config.Data:
    write_text(tmp_path / 'text.txt')
    return config.Data(source=f'text:{tmp_path}/text.txt', corpus=str(tmp_path / 'corpus'))


def test_words_too_long_for_a_lookup_are_not_trained_on() -> None:
    """Training time grows with the square of their length: a minute for one word of 200,000 characters."""
    settings = config.Tokenizer(vocab_size=150, lowercase=True, strip_accents=True)
    expected = train_tokenizer(settings, iter(TEXTS))
    decomposed = unicodedata.normalize('NFD', '한' * 34)  # 34 syllables, 102 characters after decomposition
    long_words = ['zx' * 100_000, 'qy' * 51, '한' * 34, decomposed]
    start = time.monotonic()
    found = train_tokenizer(settings, iter([*TEXTS, *(word for word in long_words for _ in range(3))]))
    assert time.monotonic() - start < 20
    assert found.tokens == expected.tokens
    assert found.encode_batch(long_words) == [[found.unk_id]] * len(long_words)
    between = train_tokenizer(settings, iter([*TEXTS, *[f'{"zx" * 51},kiwi-{"zx" * 51}'] * 9]))
    assert 'kiwi' in between.tokens and not any('zx' in token for token in between.tokens)
    assert 'ab' * 50 in train_tokenizer(settings, iter(['ab' * 50] * 99)).tokens  # exactly the length limit of lookups


def test_training_reports_its_elapsed_time(data: config.Data, monkeypatch, capsys) -> None:
    def train(*arguments) -> Tokenizer:
        started = time.monotonic()
        while 'training the tokenizer (' not in capsys.readouterr().err:
            assert time.monotonic() - started < 10, 'nothing was printed'
            time.sleep(0.02)
        return train_tokenizer(*arguments)

    monkeypatch.setattr(activity, '_FIRST_GAP_S', 0.05)
    monkeypatch.setattr(activity, '_TICK_S', 0.01)
    monkeypatch.setattr(job_tokenizer, 'train_tokenizer', train)
    prepare(data, config.Tokenizer(vocab_size=100))


@pytest.mark.parametrize('kind', ['wordpiece', 'sentencepiece', 'bpe'])
def test_tokenizer_of_a_preview_is_reused_for_the_corpus(data: config.Data, kind: str, monkeypatch, capsys) -> None:
    settings = config.Tokenizer(kind=kind, vocab_size=100)
    expected = prepare(dataclasses.replace(data, corpus=f'{data.corpus}-alone'), settings, progress=False)
    preview = tokenizer_preview(data, settings)
    [kept] = (Path(data.corpus).parent / '.corpus.partial').iterdir()
    assert f'saved in {kept}/tokenizer' in capsys.readouterr().err and not Path(data.corpus).exists()

    def train(*_: object) -> None:
        raise AssertionError('trained once more')

    monkeypatch.setattr(job_tokenizer, 'train_tokenizer', train)
    assert tokenizer_preview(data, settings, progress=False) == preview
    other_case = dataclasses.replace(settings, lowercase=kind == 'bpe')
    for changed in (dataclasses.replace(settings, vocab_size=101), other_case):
        with pytest.raises(AssertionError, match='trained once more'):
            tokenizer_preview(data, changed, progress=False)
    summary = prepare(data, settings)
    assert f'reused from {kept}/tokenizer' in capsys.readouterr().err
    assert (summary.tokens, summary.vocab_size) == (expected.tokens, preview['vocab_size'])
    assert not list(Path(data.corpus).parent.glob('.corpus.*'))


def test_tokenizer_of_a_preview_is_retrained_if_the_text_changes(data: config.Data, tmp_path: Path) -> None:
    settings = config.Tokenizer(vocab_size=100)
    tokenizer_preview(data, settings, progress=False)
    write_text(tmp_path / 'text.txt', num_documents=70, seed=1)
    alone = prepare(dataclasses.replace(data, corpus=f'{data.corpus}-alone'), settings, progress=False)
    assert prepare(data, settings, progress=False).tokens == alone.tokens


@pytest.mark.parametrize('vocab_size, num_unused', [(330, 0), (384, 5), (5000, 70)])
def test_bpe_vocabulary_is_a_multiple_of_64_with_named_unused_tokens(vocab_size: int, num_unused: int) -> None:
    settings = config.Tokenizer(kind='bpe', vocab_size=vocab_size, num_unused=num_unused)
    found = train_tokenizer(settings, iter(TEXTS))
    unused = [token for token in found.tokens if token.startswith('[unused')]
    assert found.vocab_size % 64 == 0 and found.vocab_size <= vocab_size + 63
    assert num_unused <= len(unused) < num_unused + 64
    assert found.tokens[-len(unused) :] == [f'[unused{index}]' for index in range(len(unused))] or not unused
    assert found.is_special.sum() == 5 + len(unused)
    text = 'The naïve fox sings [unused0] 한국어 \U0001f600 \x07 [MASK]'
    [ids] = found.encode_batch([text])
    assert found.decode(ids) == text and not found.is_special[ids].any()  # cased, and nothing is unknown
    lowered = train_tokenizer(dataclasses.replace(settings, lowercase=True, strip_accents=True), iter(TEXTS))
    assert lowered.decode(lowered.encode_batch(['Naïve FOX'])[0]) == 'naive fox'
    assert lowered.lowercase and lowered.strip_accents and not (found.lowercase or found.strip_accents)


@pytest.mark.parametrize(
    'settings, words',
    [
        ({'kind': 'bpe', 'vocab_size': 256}, 'tokenizer.vocab_size: is 256'),
        ({'kind': 'bpe', 'vocab_size': 300, 'num_unused': 60}, 'at least 321'),
        ({'num_unused': 10}, "tokenizer.num_unused: is 10, and tokenizer.kind is 'wordpiece'"),
    ],
)
def test_settings_that_no_bpe_vocabulary_fits_are_rejected(settings: dict, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        config.resolve({'tokenizer': settings})


def test_corpus_of_a_tokenizer_that_keeps_blanks_has_the_ids_of_its_lines(tmp_path: Path) -> None:
    lines = ['One fox. Two dogs!  Three cats?', '你好。世界！ 很好。', 'Naïve café. “Yes.” No', 'alone']
    (tmp_path / 'text.txt').write_text('\n'.join(lines))
    data = config.Data(
        source=f'text:{tmp_path}/text.txt', corpus=str(tmp_path / 'corpus'), validation_fraction=0, pairing='none'
    )
    prepare(data, config.Tokenizer(kind='bpe', vocab_size=320), progress=False)
    corpus = load_corpus(data.corpus)
    expected = [' '.join(line.split()) for line in lines]
    ids = corpus.train.gather(np.arange(corpus.train.num_tokens)).tolist()
    assert ids == [index for row in corpus.tokenizer.encode_batch(expected) for index in row]
    assert len(corpus.train.sentences) - 1 == 10


def test_sentences_skipped_by_sentencepiece_are_reported(capsys) -> None:
    settings = config.Tokenizer(kind='sentencepiece', vocab_size=100)
    long = 'é' * 9_000  # 18,000 bytes
    train_tokenizer(settings, iter([*TEXTS * 20, long]))
    assert (
        'warning: SentencePiece skips 1 sentence of more than 16,384 bytes, 27% of the training sample'
        in capsys.readouterr().err
    )
    train_tokenizer(settings, iter(TEXTS))
    assert 'warning' not in capsys.readouterr().err


@pytest.fixture
def command(data: config.Data, tmp_path: Path) -> list[str]:
    """A `prepare` command for `data`."""
    (tmp_path / 'pretrain.py').write_text(
        'import bert_jax.config\n\n\ndef get_config():\n    return bert_jax.config.bert()\n'
    )
    flags = [f'--config.data.{name}={getattr(data, name)}' for name in ('source', 'corpus')]
    return ['bert_jax', 'prepare', f'--config={tmp_path}/pretrain.py', '--workers=1', *flags]


@pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')  # in ml_collections
def test_prepare_prints_an_aligned_summary(command: list[str], tmp_path: Path, capsys) -> None:
    with (tmp_path / 'text.txt').open('a') as file:
        file.write('\none document that occurs twice\n' * 2)
    assert main([*command, '--config.tokenizer.vocab_size=100']) == 0
    out, err = capsys.readouterr()
    title, train, validation, tokenizer, cleaned, *_ = out.splitlines()
    assert title.startswith(f'Corpus {tmp_path}/corpus, prepared in ')
    assert re.fullmatch(r'  training: +[0-9]+ documents, +[0-9]+ sentences, +[0-9,]+ tokens', train)
    assert re.fullmatch(r'  validation: +[0-9]+ documents, +[0-9]+ sentences, +[0-9,]+ tokens', validation)
    assert len(train) == len(validation)
    assert tokenizer.startswith('  tokenizer:  100 tokens in the vocabulary, ')
    assert cleaned == '  cleaned:    1 duplicate document'
    assert [line.split(' ')[0] for line in err.splitlines()] == ['reading:', 'tokenizer:', 'encoding:']


@pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')  # in ml_collections
def test_tokenizer_only_prints_how_words_are_split(command: list[str], capsys) -> None:
    assert main([*command, '--config.tokenizer.vocab_size=100', '--tokenizer_only', '--json']) == 0
    preview = json.loads(capsys.readouterr().out)
    assert main([*command, '--config.tokenizer.vocab_size=100', '--tokenizer_only']) == 0
    out = capsys.readouterr().out
    assert out.startswith('Tokenizer: wordpiece, 100 tokens\n')
    for word, subwords in preview['splits'].items():
        assert re.search(f'^  {word} +{re.escape(" ".join(subwords))}$', out, re.MULTILINE)


@pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')  # in ml_collections
@pytest.mark.parametrize('kind', ['wordpiece', 'sentencepiece', 'bpe'])
def test_vocabulary_smaller_than_requested_is_reported(
    data: config.Data, command: list[str], kind: str, capsys
) -> None:
    command = [*command, '--json', f'--config.tokenizer.kind={kind}']
    for more in (['--tokenizer_only'], [], []):  # trains it; reuses it; reuses the corpus
        assert main([*command, '--config.tokenizer.vocab_size=5000', *more]) == 0
        out, err = capsys.readouterr()
        result = json.loads(out)
        assert result['vocab_size'] < 1000 and result['vocab_size_requested'] == 5000
        [warning] = result['warnings']
        assert f'has only {result["vocab_size"]:,} of the 5,000 requested tokens' in warning
        assert f'warning: {warning}' in err
    enough = prepare(
        dataclasses.replace(data, corpus=f'{data.corpus}-enough'),
        config.Tokenizer(kind=kind, vocab_size=100),
        progress=False,
    )
    assert (enough.vocab_size_requested, enough.warnings) == (100, [])
