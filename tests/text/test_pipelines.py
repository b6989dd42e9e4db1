"""Any tokenizer.json gives the ids of the `tokenizers` library: byte-level BPE, BPE with byte fallback, Unigram."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.text.added_tokens import add_tokens
from bert_jax.text.blanks import BlankRule
from bert_jax.text.encode import Encoder
from bert_jax.text.special_tokens import SpecialTokens
from bert_jax.text.tokenizer import load_tokenizer, train_tokenizer
from bert_jax.text.vocabulary import encode_with_masks

WORDS = "the quick brown fox jumps over lazy dogs don't we'll naïve café 你好世界 한국어 العربية 12 345 ... -- ☃ 😀"
TEXTS = [' '.join(np.random.default_rng(seed).permutation(WORDS.split())) + '.' for seed in range(200)]
NASTY = [
    '',
    ' ',
    '   ',
    'a  b   c    d',
    ' leading and trailing ',
    'tab\t  two\t\tthen  \t x',
    'non\u00a0 breaking \u2003 em\u3000\u3000 wide \u1680 x\u2028 y\u0085 z',
    'cr\r lf\r\n\u000b\u000c x',
    'a\x00b\x07c\x7fd\u200be\u200d f\ufeff g\ufffd\u00ad\u180e h',
    "don't we'll 's ''s it's'up x'S",
    '1234567 12,345.67 ½ ² Ⅷ ٣٤',
    '😀👩\u200d👩\u200d👧🏽 ☃\ufe0f ①②③ 🇩🇪',
    '你好，世界。 「你好」  한국어 हिन्दी العَرَبِيَّة ไทย',
    'x' * 5000,
    '=-' * 3000,
    'e\u0301 \u0301 a\u0338 \u0338= ﬁ ￣ \u1112\u1161\u11ab',
    'ÀÉÎ ΣΑΣ İ',
    '<s> </s> <mask> <pad> [MASK] [CLS] |||IP||| |||IP|||x y|||IP|||',
    '▁a ▁▁ b▁c ▁',
    '<0x41> <0xE2>',
    'a <mask>',
]
ANY_TEXT = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="aA1 .'\té\u0301\u200b\u3000\u00a0▁你한😀|-s", max_size=40),
    st.lists(st.sampled_from([*WORDS.split(), ' ', '  ', '\t', '|||IP|||', '<mask>']), max_size=10).map(''.join),
)
QUICK = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r'|\s+(?!\S)|\s+'
)


def _bpe(special: list[Any], **model: Any) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(**model))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    return backend


def roberta() -> tokenizers.Tokenizer:
    mask = AddedToken('<mask>', lstrip=True, special=True)
    backend = _bpe(['<s>', '<pad>', '</s>', '<unk>', mask])
    backend.post_processor = processors.RobertaProcessing(('</s>', 2), ('<s>', 0), add_prefix_space=False)
    return backend


def prefixed() -> tokenizers.Tokenizer:
    backend = roberta()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return backend


def modernbert() -> tokenizers.Tokenizer:
    special = ['[UNK]', '[CLS]', '[SEP]', '[PAD]', AddedToken('[MASK]', lstrip=True, special=True)]
    backend = _bpe(special, unk_token='[UNK]')
    backend.normalizer = normalizers.NFC()
    backend.add_tokens([AddedToken(' ' * count, normalized=True) for count in range(8, 1, -1)])
    backend.add_tokens([AddedToken('|||IP|||', normalized=False)])
    backend.post_processor = processors.TemplateProcessing(
        single='[CLS] $A [SEP]', pair='[CLS] $A [SEP] $B [SEP]', special_tokens=[('[CLS]', 1), ('[SEP]', 2)]
    )
    return backend


def llama() -> tokenizers.Tokenizer:
    backend = _bpe(['<|begin_of_text|>', '<|end_of_text|>', '<|mask|>', '<|pad|>'])
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(GPT4), 'isolated'),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return backend


def gemma() -> tokenizers.Tokenizer:
    """Blanks become '▁', the model gets the whole text, and bytes replace unknown characters."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token='<unk>', fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Replace(' ', '▁')
    backend.pre_tokenizer = pre_tokenizers.Split(' ', 'merged_with_previous')
    backend.decoder = decoders.Sequence([decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse()])
    special = ['<pad>', '<eos>', '<bos>', '<unk>', '<mask>']
    alphabet = [*"abcdefghijklmnopqrstuvwxyz▁.,'-0123456789", *'你好世界']
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, limit_alphabet=60, show_progress=False
    )
    words = tokenizers.Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='never')
    words.train_from_iterator(TEXTS, trainer)
    learned = json.loads(words.to_str())['model']
    vocabulary = {token: index for index, token in enumerate([*special, *(f'<0x{byte:02X}>' for byte in range(256))])}
    for token in learned['vocab']:
        vocabulary.setdefault(token, len(vocabulary))
    merges = [tuple(merge) for merge in learned['merges']]
    backend.model = models.BPE(vocabulary, merges, unk_token='<unk>', fuse_unk=True, byte_fallback=True)
    backend.add_special_tokens(special)
    backend.add_tokens([AddedToken('▁' * count, normalized=False) for count in (2, 3, 4)])
    backend.post_processor = processors.TemplateProcessing(
        single='<bos> $A <eos>', pair='<bos> $A <eos> $B <eos>', special_tokens=[('<bos>', 2), ('<eos>', 1)]
    )
    return backend


