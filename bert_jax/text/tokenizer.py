"""Tokenizers: text <-> ids, trained here or brought along. V is the size of the vocabulary.

Ids of special tokens are looked up, never assumed: a vocabulary keeps the ids it came with.
"""

import functools
import json
import os
import pathlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.files import DamagedJson, read_json
from bert_jax.text.sentencepiece import SentencePiece, train_sentencepiece
from bert_jax.text.vocabulary import ALPHABET_COVERAGE, SPECIAL_TOKENS, Tokenizer, Vocabulary, tokenizer_hash

_LAST_LOADED: dict[tuple[bytes, bool, bool], SentencePiece] = {}  # by model and settings, none or one
_MAX_CHARACTERS_PER_WORD = 100  # longer words are [UNK], as in `transformers`; in the original release it was 200


class WordPiece(Vocabulary):
    """WordPiece as in BERT (Devlin et al. 2019), by the `tokenizers` library."""

    kind = 'wordpiece'

    def __init__(self, backend: Any, where: str = 'tokenizer'):
        """Wraps a `tokenizers.Tokenizer`; `where` names it in errors.

        Raises:
          BadInput: for a model other than WordPiece, a normalizer other than BERT's, or missing special tokens.
        """
        self._settings = json.loads(backend.to_str())
        self._model, self._normalizer = self._settings['model'], self._settings['normalizer'] or {}
        added = {token['content'] for token in self._settings['added_tokens']}  # others may hold blanks
        pre_tokenizer = self._settings['pre_tokenizer']
        self.splits_at_blanks = pre_tokenizer == {'type': 'BertPreTokenizer'} and added <= {*SPECIAL_TOKENS}
        self.splits_at_punctuation = self.splits_at_blanks
        if self._model['type'] != 'WordPiece' or self._normalizer.get('type') != 'BertNormalizer':
            found = f'is a {self._model["type"]} model with the normalizer {self._normalizer.get("type")}'
            raise BadInput(where, found, 'WordPiece with BertNormalizer')
        if (unknown := self._model['unk_token']) not in self._model['vocab']:  # an added token alone is of no use to it
            raise BadInput(where, f'has no {unknown} in its vocabulary', 'the token for what is unknown')
        vocabulary = backend.get_vocab(with_added_tokens=True)
        tokens = [f'[unused-id-{index}]' for index in range(max(vocabulary.values(), default=-1) + 1)]
        for token, index in vocabulary.items():
            tokens[index] = token
        self._wrap(backend, tokens, where)
        self.lowercase = self._normalizer['lowercase']
        accents = self._normalizer['strip_accents']
        self.strip_accents = self.lowercase if accents is None else accents
        self.is_continuation = np.array([token.startswith('##') for token in tokens])

    @functools.cached_property
    def hash(self) -> str:
        model = {key: value for key, value in self._model.items() if key != 'vocab'}
        return tokenizer_hash([self.kind, self.tokens, model, self._normalizer])

    def extended(self, words: list[str]) -> 'WordPiece':
        """This vocabulary with whole words appended at its end; the ids of all that was there stay."""
        import tokenizers

        settings = json.loads(self._backend.to_str())
        settings['model']['vocab'] = {token: index for index, token in enumerate([*self.tokens, *words])}
        return WordPiece(tokenizers.Tokenizer.from_str(json.dumps(settings)))

    def normalize(self, text: str) -> str:
        """Text as it is looked up in the vocabulary: lowercased, without accents, as the settings say."""
        return self._backend.normalizer.normalize_str(text)

    def save(self, directory: str | os.PathLike[str], max_length: int = 512) -> None:
        directory = pathlib.Path(directory)
        settings = {
            'tokenizer_class': 'BertTokenizer' if self._is_plain() else 'PreTrainedTokenizerFast',
            'do_lower_case': self.lowercase,
            'strip_accents': self.strip_accents,
            'tokenize_chinese_chars': self._normalizer['handle_chinese_chars'],
            'model_max_length': max_length,
        }
        self._save(directory, settings)
        (directory / 'vocab.txt').write_text(''.join(f'{token}\n' for token in self.tokens), 'utf-8', newline='\n')

    def _is_plain(self) -> bool:
        """Whether `transformers.BertTokenizer`, made of a vocabulary and three flags alone, gives the same ids."""
        plain = _bert_backend({}, config.Tokenizer(lowercase=self.lowercase, strip_accents=self.strip_accents))
        expected = json.loads(plain.to_str())
        flags = ('lowercase', 'strip_accents', 'handle_chinese_chars', 'vocab')
        return all(
            {key: value for key, value in (self._settings[part] or {}).items() if key not in flags}
            == {key: value for key, value in expected[part].items() if key not in flags}
            for part in ('model', 'normalizer', 'pre_tokenizer')
        )


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
    train = _train_wordpiece if settings.kind == 'wordpiece' else train_sentencepiece
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
    needed, covered = ALPHABET_COVERAGE * characters.total(), 0
    pieces = []
    for character, count in sorted(characters.items(), key=lambda item: (-item[1], item[0])):
        if covered >= needed or len(pieces) + 2 > limit:
            break
        covered += count
        pieces.append(character)
        if character in continuing:
            pieces.append('##' + character)
    return sorted(pieces)


