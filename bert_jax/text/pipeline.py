"""Any other tokenizer.json: a pipeline of the `tokenizers` library, used as it is.

This covers byte-level BPE (RoBERTa, ModernBERT), BPE with byte fallback (Gemma), Unigram and whatever else the library
opens. The library does all the work, so its ids are the ids here.
"""

import functools
import hashlib
import itertools
import json
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

import numpy as np

from bert_jax.text.blanks import BlankRule, find_blank_rule, find_exceptions
from bert_jax.text.special_tokens import SpecialTokens
from bert_jax.text.vocabulary import Vocabulary, encode_joined, library_errors, tokenizer_hash, tokens_by_id
from bert_jax.text.word_boundaries import (
    MarkedBoundaries,
    PreTokenizerBoundaries,
    WordBoundaries,
    bytes_of_token,
    is_inside_character,
)
from bert_jax.text.wordpiece import check_longest_word

_BYTE = re.compile('<0x[0-9A-F]{2}>')  # a token of byte fallback
_PLAIN_WORD = re.compile(r' [^\s▁]+')


class Pipeline(Vocabulary):
    """A pipeline of the `tokenizers` library, with its own normalization."""

    splits_at_punctuation = False

    def __init__(self, backend: Any, special_tokens: SpecialTokens, where: str = 'tokenizer'):
        """Wraps a `tokenizers.Tokenizer`, whose ids must be bounded; error messages call it `where`.

        Raises:
          BadInput: for a vocabulary that is too large, or a WordPiece model that looks up words that are too long.
        """
        if getattr(backend.model, 'dropout', None) is not None:  # random merges, for training
            backend.model.dropout = None
        self._wrap(backend, tokens_by_id(backend), where, special_tokens)
        content = backend.to_str()
        settings = json.loads(content)
        self._model = {key: value for key, value in settings['model'].items() if key not in ('vocab', 'merges')}
        self.kind = self._model['type'].lower()
        if self.kind == 'wordpiece':
            check_longest_word(self._model, where)
        self._added = {token['content'] for token in settings['added_tokens']}
        self._is_byte_level = 'ByteLevel' in str(settings['pre_tokenizer'])
        self.blank_rule = find_blank_rule(settings)
        self._rules = ['pipeline', hashlib.sha256(content.encode()).hexdigest(), list(special_tokens)]
        self.hash = tokenizer_hash(self._rules)
        self.lowercase = 'A' not in self.normalize('A')
        self.strip_accents = 'e' in unicodedata.normalize('NFC', self.normalize('é'))
        alone, within = self.encode_batch(['a', ' a'])
        self.word_prefix = ' ' if within != alone else ''

    def extended(self, words: list[str]) -> 'Pipeline':
        """Returns this pipeline with words added, which are found in the text before the model splits it.

        A word takes the blank before it, as a subword that begins a word does.
        """
        import tokenizers

        backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
        # Of a text in which normalization marks words, only the original can be searched for words.
        is_normalized = (self.lowercase or self.strip_accents) and '▁' not in super().normalize('x')
        flags = {'single_word': True, 'lstrip': True, 'normalized': is_normalized}
        backend.add_tokens([tokenizers.AddedToken(word, **flags) for word in words])
        return Pipeline(backend, self.special_tokens, where=self._where)

    def normalize(self, text: str) -> str:
        return super().normalize(text).strip('▁')

    def word_text(self, token_id: int) -> str:
        return self.word_prefix + self.tokens[token_id]

    def token(self, token_id: int) -> str:
        """Returns the token of an id; of the byte-level alphabet, its text if that is whole characters."""
        token = self.tokens[token_id]
        if not self._is_byte_level or token in self._added:
            return token
        text = self.decode([token_id])
        return token if '\ufffd' in text else text

    def save(self, directory: str | os.PathLike[str], max_length: int = 512, token_types: bool = True) -> None:
        settings = {'tokenizer_class': 'PreTrainedTokenizerFast', 'model_max_length': max_length}
        self._save(pathlib.Path(directory), settings, token_types)

    # --- Words. ---

    @functools.cached_property
    def whole_texts(self) -> re.Pattern[str] | None:
        return find_exceptions(self._split) if self.blank_rule is BlankRule.MOSTLY_KEEPS else None

    def encode_words(self, words: list[str]) -> Iterator[tuple[list[str], np.ndarray, np.ndarray]]:
        if self.blank_rule is BlankRule.DROPS:
            yield from super().encode_words(words)
            return
        yield from super().encode_words(list(itertools.filterfalse(_PLAIN_WORD.fullmatch, words)))
        plain = list(filter(_PLAIN_WORD.fullmatch, words))
        yield from encode_joined(plain, '', self.encode_batch, self._begins_word)

    @functools.cached_property
    def _begins_word(self) -> np.ndarray:
        """bool [V], tokens that begin with the blank before a word."""
        return np.array([token.startswith('Ġ' if self._is_byte_level else '▁') for token in self.tokens])

    def continues_word(self, ids: np.ndarray) -> np.ndarray:
        return self._boundaries.continues(ids)

    @functools.cached_property
    def _boundaries(self) -> WordBoundaries:
        is_alone = self.is_special | np.array([token in self._added for token in self.tokens])
        if prefix := self._model.get('continuing_subword_prefix'):
            begins = np.array([not token.startswith(prefix) for token in self.tokens])
            return MarkedBoundaries(begins | is_alone, is_alone)
        if suffix := self._model.get('end_of_word_suffix'):
            ends = np.array([token.endswith(suffix) for token in self.tokens])
            return MarkedBoundaries(is_alone, ends | is_alone)
        words = self._split('one two')
        if len(words) == 1:
            begins = np.array([token.startswith(('▁', ' ')) for token in self.tokens])
            return MarkedBoundaries(begins | is_alone, is_alone)
        if not self._is_byte_level and '▁' not in words[-1]:  # tokens do not show where a blank was
            return MarkedBoundaries(np.ones(self.vocab_size, bool), is_alone)
        if self._is_byte_level:
            contents = [bytes_of_token(token) for token in self.tokens]
            is_tail = np.array([is_inside_character(content) for content in contents])
        else:
            is_byte = [bool(_BYTE.fullmatch(token)) for token in self.tokens]  # of byte fallback, within a word
            is_tail = np.array(is_byte) & bool(self._model.get('byte_fallback'))
            is_tail[self.unk_id] = True  # the mark of a word is known, so what is unknown is within the word
            is_alone = is_alone & (np.arange(self.vocab_size) != self.unk_id)
            contents = [b'' if tail else token.encode() for token, tail in zip(self.tokens, is_tail, strict=True)]
        return PreTokenizerBoundaries(contents, is_tail & ~is_alone, is_alone, self._pre_tokenize)

    def _split(self, text: str) -> list[str]:
        return [piece for piece, _ in self._pre_tokenize(super().normalize(text))]

    def _pre_tokenize(self, text: str) -> list[tuple[str, tuple[int, int]]]:
        if self._backend.pre_tokenizer is None:
            return [(text, (0, len(text)))]
        with library_errors(self._where):
            return self._backend.pre_tokenizer.pre_tokenize_str(text)
