"""Tokenizers: text <-> ids, trained here or brought along. V is the size of the vocabulary.

Ids of special tokens are looked up, never assumed: a vocabulary keeps the ids it came with.
"""

import functools
import hashlib
import io
import json
import os
import pathlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np

from bert_jax import config
from bert_jax.errors import BadInput

SPECIAL_TOKENS = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')  # ids 0 to 4 in a vocabulary trained here
_ALPHABET_COVERAGE = 0.9999  # of the characters of the sample; the rest becomes [UNK]
_MAX_CHARACTERS_PER_WORD = 100
_LONGEST_SENTENCE = 1 << 14  # bytes; SentencePiece passes over longer lines while it trains


class Tokenizer(Protocol):
    """What the rest of the project asks of a tokenizer.

    Attributes:
      kind: `wordpiece` or `sentencepiece`.
      tokens: the V tokens by id.
      is_continuation: bool [V]; whether a token continues the word of the token before it.
      hash: SHA-256 over vocabulary and settings; equal hashes give equal ids for every text.
      splits_at_blanks: whether the ids of a text are those of its words between blanks, one after another.
    """

    kind: str
    lowercase: bool
    strip_accents: bool
    vocab_size: int
    pad_id: int
    unk_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    tokens: list[str]
    is_continuation: np.ndarray
    hash: str
    splits_at_blanks: bool

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, without special tokens; a `[MASK]` written in the text is text."""

    def decode(self, ids: Iterable[int]) -> str:
        """Readable text of ids; special tokens are left out, except [UNK]."""

    def token(self, token_id: int) -> str:
        """The token of an id."""

    def save(self, directory: str | pathlib.Path) -> None:
        """Writes the files that `load_tokenizer(directory)` reads; WordPiece also opens in `transformers`."""


class _Vocabulary:
    """What both kinds have in common, worked out from `tokens`."""

    def _index(self, tokens: list[str], where: str) -> None:
        ids = {token: index for index, token in enumerate(tokens)}
        missing = [token for token in SPECIAL_TOKENS if token not in ids]
        if missing:
            raise BadInput(where, f'has no {", ".join(missing)}', 'a vocabulary with ' + ' '.join(SPECIAL_TOKENS))
        self.tokens = tokens
        self.vocab_size = len(tokens)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (ids[token] for token in SPECIAL_TOKENS)

    def token(self, token_id: int) -> str:
        return self.tokens[token_id]

    def _without_frame(self, ids: Iterable[int]) -> list[int]:
        return [int(index) for index in ids if index not in (self.pad_id, self.cls_id, self.sep_id, self.mask_id)]


class WordPiece(_Vocabulary):
    """WordPiece as in BERT (Devlin et al. 2019), by the `tokenizers` library."""

    kind = 'wordpiece'

    def __init__(self, backend: Any, where: str = 'tokenizer'):
        """Wraps a `tokenizers.Tokenizer`; `where` names it in errors.

        Raises:
          BadInput: for a model other than WordPiece, a normalizer other than BERT's, or missing special tokens.
        """
        from tokenizers import processors

        settings = json.loads(backend.to_str())
        self._model, self._normalizer = settings['model'], settings['normalizer'] or {}
        added = {token['content'] for token in settings['added_tokens']}  # others may hold blanks
        self.splits_at_blanks = settings['pre_tokenizer'] == {'type': 'BertPreTokenizer'} and added <= {*SPECIAL_TOKENS}
        if self._model['type'] != 'WordPiece' or self._normalizer.get('type') != 'BertNormalizer':
            found = f'is a {self._model["type"]} model with the normalizer {self._normalizer.get("type")}'
            raise BadInput(where, found, 'WordPiece with BertNormalizer')
        vocabulary = backend.get_vocab(with_added_tokens=True)
        tokens = [f'[unused-id-{index}]' for index in range(max(vocabulary.values(), default=-1) + 1)]
        for token, index in vocabulary.items():
            tokens[index] = token
        self._index(tokens, where)
        self.lowercase = self._normalizer['lowercase']
        accents = self._normalizer['strip_accents']
        self.strip_accents = self.lowercase if accents is None else accents
        self.is_continuation = np.array([token.startswith('##') for token in tokens])
        backend.add_special_tokens(list(SPECIAL_TOKENS))
        backend.post_processor = processors.TemplateProcessing(
            single='[CLS]:0 $A:0 [SEP]:0',
            pair='[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1',
            special_tokens=[('[CLS]', self.cls_id), ('[SEP]', self.sep_id)],
        )
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True  # '[SEP]' in somebody's text is five characters, not a separator
        self._backend = backend

    @functools.cached_property
    def hash(self) -> str:
        model = {key: value for key, value in self._model.items() if key != 'vocab'}
        return _digest([self.kind, self.tokens, model, self._normalizer])

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        return self._backend.decode(self._without_frame(ids), skip_special_tokens=False)

    def save(self, directory: str | pathlib.Path) -> None:
        directory = pathlib.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._backend.save(str(directory / 'tokenizer.json'))
        (directory / 'vocab.txt').write_text(''.join(f'{token}\n' for token in self.tokens), 'utf-8', newline='\n')
        names = ('pad_token', 'unk_token', 'cls_token', 'sep_token', 'mask_token')
        special = dict(zip(names, SPECIAL_TOKENS, strict=True))
        _write_json(directory / 'special_tokens_map.json', special)
        settings = {
            'tokenizer_class': 'BertTokenizer',
            'do_lower_case': self.lowercase,
            'strip_accents': self.strip_accents,
            'tokenize_chinese_chars': self._normalizer['handle_chinese_chars'],
            'model_max_length': 512,
            **special,
        }
        _write_json(directory / 'tokenizer_config.json', settings)


class SentencePiece(_Vocabulary):
    """A SentencePiece model (Kudo and Richardson 2018) whose special pieces carry BERT's names."""

    kind = 'sentencepiece'
    splits_at_blanks = False  # by scores over the whole text, and a model may have pieces with blanks inside

    def __init__(self, model: bytes, *, lowercase: bool, strip_accents: bool, where: str = 'tokenizer'):
        """Wraps a serialized model.

        `lowercase` and `strip_accents` are done before the model's own normalization.

        Raises:
          BadInput: for bytes that are not a model, or missing special pieces.
        """
        import sentencepiece

        self._model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, OSError):
            raise BadInput(where, 'is not a SentencePiece model', 'a .model file') from None
        self._index([self._processor.id_to_piece(i) for i in range(self._processor.get_piece_size())], where)
        self.lowercase, self.strip_accents = lowercase, strip_accents
        self.is_continuation = np.array(
            [not token.startswith('▁') and token not in SPECIAL_TOKENS for token in self.tokens]
        )

    @functools.cached_property
    def hash(self) -> str:
        model = hashlib.sha256(self._model).hexdigest()
        return _digest([self.kind, model, self.lowercase, self.strip_accents])

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        normalized = [_normalize(text, self.lowercase, self.strip_accents) for text in texts]
        # What tells `tokenizers` to keep to one thread tells it here too.
        num_threads = 1 if os.environ.get('TOKENIZERS_PARALLELISM') == 'false' else -1
        return self._processor.encode(normalized, num_threads=num_threads)

    def decode(self, ids: Iterable[int]) -> str:
        return self._processor.decode(self._without_frame(ids))

    def save(self, directory: str | pathlib.Path) -> None:
        directory = pathlib.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / 'sentencepiece.model').write_bytes(self._model)
        settings = {'do_lower_case': self.lowercase, 'strip_accents': self.strip_accents, 'model_max_length': 512}
        _write_json(directory / 'tokenizer_config.json', settings)


