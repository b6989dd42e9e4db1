"""Ids match the references: `transformers`, the published rules of the original, and the sentencepiece library."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.text.blanks import BlankRule
from bert_jax.text.encode import Encoder
from bert_jax.text.tokenizer import SPECIAL_TOKENS, load_tokenizer, train_tokenizer

WORDS = 'the quick brown fox jumps naïve café overly 你好 世界 한국어 हिन्दी العربية straße ﬁne Ⅷ 12 ... www aaaa'
STRINGS = [
    '',
    ' ',
    '\u3000\u00a0\t',
    'The QUICK brown fox, jumps. over-ly!',
    'Naïve CAFÉ nai\u0308ve cafe\u0301 İstanbul ΣΑΣ ẞ',
    '你好世界abc中文。「」',
    '한국어 각 \u1112\u1161\u11ab\u1100\u116e\u11a8',
    'हिन्दी العَرَبِيَّة ไทย',
    'a\x00b\x07c\x7fd\u200be\u200df\ufeffg\ufffdh\u00adi\u0085j\u2028k',
    'x' * 99 + ' ' + 'x' * 100 + ' ' + 'a' * 101 + ' ' + 'the' * 67 + ' ' + 'a' * 200 + ' ' + 'a' * 201,
    'é' * 101 + ' ' + 'e\u0301' * 100,
    '😀👩\u200d👩\u200d👧🏽 ☃\ufe0f ①②③ ﬁne ｆｕｌｌ ｶﾞ ～',
    'www aaaaaaa ........ 0000000 -----',
    "don't [MASK] a [SEP][CLS] [mask] [UNK]x [PAD",
    '\ue000 \ufffe \U00010ffff \U0001f9ff',
]
ANY_TEXT = st.one_of(
    st.text(max_size=40),
    st.text(alphabet='aA .wé\u0301\u200b[]MASK你한\u1112\u1161\u11ab\t▁～ｶﾞ', max_size=40),
    st.lists(st.sampled_from(WORDS.split()), max_size=8).map(''.join),
)
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _vocabulary() -> list[str]:
    """Returns special tokens, a few words, and every character of `WORDS`, alone and with '##'."""
    characters = sorted(set(WORDS) | set('abcdefghijklmnopqrstuvwxyzTQCNFEσßss,!-\'"[]') - {' '})
    words = ['the', '##the', 'quick', '##ly', 'naive', 'cafe', 'café', 'x' * 99]
    return list(dict.fromkeys([*SPECIAL_TOKENS, *words, *characters, *('##' + c for c in characters)]))


@pytest.fixture(scope='module', params=[True, False], ids=['uncased', 'cased'])
def wordpiece(request, tmp_path_factory):
    """(our tokenizer, that of `transformers`) of one vocab.txt, in the directory layout of a published model."""
    transformers = pytest.importorskip('transformers')
    directory = tmp_path_factory.mktemp('vocabulary')
    (directory / 'vocab.txt').write_text('\n'.join(_vocabulary()) + '\n', 'utf-8')
    (directory / 'tokenizer_config.json').write_text(json.dumps({'do_lower_case': request.param}))
    theirs = transformers.BertTokenizerFast.from_pretrained(directory, do_lower_case=request.param)
    return load_tokenizer(directory, lowercase=True, strip_accents=False), theirs


def _theirs(tokenizer, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, split_special_tokens=True)['input_ids']


def test_wordpiece_ids_match_transformers(wordpiece) -> None:
    ours, theirs = wordpiece
    assert ours.encode_batch(STRINGS) == _theirs(theirs, STRINGS)
    assert len({len(ids) for ids in ours.encode_batch(STRINGS)}) > 5


@QUICK
@given(text=ANY_TEXT)
def test_wordpiece_ids_match_transformers_on_any_text(wordpiece, text: str) -> None:
    ours, theirs = wordpiece
    assert ours.encode_batch([text]) == _theirs(theirs, [text])


def _original_words(text: str, lowercase: bool) -> list[str]:
    """Splits text by the rules of the original release's BasicTokenizer.

    NUL, U+FFFD and control characters are removed. Spaces of any kind separate words. CJK ideographs and punctuation,
    including ASCII symbols, are words of their own. Uncased means lower case, with non-spacing marks dropped after
    canonical decomposition.
    """
    blocks = [(0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F)]
    blocks += [(0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)]
    spaced = ''
    for character in text:
        category = unicodedata.category(character)
        if character in '\t\n\r' or category == 'Zs':
            spaced += ' '
        elif category not in ('Cc', 'Cf') and character != '\ufffd':
            ideograph = any(low <= ord(character) <= high for low, high in blocks)
            spaced += f' {character} ' if ideograph else character
    words = []
    for word in spaced.split():
        if lowercase:
            decomposed = unicodedata.normalize('NFD', word.lower())
            word = ''.join(c for c in decomposed if unicodedata.category(c) != 'Mn')
        separated = ''
        for character in word:
            symbol = character.isascii() and not character.isalnum()
            separated += f' {character} ' if symbol or unicodedata.category(character)[0] == 'P' else character
        words += separated.split()
    return words


def _original_pieces(word: str, ids: dict[str, int], longest: int) -> list[int]:
    """Greedy longest match first; a word that is too long, or has a part outside the vocabulary, is [UNK]."""
    pieces, start = [], 0
    while start < len(word) <= longest:
        fits = [end for end in range(len(word), start, -1) if '##' * (start > 0) + word[start:end] in ids]
        if not fits:
            break
        pieces.append(ids['##' * (start > 0) + word[start : fits[0]]])
        start = fits[0]
    return pieces if start == len(word) else [ids['[UNK]']]


def _original_ids(tokenizer, texts: list[str], longest: int = 100) -> list[list[int]]:
    ids = {token: index for index, token in enumerate(tokenizer.tokens)}
    words = [_original_words(text, tokenizer.lowercase) for text in texts]
    return [[index for word in of_text for index in _original_pieces(word, ids, longest)] for of_text in words]


def test_wordpiece_ids_follow_the_rules_of_the_original(wordpiece) -> None:
    """Except for the longest word: 100 characters in `transformers` and here, 200 in the original."""
    ours, _ = wordpiece
    texts = [text for text in STRINGS if '\ue000' not in text]
    assert ours.encode_batch(texts) == _original_ids(ours, texts)
    between = 'a' * 150
    assert ours.encode_batch([between]) == [[ours.unk_id]]
    assert len(_original_ids(ours, [between], longest=200)[0]) == 150


def test_every_unicode_character_is_handled_as_in_the_original(wordpiece) -> None:
    """Every character of Unicode 3.2, except private ones, which `transformers` drops and the original kept."""
    ours, _ = wordpiece
    since_changed = '\u166d\u1734\u1885\u1886'  # characters whose Unicode category has changed since
    assigned = [chr(code) for code in range(0x110000) if unicodedata.ucd_3_2_0.category(chr(code)) not in ('Cn', 'Co')]
    texts = [f'a{c}b' for c in assigned if not 0xD800 <= ord(c) < 0xE000 and c not in since_changed]
    assert len(texts) > 95_000
    found, expected = ours.encode_batch(texts), _original_ids(ours, texts)
    assert not [ascii(text) for text, a, b in zip(texts, found, expected, strict=True) if a != b]


def test_saved_tokenizer_keeps_unusual_rules_of_its_json(tmp_path: Path) -> None:
    """`BertTokenizer` has fixed rules (cleaning, words of at most 100 characters); other rules need another class."""
    tokenizers = pytest.importorskip('tokenizers')
    transformers = pytest.importorskip('transformers')
    vocabulary = {token: index for index, token in enumerate(_vocabulary())}
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(vocabulary, unk_token='[UNK]', max_input_chars_per_word=200)
    )
    backend.normalizer = tokenizers.normalizers.BertNormalizer(
        clean_text=False, handle_chinese_chars=False, lowercase=True, strip_accents=False
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.add_tokens(['quickfox'])
    backend.save(str(tmp_path / 'tokenizer.json'))
    ours = load_tokenizer(tmp_path / 'tokenizer.json', lowercase=False, strip_accents=False)
    ours.save(tmp_path / 'saved')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / 'saved')
    texts = [*STRINGS, 'the quickfox the']
    assert ours.encode_batch(texts) == _theirs(theirs, texts)
    assert len(ours.encode_batch(['a' * 150])[0]) == 150
    assert ours.tokens.index('quickfox') in ours.encode_batch(['the quickfox'])[0]


# --- SentencePiece. ---


@pytest.fixture(scope='module', params=[(True, True), (False, False)], ids=['uncased', 'cased'])
def sentencepiece_(request, tmp_path_factory):
    """(our tokenizer, `AutoTokenizer` of the saved directory, a function that encodes with the library)."""
    transformers = pytest.importorskip('transformers')
    sentencepiece = pytest.importorskip('sentencepiece')
    from bert_jax.text.sentencepiece import _before_model

    lowercase, strip_accents = request.param
    texts = [' '.join(np.random.default_rng(n).permutation(WORDS.split())) for n in range(60)]
    normalization = {'lowercase': lowercase, 'strip_accents': strip_accents}
    ours = train_tokenizer(config.Tokenizer(kind='sentencepiece', vocab_size=130, **normalization), iter(texts))
    directory = tmp_path_factory.mktemp('sentencepiece')
    ours.save(directory)
    library = sentencepiece.SentencePieceProcessor(model_file=str(directory / 'sentencepiece.model'))
    first = _before_model(lowercase, strip_accents, compose=True)
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    return ours, theirs, lambda texts: library.encode([first.normalize_str(text) for text in texts])


def test_saved_sentencepiece_matches_transformers(sentencepiece_) -> None:
    ours, theirs, _ = sentencepiece_
    assert ours.encode_batch(STRINGS) == _theirs(theirs, STRINGS)
    assert theirs.convert_ids_to_tokens(range(ours.vocab_size)) == ours.tokens
    assert (theirs.pad_token_id, theirs.unk_token_id, theirs.mask_token_id) == (ours.pad_id, ours.unk_id, ours.mask_id)
    framed = theirs('the [MASK] fox', 'quick')
    first, second, third = ours.encode_batch(['the ', ' fox', 'quick'])
    expected = [ours.cls_id, *first, ours.mask_id, *second, ours.sep_id, *third, ours.sep_id]
    assert framed['input_ids'] == expected
    assert framed['token_type_ids'] == [0] * (len(expected) - len(third) - 1) + [1] * (len(third) + 1)
    assert theirs.decode(ours.encode_batch(['the quick'])[0]) == ours.decode(ours.encode_batch(['the quick'])[0])


@QUICK
@given(text=ANY_TEXT)
def test_saved_sentencepiece_matches_transformers_on_any_text(sentencepiece_, text: str) -> None:
    ours, theirs, _ = sentencepiece_
    assert ours.encode_batch([text]) == _theirs(theirs, [text])
    assert not {ours.pad_id, ours.cls_id, ours.sep_id, ours.mask_id} & set(ours.encode_batch([text])[0])


@QUICK
@given(text=st.text(alphabet='aA .wé\u200bfo\t\x07▁～你한\u1112\u1161\u11abtheＡｶﾞ12', max_size=60))
def test_sentencepiece_ids_match_the_library(sentencepiece_, text: str) -> None:
    """Including ties ('aaa' is 'a aa' or 'aa a'): sums of the scores of models trained here are exact."""
    ours, _, library = sentencepiece_
    assert ours.encode_batch([text]) == library([text])


@QUICK
@given(
    words=st.lists(
        st.one_of(
            st.text(alphabet=[chr(code) for code in range(33, 127)], max_size=12),
            st.text(alphabet='aAé\u0308\u200d\u00a0\t\u0600\u0d4e▁世[]CLSfo한', max_size=6),
            st.sampled_from([*WORDS.split(), '[SEP]', '']),
        ),
        min_size=1,
        max_size=9,
    )
)
def test_ids_of_a_text_are_those_of_its_words(sentencepiece_, words: list[str]) -> None:
    """As in `transformers` for the whole text; the word cache of the encoder relies on it."""
    ours, theirs, _ = sentencepiece_
    assert ours.blank_rule is BlankRule.DROPS and ours._library is not None
    encoded = ours.encode_batch(words)
    assert encoded == _theirs(theirs, words)
    assert [index for ids in encoded for index in ids] == _theirs(theirs, [' '.join(words)])[0]


@given(texts=st.lists(ANY_TEXT, min_size=1, max_size=6))
@example(texts=['你好', '\x7f'])  # no word for the sentencepiece library
@example(texts=[' ', ''])
@QUICK
def test_encoder_matches_the_tokenizer_on_every_sentence(wordpiece, sentencepiece_, texts: list[str]) -> None:
    for tokenizer in (wordpiece[0], sentencepiece_[0]):
        sentences = [text.replace('\n', '').replace('\0', '') for text in texts]
        ids, sizes = Encoder(tokenizer).encode('\n'.join([*sentences, '']).encode())
        expected = tokenizer.encode_batch(sentences)
        assert [part.tolist() for part in np.split(ids, np.cumsum(sizes)[:-1])] == expected


def test_bpe_model_is_rejected(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip('sentencepiece')
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([WORDS] * 10),
        model_prefix=str(tmp_path / 'bpe'),
        model_type='bpe',
        vocab_size=100,
        hard_vocab_limit=False,
        control_symbols=['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'],
        unk_piece='<unknown>',
        minloglevel=2,
    )
    with pytest.raises(BadInput, match='bpe.model: is a bpe model'):
        load_tokenizer(tmp_path / 'bpe.model', lowercase=True, strip_accents=True)
