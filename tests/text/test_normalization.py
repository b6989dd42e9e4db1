"""The normalization of a provided vocabulary comes from neighbouring files, or is inferred from its tokens."""

import dataclasses
import json
import unicodedata
from pathlib import Path

import pytest

from bert_jax import config
from bert_jax.cli.diagnose import diagnose
from bert_jax.config import finetuning
from bert_jax.errors import BadInput
from bert_jax.finetune.start import prepare_start
from bert_jax.text.corpus import load_corpus
from bert_jax.text.encode import Encoder
from bert_jax.text.normalization import find_normalization_issues
from bert_jax.text.prepare import prepare, tokenizer_preview
from bert_jax.text.tokenizer import (
    SPECIAL_TOKENS,
    WordPiece,
    load_configured_tokenizer,
    load_saved_tokenizer,
    load_tokenizer,
    prefer_saved_tokenizer,
    train_tokenizer,
)
from bert_jax.text.wordpiece import bert_backend

LETTERS = 'abcdefghijklmnopqrstuvwxyz'
VOCABULARIES = {  # by (lowercase, strip_accents) of their training text
    (True, True): [*LETTERS, *'0123456789.', 'cafe', 'sao'],
    (True, False): [*LETTERS, 'é', '##é', 'café', 'ã'],
    (False, False): [*LETTERS, *LETTERS.upper(), 'Café', 'é', '##é', 'ã'],
}
TEXTS = ['Café in São Paulo', 'ÉCOLE école cafe', 'the CAFE of a sea']


def write_vocabulary(directory: Path, tokens: list[str], name: str = 'vocab.txt', **settings) -> Path:
    """Writes a vocab.txt; with settings, also a tokenizer_config.json."""
    directory.mkdir(exist_ok=True)
    continued = [f'##{letter}' for letter in tokens if len(letter) == 1]
    path = directory / name
    path.write_text(''.join(f'{token}\n' for token in dict.fromkeys([*SPECIAL_TOKENS, *tokens, *continued])), 'utf-8')
    if settings:
        (directory / 'tokenizer_config.json').write_text(json.dumps(settings))
    return path


def write_text(path: Path, *documents: str) -> None:
    path.write_text('\n\n'.join(f'{document} {i}' for i in range(8) for document in documents), 'utf-8')


def flags_of(tokenizer) -> tuple[bool, bool]:
    return tokenizer.lowercase, tokenizer.strip_accents


@pytest.mark.parametrize('flags', VOCABULARIES)
def test_normalization_is_inferred_from_tokens_and_printed(flags, tmp_path: Path, capsys) -> None:
    path = write_vocabulary(tmp_path / 'own', VOCABULARIES[flags])
    found = load_tokenizer(path)
    assert flags_of(found) == flags
    assert f'{path}: {"un" if flags[0] else ""}cased' in capsys.readouterr().err
    assert not any(found.unk_id in ids for ids in found.encode_batch([TEXTS[0]]))
    added = write_vocabulary(tmp_path / 'added', [*VOCABULARIES[True, True], *(f'w{n}' for n in range(300)), 'BRCA1é'])
    assert flags_of(load_tokenizer(added)) == (True, True)  # an appended word changes nothing


def test_bare_vocabulary_matches_bert_tokenizer_fast(tmp_path: Path) -> None:
    transformers = pytest.importorskip('transformers')
    for flags in [(True, True), (False, False)]:
        path = write_vocabulary(tmp_path / str(flags), VOCABULARIES[flags])
        theirs = transformers.BertTokenizerFast(str(path), do_lower_case=flags[0])
        assert load_tokenizer(path).encode_batch(TEXTS) == theirs(TEXTS, add_special_tokens=False)['input_ids']


