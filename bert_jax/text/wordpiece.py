"""WordPiece as in BERT (Devlin et al. 2019), with the `tokenizers` library: vocabularies and their training."""

import functools
import itertools
import json
import os
import pathlib
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.text.blanks import BlankRule
from bert_jax.text.special_tokens import SPECIAL_TOKENS
from bert_jax.text.vocabulary import ALPHABET_COVERAGE, Vocabulary, tokenizer_hash, tokens_by_id

_MAX_CHARACTERS_PER_WORD = 100  # longer words are [UNK], as in `transformers`; 200 in the original release
_MAX_CONFIGURABLE_CHARACTERS = 10_000  # of a word; a file may not set more, as time grows with its square
_MAX_EXPANSION = 4  # characters that normalization makes of one (canonical decomposition of Unicode)


class WordPiece(Vocabulary):
    """A WordPiece vocabulary with BERT's normalization."""

    kind = 'wordpiece'

    def __init__(self, backend: Any, where: str = 'tokenizer'):
        """Wraps a `tokenizers.Tokenizer` that `fits`, whose ids must be bounded; error messages call it `where`.

        Raises:
          BadInput: for missing special tokens, or a model that looks up words that are too long.
        """
        self._settings = json.loads(backend.to_str())
        self._model = self._settings['model']
        added = {token['content'] for token in self._settings['added_tokens']}  # others may contain blanks
        pre_tokenizer = self._settings['pre_tokenizer']
        is_plain = pre_tokenizer == {'type': 'BertPreTokenizer'} and added <= {*SPECIAL_TOKENS}
        self.blank_rule = BlankRule.DROPS if is_plain else None
        self.splits_at_punctuation = is_plain
        self._normalizer, self.composes = _bert_normalizer(self._settings['normalizer']) or ({}, False)
        if (unknown := self._model['unk_token']) not in self._model[
            'vocab'
        ]:  # as an added token only, it has no effect
            raise BadInput(where, f'has no {unknown} in its vocabulary', 'a vocabulary with a token for unknown words')
        check_longest_word(self._model, where)
        tokens = tokens_by_id(backend)
        self._wrap(backend, tokens, where)
        self.lowercase = self._normalizer['lowercase']
        accents = self._normalizer['strip_accents']
        self.strip_accents = self.lowercase if accents is None else accents
        self._is_continuation = np.array([token.startswith('##') for token in tokens])

    @staticmethod
    def fits(settings: dict[str, Any], tokens: Collection[str]) -> bool:
        """Whether the content of a tokenizer.json is a WordPiece vocabulary with BERT's names of special tokens."""
        is_bert = _bert_normalizer(settings.get('normalizer')) is not None
        is_bert &= settings['model'].get('type') == 'WordPiece'
        return is_bert and all(token in tokens for token in SPECIAL_TOKENS)

    @functools.cached_property
    def hash(self) -> str:
        *rules, _ = self._rules
        return tokenizer_hash([*rules, self._settings['normalizer']])

    @functools.cached_property
    def _rules(self) -> list[Any]:
        model = {key: value for key, value in self._model.items() if key != 'vocab'}
        return [self.kind, self.tokens, model, self._normalizer]

    def extended(self, words: list[str]) -> 'WordPiece':
        vocabulary = {token: index for index, token in enumerate([*self.tokens, *words])}
        return self._changed({'model': self._settings['model'] | {'vocab': vocabulary}})

    def with_normalization(self, *, lowercase: bool, strip_accents: bool) -> 'WordPiece':
        bert = self._normalizer | {'lowercase': lowercase, 'strip_accents': strip_accents}
        composed = {'type': 'Sequence', 'normalizers': [bert, {'type': 'NFC'}]}
        return self._changed({'normalizer': bert if strip_accents else composed})

    def _changed(self, parts: dict[str, Any]) -> 'WordPiece':
        import tokenizers

        settings = json.loads(self._backend.to_str()) | parts
        return WordPiece(tokenizers.Tokenizer.from_str(json.dumps(settings)), self._where)

    def continues_word(self, ids: np.ndarray) -> np.ndarray:
        return self._is_continuation[ids]

    def save(self, directory: str | os.PathLike[str], max_length: int = 512, token_types: bool = True) -> None:
        directory = pathlib.Path(directory)
        settings = {
            'tokenizer_class': 'BertTokenizer' if self._is_plain() else 'PreTrainedTokenizerFast',
            'do_lower_case': self.lowercase,
            'strip_accents': self.strip_accents,
            'tokenize_chinese_chars': self._normalizer['handle_chinese_chars'],
            'model_max_length': max_length,
        }
        self._save(directory, settings, token_types)
        (directory / 'vocab.txt').write_text(''.join(f'{token}\n' for token in self.tokens), 'utf-8', newline='\n')

    def _is_plain(self) -> bool:
        """Whether `transformers.BertTokenizer`, which only knows a vocabulary and three flags, gives the same ids."""
        plain = bert_backend({}, lowercase=self.lowercase, strip_accents=self.strip_accents, compose=False)
        expected = json.loads(plain.to_str())
        flags = ('lowercase', 'strip_accents', 'handle_chinese_chars', 'vocab')
        return all(
            {key: value for key, value in (self._settings[part] or {}).items() if key not in flags}
            == {key: value for key, value in expected[part].items() if key not in flags}
            for part in ('model', 'normalizer', 'pre_tokenizer')
        )