# --- Loading. ---


def load_tokenizer(path: str | os.PathLike[str], *, lowercase: bool, strip_accents: bool | None) -> Tokenizer:
    """Loads a `vocab.txt`, a `tokenizer.json`, a SentencePiece `.model`, or a directory that holds them.

    A vocabulary keeps its ids: the id of a token is its line. `lowercase` and `strip_accents` count where the files do
    not say (`vocab.txt` and `.model` alone); a `tokenizer.json` or a directory's `tokenizer_config.json` says.
    `strip_accents=None` means 'as lowercase', as in the original and in `transformers`.

    Raises:
      BadInput: for a file that is not there, not a tokenizer, or without one of the special tokens (named).
    """
    path = pathlib.Path(path)
    if path.is_dir():
        return _load_directory(path, lowercase, strip_accents)
    strip_accents = lowercase if strip_accents is None else strip_accents
    if not path.is_file():
        raise BadInput(f'tokenizer {path}', 'is not there', 'a vocab.txt, tokenizer.json, .model file, or a directory')
    if path.suffix == '.model':
        return _sentencepiece(path.read_bytes(), lowercase, strip_accents, str(path))
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


def load_saved_tokenizer(directory: str | os.PathLike[str]) -> Tokenizer:
    """Loads what `Tokenizer.save` wrote to a directory: its files name all settings.

    Raises:
      BadInput: as `load_tokenizer`.
    """
    return load_tokenizer(directory, lowercase=True, strip_accents=None)


def _sentencepiece(model: bytes, lowercase: bool, strip_accents: bool, where: str) -> SentencePiece:
    """Of a model file; `prepare` loads one twice, once from where it was and once from where it was copied to."""
    key = model, lowercase, strip_accents
    if key not in _LAST_LOADED:
        loaded = SentencePiece(model, lowercase=lowercase, strip_accents=strip_accents, where=where)
        _LAST_LOADED.clear()
        _LAST_LOADED[key] = loaded
    return _LAST_LOADED[key]


def _load_directory(directory: pathlib.Path, lowercase: bool, strip_accents: bool | None) -> Tokenizer:
    settings, path = {}, directory / 'tokenizer_config.json'
    if path.is_file():
        try:
            settings = read_json(path)
        except DamagedJson as error:
            raise BadInput(str(path), str(error), 'the settings of a tokenizer') from error
    lowercase = settings.get('do_lower_case', lowercase)
    if settings:  # where it does not say, accents go with the capitals, as in `transformers`
        accents = settings.get('strip_accents')
        strip_accents = lowercase if accents is None else accents
    for name in ('sentencepiece.model', 'tokenizer.json', 'vocab.txt'):
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


def _batches(items: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