@pytest.mark.parametrize('kind', ['tokenizer_config.json', 'tokenizer.json', 'config.json'])
@pytest.mark.parametrize('flags', [(True, False), (False, False), (True, True)])
def test_normalization_is_read_from_neighbouring_files(flags, kind: str, tmp_path: Path, capsys) -> None:
    path = write_vocabulary(tmp_path / 'a', VOCABULARIES[False, False])
    lowercase, strip_accents = flags
    if kind == 'tokenizer.json':
        tokens = {token: index for index, token in enumerate(path.read_text('utf-8').split('\n')[:-1])}
        backend = bert_backend(tokens, lowercase=lowercase, strip_accents=strip_accents, compose=False)
        WordPiece(backend).save(tmp_path / 'saved')
        (tmp_path / 'saved' / kind).rename(path.parent / kind)
    else:
        (path.parent / kind).write_text(json.dumps({'do_lower_case': lowercase, 'strip_accents': strip_accents}))
    for location in (path, path.parent):
        assert flags_of(load_tokenizer(location)) == flags
    capsys.readouterr()
    assert flags_of(load_tokenizer(path, lowercase=not lowercase)) == (not lowercase, strip_accents)
    assert f'is used anyway: {kind} says {lowercase}' in capsys.readouterr().err
    assert flags_of(load_tokenizer(path.parent, lowercase=not lowercase)) == flags
    assert f'is ignored: {kind} says {lowercase}' in capsys.readouterr().err


def test_setting_that_is_not_a_boolean_is_rejected(tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path / 'a', VOCABULARIES[True, True], do_lower_case='no')
    with pytest.raises(BadInput, match=r'tokenizer_config\.json: do_lower_case is of type str'):
        load_tokenizer(path)


@pytest.mark.parametrize('lowercase', [True, False])
def test_sentencepiece_normalization_is_inferred_from_pieces(lowercase: bool, tmp_path: Path) -> None:
    wanted = config.Tokenizer(kind='sentencepiece', vocab_size=64, lowercase=lowercase, strip_accents=lowercase)
    train_tokenizer(wanted, iter([*TEXTS, 'Zoë is there'] * 30)).save(tmp_path / 'saved')
    path = tmp_path / 'alone.model'
    (tmp_path / 'saved' / 'sentencepiece.model').rename(path)
    assert flags_of(load_tokenizer(path)) == (lowercase, lowercase)
    settings = {'do_lower_case': True, 'keep_accents': True}
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps(settings))
    assert flags_of(load_tokenizer(path)) == (True, False)


# --- Decomposed text. ---