# --- Training. ---


def train_tokenizer(settings: config.Tokenizer, texts: Iterator[str]) -> Tokenizer:
    """Trains a vocabulary on the first `sample_bytes` of the texts; the same texts give the same vocabulary.

    A sample too small for `vocab_size` gives a smaller vocabulary.

    Raises:
      BadInput: without any text, or when `vocab_size` has no room for the characters of the text (SentencePiece).
    """
    sample, num_bytes = [], 0
    for text in texts:
        sample.append(text)
        num_bytes += len(text.encode())
        if num_bytes >= settings.sample_bytes:
            break
    if not sample:
        raise BadInput('config.data.source', 'holds no text to train a tokenizer on', 'text')
    train = _train_wordpiece if settings.kind == 'wordpiece' else _train_sentencepiece
    return train(settings, sample)


def _train_wordpiece(settings: config.Tokenizer, sample: list[str]) -> WordPiece:
    from tokenizers import trainers

    backend = _bert_backend({token: i for i, token in enumerate(SPECIAL_TOKENS)}, settings)
    # The trainer numbers the continuing characters ('##a') in the order of a hash map and breaks ties between merges
    # by these numbers: two trainings would differ. Handing it both alphabets in a fixed order, as tokens that are
    # there already, takes that away (`limit_alphabet=0` keeps it from adding characters of its own).
    trainer = trainers.WordPieceTrainer(
        vocab_size=settings.vocab_size,
        min_frequency=2,
        limit_alphabet=0,
        special_tokens=[*SPECIAL_TOKENS, *_alphabet(backend, sample, settings.vocab_size // 2)],
        show_progress=False,
    )
    backend.train_from_iterator(sample, trainer)
    return WordPiece(_bert_backend(json.loads(backend.to_str())['model']['vocab'], settings))


def _alphabet(backend: Any, sample: list[str], limit: int) -> list[str]:
    """Frequent characters of the words of the sample, and with '##' those that continue a word; in a fixed order."""
    characters, continuing = Counter(), set()
    between_blanks: Counter[str] = Counter()
    for text in sample:
        between_blanks.update(text.split(' '))
    for text, count in between_blanks.items():
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text)):
            for character in word:
                characters[character] += count
            continuing.update(word[1:])
    needed, covered = _ALPHABET_COVERAGE * characters.total(), 0
    pieces = []
    for character, count in sorted(characters.items(), key=lambda item: (-item[1], item[0])):
        if covered >= needed or len(pieces) + 2 > limit:
            break
        covered += count
        pieces.append(character)
        if character in continuing:
            pieces.append('##' + character)
    return sorted(pieces)