def _bert_normalizer(normalizer: dict[str, Any] | None) -> tuple[dict[str, Any], bool] | None:
    """Returns (BERT's normalizer, whether NFC follows it); None for anything else."""
    normalizer = normalizer or {}
    steps = normalizer['normalizers'] if normalizer.get('type') == 'Sequence' else [normalizer]
    composes = steps[1:] == [{'type': 'NFC'}]
    if not steps or steps[0].get('type') != 'BertNormalizer' or (steps[1:] and not composes):
        return None
    return steps[0], composes


def check_longest_word(model: dict[str, Any], where: str) -> None:
    """Checks the settings of a WordPiece model.

    Raises:
      BadInput: if it would look up words that are too long, for which it takes too much time.
    """
    if (longest := model['max_input_chars_per_word']) > _MAX_CONFIGURABLE_CHARACTERS:
        raise BadInput(where, f'max_input_chars_per_word is {longest}', f'at most {_MAX_CONFIGURABLE_CHARACTERS:,}')


def bert_backend(vocabulary: dict[str, int], *, lowercase: bool, strip_accents: bool, compose: bool) -> Any:
    """Builds the `tokenizers.Tokenizer` with BERT's rules.

    Args:
      compose: normalize to NFC after BERT's own normalization, so that a letter with an accent is always one character.
        Has no effect if accents are stripped.
    """
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    backend = tokenizers.Tokenizer(
        models.WordPiece(vocabulary, unk_token='[UNK]', max_input_chars_per_word=_MAX_CHARACTERS_PER_WORD)
    )
    bert = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=strip_accents, lowercase=lowercase
    )
    composing = compose and not strip_accents
    backend.normalizer = normalizers.Sequence([bert, normalizers.NFC()]) if composing else bert
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix='##')
    return backend


def is_decomposed(tokens: Iterable[str]) -> bool:
    """Whether a vocabulary stores accents as separate characters (NFD), which text in NFC would never match."""
    return any(len(unicodedata.normalize('NFC', token)) < len(token) for token in tokens if not token.isascii())


# --- Training. ---


def train_wordpiece(settings: config.Tokenizer, sample: list[str]) -> WordPiece:
    """Trains a vocabulary, deterministically; ignores words that are too long for a lookup."""
    from tokenizers import trainers

    settings = settings.for_training()
    flags: dict[str, Any] = {
        'lowercase': settings.lowercase,
        'strip_accents': settings.strip_accents,
        'compose': True,
    }
    backend = bert_backend({token: i for i, token in enumerate(SPECIAL_TOKENS)}, **flags)
    # The trainer assigns ids to continuing characters ('##a') in the order of a hash map, and breaks ties between
    # merges by these ids, so results would vary. Passing both alphabets as existing tokens in a fixed order makes
    # training deterministic (`limit_alphabet=0` keeps the trainer from adding characters).
    sample = list(_without_long_words(backend, sample))
    trainer = trainers.WordPieceTrainer(
        vocab_size=settings.vocab_size,
        min_frequency=2,
        limit_alphabet=0,
        special_tokens=[*SPECIAL_TOKENS, *_alphabet(backend, sample, settings.vocab_size // 2)],
        show_progress=False,
    )
    backend.train_from_iterator(sample, trainer)
    return WordPiece(bert_backend(json.loads(backend.to_str())['model']['vocab'], **flags))


def _without_long_words(backend: Any, sample: Iterable[str]) -> Iterator[str]:
    """Drops words that are too long for a lookup: the trainer's time grows with the square of their length."""
    always_short = _MAX_CHARACTERS_PER_WORD // _MAX_EXPANSION
    for text in sample:
        words = text.split(' ')
        if max(map(len, words)) > always_short:
            short = (_short_words(backend, word) if len(word) > always_short else [word] for word in words)
            text = ' '.join(itertools.chain.from_iterable(short))
        yield text


def _short_words(backend: Any, text: str) -> list[str]:
    words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text))]
    short = [word for word in words if len(word) <= _MAX_CHARACTERS_PER_WORD]
    return [text] if len(short) == len(words) else short


def _alphabet(backend: Any, sample: list[str], limit: int) -> list[str]:
    """Returns the frequent characters of the sample, and those that continue a word with '##'; in a fixed order."""
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
    alphabet = []
    for character, count in sorted(characters.items(), key=lambda item: (-item[1], item[0])):
        if covered >= needed or len(alphabet) + 2 > limit:
            break
        covered += count
        alphabet.append(character)
        if character in continuing:
            alphabet.append('##' + character)
    return sorted(alphabet)
