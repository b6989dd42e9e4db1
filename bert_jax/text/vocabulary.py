"""The tokenizer protocol, and what all kinds of tokenizer share. V is the size of the vocabulary.

Ids of special tokens are looked up, never assumed: a provided vocabulary keeps its ids.
"""

import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np

from bert_jax.errors import BadInput
from bert_jax.text.blanks import BlankRule
from bert_jax.text.special_tokens import SPECIAL_TOKENS, SpecialTokens

_SURROGATE = re.compile('[\ud800-\udfff]')
MAX_TOKENS = 1 << 22
_WORDS_AT_ONCE = 32
_UNUSED = re.compile(r'[\[<]unused[_-]?(id-)?\d+[\]>]')  # reserved entries of a vocabulary, such as [unused17]
ALPHABET_COVERAGE = 0.9999  # of the characters of a training sample; all others become [UNK]


class Tokenizer(Protocol):
    """The interface of a tokenizer.

    Attributes:
      kind: `wordpiece`, `sentencepiece`, or the model of another tokenizer.json: `bpe`, `unigram`, ….
      special_tokens: their names; `pad_id`, … are their ids.
      tokens: the V tokens by id.
      is_special: bool [V]; whether a token is not text: special tokens such as [PAD] and [UNK], and unused entries.
      hash: SHA-256 of vocabulary and settings; tokenizers with equal hashes give equal ids for every text.
      blank_rule: how the ids of a text follow from those of its words; None if they do not.
      whole_texts: texts in which this is found are an exception from the rule; None if there are none.
      splits_at_punctuation: whether the ids of a word are the concatenated ids of its ASCII punctuation marks and of
        the text between them.
      word_prefix: what precedes a word within a text: a blank if that makes a difference, else ''.
      mask_takes_blanks: whether the mask token takes the place of the blanks before it, too.
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
    special_tokens: SpecialTokens
    tokens: list[str]
    is_special: np.ndarray
    hash: str
    blank_rule: BlankRule | None
    whole_texts: re.Pattern[str] | None
    splits_at_punctuation: bool
    word_prefix: str
    mask_takes_blanks: bool

    def agrees_with(self, other: 'Tokenizer') -> bool:
        """Whether both give the same ids for every text in Unicode NFC."""

    def continues_word(self, ids: np.ndarray) -> np.ndarray:
        """Returns bool [B, L], whether each token continues the word of the token before it.  Args: ids [B, L]."""

    def extended(self, words: list[str]) -> 'Tokenizer':
        """Returns this vocabulary with whole words appended; existing ids do not change."""

    def normalize(self, text: str) -> str:
        """Normalizes a word as for a lookup in the vocabulary: to lower case, without accents, by the settings."""

    def word_text(self, token_id: int) -> str:
        """Returns the text of a token that is a whole word, with `word_prefix`."""

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Returns the ids of each text, without special tokens; `[MASK]` in the text is plain text.

        Raises:
          BadInput: if a rule of the tokenizer's file fails on a text (a regular expression that backtracks forever).
        """

    def encode_words(self, words: list[str]) -> Iterator[tuple[list[str], np.ndarray, np.ndarray]]:
        """Yields groups of (words, concatenated ids, number of ids of each word); each word once, in any order."""

    def encode_with_offsets(self, texts: list[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Returns (ids, the characters [start, end) of each id) for each text, without special tokens."""

    def decode(self, ids: Iterable[int]) -> str:
        """Converts ids to readable text; omits special tokens except [UNK]."""

    def token(self, token_id: int) -> str:
        """Returns the token of an id."""

    def save(self, directory: str | os.PathLike[str], max_length: int = 512, token_types: bool = True) -> None:
        """Writes files that `load_tokenizer(directory)` reads, and that give the same ids in `transformers`.

        Args:
          max_length: number of tokens to which `transformers` truncates a text, on request.
          token_types: whether the model has token types, which `transformers` then gets: 1 for a second text.
        """


class Vocabulary:
    """The common base of all kinds: a `tokenizers.Tokenizer`, and everything that follows from its tokens."""

    word_prefix = ''
    whole_texts: re.Pattern[str] | None = None
    _rules: list[Any]  # everything that the ids of text in NFC depend on

    def _wrap(
        self, backend: Any, tokens: list[str], where: str, special_tokens: SpecialTokens = SPECIAL_TOKENS
    ) -> None:
        if len(tokens) > MAX_TOKENS:
            raise BadInput(where, f'has {len(tokens):,} tokens', f'at most {MAX_TOKENS:,}')
        ids = {token: index for index, token in enumerate(tokens)}
        missing = [token for token in special_tokens if token not in ids]
        if missing:
            raise BadInput(where, f'has no {", ".join(missing)}', 'a vocabulary with ' + ' '.join(special_tokens))
        self.tokens, self.special_tokens, self._where = tokens, special_tokens, where
        self.vocab_size = len(tokens)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (ids[token] for token in special_tokens)
        added = list(backend.get_added_tokens_decoder().values())
        self.mask_takes_blanks = any(token.lstrip for token in added if token.content == special_tokens.mask)
        special = {token.content for token in added if token.special}
        backend.add_special_tokens([token for token in special_tokens if token not in special])
        special.update(special_tokens)
        self.is_special = np.array([token in special or bool(_UNUSED.fullmatch(token)) for token in tokens])
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True  # '[SEP]' in a text is five characters, not a separator
        self._backend = backend
        self._frame_texts(token_types=True)

    def _frame_texts(self, *, token_types: bool) -> None:
        """Makes `transformers` put the special tokens around a text or two."""
        from tokenizers import processors

        cls, sep, second = self.special_tokens.cls, self.special_tokens.sep, int(token_types)
        self._backend.post_processor = processors.TemplateProcessing(
            single=[f'{cls}:0', '$A:0', f'{sep}:0'],
            pair=[f'{cls}:0', '$A:0', f'{sep}:0', f'$B:{second}', f'{sep}:{second}'],
            special_tokens=[(cls, self.cls_id), (sep, self.sep_id)],
        )

    def token(self, token_id: int) -> str:
        return self.tokens[token_id]

    def word_text(self, token_id: int) -> str:
        return self.tokens[token_id]

    def normalize(self, text: str) -> str:
        if self._backend.normalizer is None:
            return text
        with library_errors(self._where):
            return self._backend.normalizer.normalize_str(text)

    def agrees_with(self, other: Tokenizer) -> bool:
        return isinstance(other, Vocabulary) and self._rules == other._rules

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._encodings(self._backend.encode_batch_fast, texts)]

    def encode_words(self, words: list[str]) -> Iterator[tuple[list[str], np.ndarray, np.ndarray]]:
        yield words, *flatten(self.encode_batch(words))

    def encode_with_offsets(self, texts: list[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        return [(encoding.ids, encoding.offsets) for encoding in self._encodings(self._backend.encode_batch, texts)]

    def _encodings(self, encode: Callable[..., list[Any]], texts: list[str]) -> list[Any]:
        """Calls the library's `encode`; lone surrogates, which UTF-8 cannot represent, become U+FFFD."""
        with library_errors(self._where):
            try:
                return encode(texts, add_special_tokens=False)
            except TypeError:
                return encode([_SURROGATE.sub('\ufffd', text) for text in texts], add_special_tokens=False)

    def decode(self, ids: Iterable[int]) -> str:
        frame = (self.pad_id, self.cls_id, self.sep_id, self.mask_id)
        with library_errors(self._where):
            return self._backend.decode([int(index) for index in ids if index not in frame], skip_special_tokens=False)

    def _save(self, directory: pathlib.Path, settings: dict[str, Any], token_types: bool) -> None:
        """Writes tokenizer.json, special_tokens_map.json and tokenizer_config.json."""
        directory.mkdir(parents=True, exist_ok=True)
        self._frame_texts(token_types=token_types)
        # Not with the library's `save`, which raises a bare Exception for a full disk.
        (directory / 'tokenizer.json').write_text(self._backend.to_str(pretty=True), 'utf-8', newline='\n')
        special = {f'{role}_token': name for role, name in self.special_tokens._asdict().items()}
        names = ['input_ids', 'token_type_ids', 'attention_mask']
        settings |= {'model_input_names': names if token_types else [names[0], names[2]]}
        _write_json(directory / 'special_tokens_map.json', special)
        _write_json(directory / 'tokenizer_config.json', settings | special)


_RULES_FAIL = 'has rules that fail on this text'
_SAFE_RULES = 'patterns without nested repetitions such as "(a+)+", which backtrack for too long'


@contextlib.contextmanager
def library_errors(where: str, found: str = _RULES_FAIL, expected: str = _SAFE_RULES) -> Iterator[None]:
    """Reports any error of the `tokenizers` library as a problem of the tokenizer's file.

    Raises:
      BadInput: for any error of the library, including panics of its Rust code.
    """
    try:
        yield
    except BadInput:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise BadInput(where, f'{found} ({error})', expected) from None
    except BaseException as error:
        if type(error).__name__ != 'PanicException':  # of pyo3, which does not export the class
            raise
        raise BadInput(where, f'{found} ({error})', expected) from None


def encode_with_masks(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Encodes [CLS] text [SEP], int32 [L]; each '[MASK]' in the text, or its name here, becomes the mask token."""
    *before, last = re.split('|'.join(map(re.escape, {'[MASK]', tokenizer.special_tokens.mask})), text)
    before = [segment.rstrip() for segment in before] if tokenizer.mask_takes_blanks else before
    ids = [tokenizer.cls_id]
    for index, segment_ids in enumerate(tokenizer.encode_batch([*before, last])):
        ids += [tokenizer.mask_id] * (index > 0) + list(segment_ids)
    return np.array([*ids, tokenizer.sep_id], np.int32)


def encode_joined(
    words: list[str],
    joiner: str,
    encode: Callable[[list[str]], list[list[int]]],
    begins_word: np.ndarray,
    max_length: int | None = None,
) -> Iterator[tuple[list[str], np.ndarray, np.ndarray]]:
    """Encodes several words as one text, which takes a fraction of the time; yields what `encode_words` does.

    Words are separated where a token begins one. Those of a text without exactly one such token per word are encoded
    one by one.

    Args:
      words: each such that only its first token can begin a word.
      joiner: what separates the words of a text.
      encode: returns the ids of texts.
      begins_word: bool [V], whether a token begins a word.
      max_length: characters of a text, at most.
    """
    if not words:
        return
    starts = range(0, len(words), _WORDS_AT_ONCE)
    texts = [joiner.join(words[start : start + _WORDS_AT_ONCE]) for start in starts]
    ids, sizes = flatten(encode(texts))
    text_of = np.repeat(np.arange(len(texts)), sizes)
    begins = begins_word[ids]
    words_in = np.minimum(_WORDS_AT_ONCE, len(words) - np.array(starts))
    is_sound = np.bincount(text_of, begins, len(texts)) == words_in
    if max_length is not None:
        is_sound &= np.array([len(text) for text in texts]) <= max_length
    in_sound_text = is_sound[text_of]
    sizes_of_words = np.diff(np.flatnonzero(begins[in_sound_text]), append=int(in_sound_text.sum()))
    is_sound = np.repeat(is_sound, words_in).tolist()
    yield list(itertools.compress(words, is_sound)), ids[in_sound_text], sizes_of_words
    alone = [word for word, sound in zip(words, is_sound, strict=True) if not sound]
    yield alone, *flatten(encode(alone))


def tokens_by_id(backend: Any) -> list[str]:
    """Returns the tokens of a `tokenizers.Tokenizer` by id, with added ones; ids without a token get a name."""
    vocabulary = backend.get_vocab(with_added_tokens=True)
    tokens = [f'[unused-id-{index}]' for index in range(max(vocabulary.values(), default=-1) + 1)]
    for token, index in vocabulary.items():
        tokens[index] = token
    return tokens


def flatten(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Concatenates rows of ids; returns (all ids, length of each row), int64."""
    sizes = np.fromiter(map(len, rows), np.int64, len(rows))
    return np.fromiter(itertools.chain.from_iterable(rows), np.int64, int(sizes.sum())), sizes


def tokenizer_hash(parts: list[Any]) -> str:
    """Returns SHA-256 of everything that ids depend on, as JSON; it is stored in corpora and workdirs."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + '\n', 'utf-8')