def unigram() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200,
        special_tokens=['<s>', '<pad>', '</s>', '<unk>', '<mask>'],
        unk_token='<unk>',
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    return backend


def split_unigram() -> tokenizers.Tokenizer:
    """As XLM-R: white space is dropped, and each word is marked."""
    backend = unigram()
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    return backend


def precompiled() -> tokenizers.Tokenizer:
    """As XLM-R and DeBERTa: a model of SentencePiece, with its table of characters."""
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=writer,
        vocab_size=150,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    proto = sentencepiece_model_pb2.ModelProto.FromString(writer.getvalue())
    special = [(name, 0.0) for name in ('<s>', '<pad>', '</s>', '<unk>', '<mask>')]
    pieces = [(piece.piece, piece.score) for piece in proto.pieces if piece.type == piece.NORMAL]
    backend = tokenizers.Tokenizer(models.Unigram([*special, *pieces], unk_id=3))
    backend.add_special_tokens([name for name, _ in special])
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap),
            normalizers.Replace(tokenizers.Regex(' {2,}'), ' '),
        ]
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return backend


def without_accents() -> tokenizers.Tokenizer:
    backend = modernbert()
    backend.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()])
    return backend


def unknown_rules() -> tokenizers.Tokenizer:
    backend = roberta()
    backend.normalizer = normalizers.Replace(tokenizers.Regex('a b'), 'c')
    return backend


KEEPS, MOSTLY_KEEPS, DROPS = BlankRule.KEEPS, BlankRule.MOSTLY_KEEPS, BlankRule.DROPS
MAKERS: dict[Callable[[], tokenizers.Tokenizer], BlankRule | None] = {
    roberta: KEEPS,
    prefixed: KEEPS,
    modernbert: KEEPS,
    llama: KEEPS,
    gemma: KEEPS,
    unigram: KEEPS,
    split_unigram: DROPS,
    precompiled: MOSTLY_KEEPS,
    without_accents: MOSTLY_KEEPS,
    unknown_rules: None,
}


@pytest.fixture(scope='module', params=MAKERS, ids=lambda maker: maker.__name__)
def pair(request, tmp_path_factory) -> tuple[Any, tokenizers.Tokenizer]:
    """(our tokenizer, the library's) of one tokenizer.json."""
    path = tmp_path_factory.mktemp('pipeline') / 'tokenizer.json'
    request.param().save(str(path))
    theirs = tokenizers.Tokenizer.from_file(str(path))
    theirs.encode_special_tokens = True
    ours = load_tokenizer(path)
    assert ours.blank_rule is MAKERS[request.param]
    return ours, theirs