@pytest.mark.parametrize('kind', ['wordpiece', 'sentencepiece'])
def test_decomposed_and_composed_text_have_the_same_ids(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip('transformers')
    texts = ['école à São', 'ǰ 한국어 a≠b x≮y', *TEXTS]
    decomposed = [unicodedata.normalize('NFD', text) for text in texts]
    trained = train_tokenizer(config.Tokenizer(kind=kind, vocab_size=130), iter(texts * 40))
    assert flags_of(trained) == (True, False)
    assert trained.encode_batch(decomposed) == trained.encode_batch(texts)
    assert not any(trained.unk_id in ids for ids in trained.encode_batch(decomposed))
    trained.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(decomposed, add_special_tokens=False)['input_ids'] == trained.encode_batch(texts)
    for variant in (texts, decomposed):
        ids, sizes = Encoder(trained).encode('\n'.join([*variant, '']).encode())
        assert ids.tolist() == [index for row in trained.encode_batch(texts) for index in row]
        assert len(sizes) == len(variant)


def test_decomposed_vocabulary_matches_decomposed_text(tmp_path: Path) -> None:
    decomposed = [unicodedata.normalize('NFD', token) for token in [*LETTERS, 'café', 'é']]
    found = load_tokenizer(write_vocabulary(tmp_path / 'a', decomposed))
    assert found.unk_id not in found.encode_batch([unicodedata.normalize('NFD', 'café é')])[0]


# --- Warnings. ---


def test_normalization_that_loses_letters_is_an_issue(tmp_path: Path) -> None:
    cased = write_vocabulary(tmp_path / 'cased', VOCABULARIES[False, False])
    [issue] = find_normalization_issues(load_tokenizer(cased, lowercase=True), [])
    assert issue.expected == 'lowercase=False, strip_accents=False' and 'lowercase=False' in issue.fix
    uncased = write_vocabulary(tmp_path / 'uncased', VOCABULARIES[True, True])
    assert find_normalization_issues(load_tokenizer(uncased), TEXTS) == []
    [issue] = find_normalization_issues(load_tokenizer(uncased, strip_accents=False), TEXTS)
    assert '[UNK] with lowercase=True, strip_accents=False' in issue.found
    assert issue.expected == '0.000% with lowercase=True, strip_accents=True'
    assert find_normalization_issues(load_tokenizer(uncased, strip_accents=False), ['no accents']) == []


def test_prepare_and_doctor_warn_about_wrong_normalization(tmp_path: Path, capsys) -> None:
    write_text(tmp_path / 'text.txt', 'Le café. À São Paulo.', 'Das Café. Ça va.')
    path = str(write_vocabulary(tmp_path / 'a', VOCABULARIES[True, True]))
    data = config.Data(source=f'text:{tmp_path}/text.txt', corpus=str(tmp_path / 'corpus'), pairing='none')
    wrong = config.Tokenizer(path=path, strip_accents=False)
    summary = prepare(data, wrong)
    assert len(summary.warnings) == 1 and '[UNK]' in summary.warnings[0]
    assert f'warning: config.tokenizer.path={path}: ' in capsys.readouterr().err
    assert summary.vocab_size_requested is None and summary.unknown_rate > 0.05
    assert len(tokenizer_preview(data, wrong)['warnings']) == 1

    def warned(tokenizer: config.Tokenizer) -> list[str]:
        problems = diagnose(dataclasses.replace(config.Config(), data=data, tokenizer=tokenizer))
        return [problem.found for problem in problems if problem.where == f'config.tokenizer.path={path}']

    assert len(warned(wrong)) == 1
    right = dataclasses.replace(data, corpus=str(tmp_path / 'right'))
    assert prepare(right, config.Tokenizer(path=path), progress=False).warnings == []
    data = right
    assert warned(config.Tokenizer(path=path)) == []


# --- Tokenizers of earlier versions. ---


def test_tokenizers_of_earlier_versions_stay_usable(tmp_path: Path, capsys) -> None:
    """Earlier versions read every vocabulary with lowercase=True and strip_accents=False, and without NFC."""
    write_text(tmp_path / 'text.txt', 'Le café. Ça va.', 'Das Café.')
    path = write_vocabulary(tmp_path / 'a', VOCABULARIES[True, True])
    tokens = {token: index for index, token in enumerate(path.read_text('utf-8').split('\n')[:-1])}
    before = WordPiece(bert_backend(tokens, lowercase=True, strip_accents=False, compose=False))
    data = config.Data(source=f'text:{tmp_path}/text.txt', corpus=str(tmp_path / 'corpus'), pairing='none')
    prepare(data, config.Tokenizer(), initial=before, progress=False)
    capsys.readouterr()
    assert prepare(data, config.Tokenizer(path=str(path)), progress=False).reused
    assert 'keeps its settings, lowercase=True, strip_accents=False' in capsys.readouterr().err
    assert prepare(data, config.Tokenizer(path=str(path), strip_accents=False), progress=False).reused
    assert load_corpus(data.corpus).tokenizer.hash == before.hash
    with pytest.raises(BadInput, match='holds a corpus made with'):
        prepare(data, config.Tokenizer(path=str(path), strip_accents=True), progress=False)
    (path.parent / 'tokenizer_config.json').write_text(json.dumps({'do_lower_case': True}))
    with pytest.raises(BadInput, match='holds a corpus made with'):  # the file decided, not a default
        prepare(data, config.Tokenizer(path=str(path.parent)), progress=False)
    saved = load_saved_tokenizer(Path(data.corpus) / 'tokenizer')
    assert saved.agrees_with(before) and not saved.agrees_with(load_tokenizer(path))
    before.save(tmp_path / 'seed-0' / 'tokenizer')
    values = finetuning.finetune().to_dict() | {'init': 'scratch'}
    values['tokenizer']['path'] = str(path)
    (path.parent / 'tokenizer_config.json').unlink()
    start = prepare_start(finetuning.resolve(values), [str(tmp_path / 'seed-1'), str(tmp_path / 'seed-0')])
    assert start.tokenizer.hash == before.hash
    other = config.Tokenizer(path=str(write_vocabulary(tmp_path / 'other', VOCABULARIES[True, False])))
    assert (
        prefer_saved_tokenizer(load_configured_tokenizer(other), other, f'{data.corpus}/tokenizer').tokens
        != before.tokens
    )