def _train_sentencepiece(settings: config.Tokenizer, sample: list[str]) -> SentencePiece:
    import sentencepiece

    writer = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(
                _normalize(text, settings.lowercase, settings.strip_accents).replace('\n', ' ') for text in sample
            ),
            model_writer=writer,
            model_type='unigram',
            vocab_size=settings.vocab_size,
            hard_vocab_limit=False,
            character_coverage=_ALPHABET_COVERAGE,
            max_sentence_length=_LONGEST_SENTENCE,
            num_threads=16,  # sums are grouped by thread: a fixed number gives the same model on every machine
            pad_id=0,
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            pad_piece=SPECIAL_TOKENS[0],
            unk_piece=SPECIAL_TOKENS[1],
            control_symbols=list(SPECIAL_TOKENS[2:]),
            minloglevel=2,
        )
    except RuntimeError:
        raise BadInput(
            'config.tokenizer.vocab_size',
            f'is {settings.vocab_size}, and no unigram vocabulary of that size can be trained on this text',
            'room for every character of the text, and text in which pieces repeat',
            'a larger vocab_size, or --config.tokenizer.kind=wordpiece',
        ) from None
    return SentencePiece(writer.getvalue(), lowercase=settings.lowercase, strip_accents=settings.strip_accents)


# --- Loading. ---


def load_tokenizer(path: str | pathlib.Path, *, lowercase: bool, strip_accents: bool) -> Tokenizer:
    """Loads a `vocab.txt`, a `tokenizer.json`, a SentencePiece `.model`, or a directory that holds them.

    A vocabulary keeps its ids: the id of a token is its line. `lowercase` and `strip_accents` count where the files do
    not say (`vocab.txt` and `.model` alone); a `tokenizer.json` or a directory's `tokenizer_config.json` says.

    Raises:
      BadInput: for a file that is not there, not a tokenizer, or without one of the special tokens (named).
    """
    path = pathlib.Path(path)
    if path.is_dir():
        return _load_directory(path, lowercase, strip_accents)
    if not path.is_file():
        raise BadInput(f'tokenizer {path}', 'is not there', 'a vocab.txt, tokenizer.json, .model file, or a directory')
    if path.suffix == '.model':
        return SentencePiece(path.read_bytes(), lowercase=lowercase, strip_accents=strip_accents, where=str(path))
    if path.suffix == '.json':
        return _load_json(path)
    try:
        text = path.read_bytes().decode('utf-8')
    except UnicodeDecodeError:
        raise BadInput(str(path), 'is not UTF-8', 'a vocabulary, a token a line') from None
    lines = [line.rstrip('\r') for line in text.removesuffix('\n').split('\n')]
    vocabulary = {}
    for number, token in enumerate(lines):
        if vocabulary.setdefault(token, number) != number:
            raise BadInput(f'{path}:{number + 1}', f'repeats line {vocabulary[token] + 1}', 'every token once')
    settings = config.Tokenizer(lowercase=lowercase, strip_accents=strip_accents)
    return WordPiece(_bert_backend(vocabulary, settings), str(path))


def _load_directory(directory: pathlib.Path, lowercase: bool, strip_accents: bool) -> Tokenizer:
    settings = {}
    if (directory / 'tokenizer_config.json').is_file():
        settings = json.loads((directory / 'tokenizer_config.json').read_text('utf-8'))
    lowercase = settings.get('do_lower_case', lowercase)
    accents = settings.get('strip_accents', strip_accents)
    strip_accents = lowercase if accents is None else accents
    for name in ('tokenizer.json', 'vocab.txt', 'sentencepiece.model'):
        if (directory / name).is_file():
            return load_tokenizer(directory / name, lowercase=lowercase, strip_accents=strip_accents)
    raise BadInput(f'tokenizer {directory}', 'holds no tokenizer', 'tokenizer.json, vocab.txt or sentencepiece.model')


def _load_json(path: pathlib.Path) -> WordPiece:
    import tokenizers

    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception:  # the library raises nothing narrower
        raise BadInput(str(path), 'is not a tokenizer.json', 'one of WordPiece') from None
    return WordPiece(backend, str(path))


def _bert_backend(vocabulary: dict[str, int], settings: config.Tokenizer) -> Any:
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    backend = tokenizers.Tokenizer(
        models.WordPiece(vocabulary, unk_token='[UNK]', max_input_chars_per_word=_MAX_CHARACTERS_PER_WORD)
    )
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=True,
        strip_accents=settings.strip_accents,
        lowercase=settings.lowercase,
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix='##')
    return backend


def _normalize(text: str, lowercase: bool, strip_accents: bool) -> str:
    if lowercase:
        text = text.lower()
    if strip_accents and not text.isascii():
        text = ''.join(c for c in unicodedata.normalize('NFD', text) if unicodedata.category(c) != 'Mn')
    return text


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + '\n', 'utf-8')