def _ids(theirs: tokenizers.Tokenizer, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in theirs.encode_batch(texts, add_special_tokens=False)]


def _ids_by_word(ours: Any, texts: list[str]) -> list[list[int]]:
    """Through the word cache of `prepare`."""
    ids, sizes = Encoder(ours).encode('\n'.join([*texts, '']).encode())
    return [part.tolist() for part in np.split(ids, np.cumsum(sizes)[:-1])]


def test_ids_are_those_of_the_library(pair) -> None:
    ours, theirs = pair
    texts = [text.replace('\n', '') for text in (*NASTY, *TEXTS[:20])]
    expected = _ids(theirs, texts)
    assert ours.encode_batch(texts) == expected
    assert _ids_by_word(ours, texts) == expected
    assert len({len(ids) for ids in expected}) > 8


@QUICK
@given(texts=st.lists(ANY_TEXT, min_size=1, max_size=4))
@example(texts=['a \t b', 'x  '])
def test_ids_are_those_of_the_library_for_any_text(pair, texts: list[str]) -> None:
    ours, theirs = pair
    texts = [text.replace('\n', '').replace('\0', '') for text in texts]
    expected = _ids(theirs, texts)
    assert ours.encode_batch(texts) == expected
    assert _ids_by_word(ours, texts) == expected


def test_saved_pipeline_gives_the_same_ids_in_transformers(pair, tmp_path: Path) -> None:
    transformers = pytest.importorskip('transformers')
    ours, _ = pair
    ours.save(tmp_path, token_types=False)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    texts = [text for text in NASTY if text]
    expected = theirs(texts, add_special_tokens=False, split_special_tokens=True)['input_ids']
    assert ours.encode_batch(texts) == loaded.encode_batch(texts) == expected
    assert (loaded.hash, loaded.special_tokens) == (ours.hash, ours.special_tokens)
    assert theirs.mask_token_id == ours.mask_id and theirs.pad_token_id == ours.pad_id
    framed = theirs('fox', 'dogs')
    first, second = ours.encode_batch(['fox', 'dogs'])
    assert framed['input_ids'] == [ours.cls_id, *first, ours.sep_id, *second, ours.sep_id]
    assert 'token_type_ids' not in framed


@QUICK
@given(text=ANY_TEXT)
@example(text='the naïve café 你好世界 한국어 12 345 — don\'t 😀☃😀 x_y ( "quoted")')
def test_words_are_those_of_the_pre_tokenizer(pair, text: str) -> None:
    """Except where a split depends on more than the two tokens: see `word_boundaries`."""
    ours, theirs = pair
    text = ' '.join(re.sub("'|▁|<mask>", '', text).split())
    rules = theirs.to_str()
    if r'\\p{N}{1,3}' in rules:
        letters = ''.join(character for character in text if character.isalpha() or character == ' ')
        text = ' '.join(letters.split())
    encoding = theirs.encode(text, add_special_tokens=False)
    words = np.array(encoding.word_ids)
    if 'MergedWithPrevious' in rules:  # Gemma: the text is not split, and '▁' begins a word
        words = np.cumsum([token.startswith('▁') for token in encoding.tokens])
    if len(words):
        found = ours.continues_word(np.array([encoding.ids]))[0]
        assert found.tolist() == [False, *(words[1:] == words[:-1])]


def test_sentencepiece_and_its_tokenizer_json_agree(tmp_path: Path) -> None:
    trained = train_tokenizer(config.Tokenizer(kind='sentencepiece', vocab_size=120), iter(TEXTS))
    trained.save(tmp_path)
    loaded = load_tokenizer(tmp_path / 'tokenizer.json')
    texts = [text.replace('\n', '') for text in (*NASTY, *TEXTS[:40])]
    assert loaded.blank_rule is MOSTLY_KEEPS and loaded.kind == 'unigram'
    assert loaded.encode_batch(texts) == trained.encode_batch(texts) == _ids_by_word(loaded, texts)


def test_random_merges_of_training_are_switched_off(tmp_path: Path) -> None:
    backend = roberta()
    backend.model.dropout = 0.5
    backend.save(str(tmp_path / 'tokenizer.json'))
    [ids] = _ids(roberta(), [TEXTS[0]])
    assert load_tokenizer(tmp_path).encode_batch([TEXTS[0]] * 20) == [ids] * 20


def test_special_tokens_are_found_by_role(tmp_path: Path) -> None:
    path = tmp_path / 'tokenizer.json'
    for maker, expected in (
        (roberta, SpecialTokens('<pad>', '<unk>', '<s>', '</s>', '<mask>')),
        (modernbert, SpecialTokens('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')),
        (llama, SpecialTokens('<|pad|>', '<|mask|>', '<|begin_of_text|>', '<|end_of_text|>', '<|mask|>')),
        (gemma, SpecialTokens('<pad>', '<unk>', '<bos>', '<eos>', '<mask>')),
    ):
        maker().save(str(path))
        assert load_tokenizer(path).special_tokens == expected
    backend = _bpe(['first', 'last', 'hole', 'nothing'])  # no conventional names
    backend.post_processor = processors.BertProcessing(('last', 1), ('first', 0))
    backend.save(str(path))
    with pytest.raises(BadInput, match=r'(?s)lacks a padding token and a mask token.*expected: .*<mask>'):
        load_tokenizer(path)
    (tmp_path / 'special_tokens_map.json').write_text(json.dumps({'mask_token': {'content': 'hole'}}))
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps({'pad_token': 'nothing', 'sep_token': 'absent'}))
    found = load_tokenizer(path)
    assert found.special_tokens == SpecialTokens('nothing', 'hole', 'first', 'last', 'hole')
    assert not {found.mask_id, found.pad_id} & set(found.encode_batch(['hole nothing first'])[0])


def test_tokenizer_without_mask_token_is_rejected_with_its_fix(tmp_path: Path) -> None:
    for special, missing in (
        (['<s>', '<pad>', '</s>', '<unk>'], 'a mask token'),
        (['<s>', '</s>', '<unk>', '<mask>'], 'a padding token'),
    ):
        _bpe(special).save(str(tmp_path / 'tokenizer.json'))
        with pytest.raises(BadInput, match=f'(?s)lacks {missing}.*fix: .*add the tokens to tokenizer.json'):
            load_tokenizer(tmp_path / 'tokenizer.json')


def test_mask_token_takes_the_blank_before_it(tmp_path: Path) -> None:
    roberta().save(str(tmp_path / 'tokenizer.json'))
    ours = load_tokenizer(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / 'tokenizer.json'))
    expected = theirs.encode('the <mask> fox <mask>.').ids
    for name in ('[MASK]', '<mask>'):
        assert encode_with_masks(ours, f'the {name} fox {name}.').tolist() == expected


def test_words_of_a_file_extend_every_kind(tmp_path: Path, pair) -> None:
    ours, _ = pair
    (tmp_path / 'words.txt').write_text('zygote\nquetzal\n')
    extended = add_tokens(ours, str(tmp_path / 'words.txt'))
    new = [ours.vocab_size, ours.vocab_size + 1]
    assert extended.tokens == [*ours.tokens, 'zygote', 'quetzal']
    assert extended.encode_batch([extended.word_text(index) for index in new]) == [[index] for index in new]
    text = 'the zygote fox zygotes, quetzal'
    ids = extended.encode_batch([text])[0]
    assert [index for index in ids if index in new] == new
    assert _ids_by_word(extended, [text, text]) == [ids, ids]
    extended.save(tmp_path / 'saved')
    assert load_tokenizer(tmp_path / 'saved').encode_batch([text]) == [ids]
    assert not extended.continues_word(np.array([ids]))[0][np.isin(ids, new)].any()
    assert extended.hash != ours.hash
