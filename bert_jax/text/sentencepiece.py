"""SentencePiece unigram models (Kudo and Richardson 2018), run by the `tokenizers` library.

A model file becomes a pipeline that a `tokenizer.json` can hold, and that pipeline splits the text here too: an export
gives the ids that the model was trained on, because it is the same program. Only plain words are given to the
sentencepiece library, ten times as fast, where it can be told beforehand that it must agree. For a model trained here
the two agree (the scores are multiples of 1/256, so that ties between two ways to split a word are ties in any
arithmetic), but for a wide or letterlike character with a combining mark on it, whose mark is lost. A model brought
along may also differ where two ways score the same to within rounding, and beside user-defined symbols.
"""

import functools
import hashlib
import io
import itertools
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

import numpy as np

from bert_jax import config
from bert_jax.console import say
from bert_jax.errors import BadInput
from bert_jax.text.vocabulary import (
    ALPHABET_COVERAGE,
    MAX_TOKENS,
    SPECIAL_TOKENS,
    Vocabulary,
    flatten,
    library_errors,
    tokenizer_hash,
)

_LONGEST_SENTENCE = 1 << 14  # bytes; SentencePiece skips longer lines while it trains
_MUCH_SKIPPED = 0.01  # of the sample
_SCORE_STEP = 2.0**-8  # nats
_WORDS_AT_ONCE, _LONGEST_TEXT = 32, 1600  # characters; few enough that float32 holds the sum of their scores exactly
# Letters with Grapheme_Cluster_Break=Prepend (Unicode 16, UAX 29).
_PREPENDED_LETTERS = (
    '\u0d4e\U000111c2\U000111c3\U000113d1\U0001193f\U00011941\U00011a3a\U00011a84\U00011a85\U00011a86'
    '\U00011a87\U00011a88\U00011a89\U00011d46\U00011f02'
)
_UNUSABLE = 'is not a SentencePiece model that can be used', 'a .model file as spm_train writes it'
_PIPELINE = 1  # raised when the same model file gives other ids


class SentencePiece(Vocabulary):
    """A SentencePiece model whose special pieces carry BERT's names."""

    kind = 'sentencepiece'
    splits_at_punctuation = False  # a piece may hold marks and letters

    def __init__(self, model: bytes, *, lowercase: bool, strip_accents: bool, where: str = 'tokenizer'):
        """Wraps a serialized model.

        `lowercase` and `strip_accents` are done before the model's own normalization.

        Raises:
          BadInput: for bytes that are not a unigram model, or missing special pieces.
        """
        self._model = model
        proto = _parse(model, where)
        if proto.trainer_spec.model_type != proto.trainer_spec.UNIGRAM or proto.trainer_spec.treat_whitespace_as_suffix:
            kind = proto.trainer_spec.ModelType.Name(proto.trainer_spec.model_type).lower()
            found = 'puts spaces behind words' if kind == 'unigram' else f'is a {kind} model'
            raise BadInput(where, found, 'a unigram model with spaces before words, the default of sentencepiece')
        tokens = [piece.piece for piece in proto.pieces]
        with library_errors(where, *_UNUSABLE):
            self._wrap(_pipeline(proto, lowercase, strip_accents), tokens, where)
        is_text = [piece.type in (piece.NORMAL, piece.USER_DEFINED, piece.BYTE) for piece in proto.pieces]
        self.is_special = self.is_special | ~np.array(is_text)
        self.lowercase, self.strip_accents = lowercase, strip_accents
        self.is_continuation = np.array([not token.startswith('▁') and token not in SPECIAL_TOKENS for token in tokens])
        self._begins_word = np.array([token.startswith('▁') for token in tokens])
        self._marks_words = proto.normalizer_spec.remove_extra_whitespaces and proto.normalizer_spec.add_dummy_prefix
        self._marks_words &= not any(' ' in piece.piece for piece in proto.pieces if piece.type == piece.USER_DEFINED)
        with library_errors(where, *_UNUSABLE):
            self._library = _exact_library(model, proto) if self._marks_words else None
        names = [piece.piece[0] for piece in proto.pieces if piece.type != piece.NORMAL]
        self._plain = re.compile('[' + ''.join(re.escape(c) for c in map(chr, range(33, 127)) if c not in names) + ']+')

    @functools.cached_property
    def hash(self) -> str:
        return tokenizer_hash(self._rules)

    @functools.cached_property
    def _rules(self) -> list[Any]:
        model = hashlib.sha256(self._model).hexdigest()
        return [self.kind, _PIPELINE, model, self.lowercase, self.strip_accents]

    def with_normalization(self, *, lowercase: bool, strip_accents: bool) -> 'SentencePiece':
        return SentencePiece(self._model, lowercase=lowercase, strip_accents=strip_accents, where=self._where)

    @functools.cached_property
    def splits_at_blanks(self) -> bool:
        """The pipeline cuts text at blanks before the model sees it; what it does before that must not pass over one.

        Unicode puts a blank into one grapheme with the marks and joiners behind it, and with a few letters before it,
        and the model's own table of characters is asked about graphemes: each is tried on both sides of a blank.
        """
        if not self._marks_words:
            return False
        normalize = self._backend.normalizer.normalize_str
        words = [f'{character}a{character}' for character in _joiners()]
        return normalize(' '.join(words)) == '▁' + ' '.join(normalize(word).removeprefix('▁') for word in words)

    def encode_words(self, words: list[str]) -> Iterator[tuple[list[str], np.ndarray, np.ndarray]]:
        if self._library is None:
            yield from super().encode_words(words)
            return
        yield from super().encode_words(list(itertools.filterfalse(self._plain.fullmatch, words)))
        words = list(filter(self._plain.fullmatch, words))
        if not words:
            return
        starts = range(0, len(words), _WORDS_AT_ONCE)
        texts = [' '.join(words[start : start + _WORDS_AT_ONCE]) for start in starts]
        texts = [text.lower() for text in texts] if self.lowercase else texts
        ids, sizes = flatten(self._library.encode(texts, num_threads=1))
        # Several words as one text cost the library a third; they are cut again where a piece begins a word.
        text_of = np.repeat(np.arange(len(texts)), sizes)
        begins = self._begins_word[ids]
        words_in = np.minimum(_WORDS_AT_ONCE, len(words) - np.array(starts))
        is_sound = np.bincount(text_of, begins, len(texts)) == words_in  # '▁' may be no piece, and unknown
        is_sound &= np.array([len(text) for text in texts]) <= _LONGEST_TEXT
        kept = is_sound[text_of]
        sizes_of_words = np.diff(np.flatnonzero(begins[kept]), append=int(kept.sum()))
        is_sound = np.repeat(is_sound, words_in).tolist()
        yield list(itertools.compress(words, is_sound)), ids[kept], sizes_of_words
        alone = [word for word, sound in zip(words, is_sound, strict=True) if not sound]
        lowered = [word.lower() for word in alone] if self.lowercase else alone
        yield alone, *flatten(self._library.encode(lowered, num_threads=1))

    def save(self, directory: str | os.PathLike[str], max_length: int = 512) -> None:
        directory = pathlib.Path(directory)
        settings = {
            'tokenizer_class': 'PreTrainedTokenizerFast',
            'do_lower_case': self.lowercase,
            'strip_accents': self.strip_accents,
            'model_max_length': max_length,
        }
        self._save(directory, settings)
        (directory / 'sentencepiece.model').write_bytes(self._model)


def _exact_library(model: bytes, proto: Any) -> Any:
    """The sentencepiece library's processor of a model, where it gives words of plain ASCII the pipeline's ids.

    That is where scores are multiples of a step, so that sums are exact in any order and ties are ties, where no piece
    is matched before the model looks, and where neither changes such characters. None elsewhere.
    """
    import sentencepiece

    piece_type = proto.SentencePiece
    scores = np.array([piece.score for piece in proto.pieces]) / _SCORE_STEP
    is_simple = {piece.type for piece in proto.pieces} <= {piece_type.NORMAL, piece_type.CONTROL, piece_type.UNKNOWN}
    if (scores != np.rint(scores)).any() or not is_simple or proto.trainer_spec.byte_fallback:
        return None
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    plain = ''.join(map(chr, range(33, 127)))
    return library if library.normalize(plain) == '▁' + plain else None


def _joiners() -> list[str]:
    """Characters that may share a grapheme with a blank: marks, format characters, letters written onto the next."""
    joining = ('Mn', 'Mc', 'Me', 'Cf')
    planes = itertools.chain(range(0x20000), range(0xE0000, 0xE1000))  # all others hold ideographs, or nothing
    found = [character for character in map(chr, planes) if unicodedata.category(character) in joining]
    return found + list(_PREPENDED_LETTERS)


def train_sentencepiece(settings: config.Tokenizer, sample: list[str]) -> SentencePiece:
    """A unigram vocabulary; the same sample gives the same one.

    Raises:
      BadInput: when `vocab_size` has no room for the characters of the text.
    """
    import sentencepiece

    settings = settings.for_training()
    flags: dict[str, Any] = {'lowercase': settings.lowercase, 'strip_accents': settings.strip_accents}
    first = _before_model(**flags, compose=True)
    _report_long_sentences(sample)
    writer = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(first.normalize_str(text).replace('\n', ' ') for text in sample),
            model_writer=writer,
            model_type='unigram',
            vocab_size=settings.vocab_size,
            hard_vocab_limit=False,
            character_coverage=ALPHABET_COVERAGE,
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
    proto = _parse(writer.getvalue(), 'tokenizer')
    for piece in proto.pieces:
        piece.score = round(piece.score / _SCORE_STEP) * _SCORE_STEP
    model = proto.SerializeToString(deterministic=True)
    return SentencePiece(model, **flags)


def _report_long_sentences(sample: list[str]) -> None:
    sizes = [len(text.encode()) for text in sample]
    too_long = [num_bytes for num_bytes in sizes if num_bytes > _LONGEST_SENTENCE]
    if sum(too_long) > _MUCH_SKIPPED * sum(sizes):
        share = sum(too_long) / sum(sizes)
        say(
            f'warning: {share:.0%} of the sample lies in {len(too_long):,} sentences of more than '
            f'{_LONGEST_SENTENCE:,} bytes, which the training of SentencePiece skips'
        )


def read_pieces(model: bytes, where: str) -> list[str]:
    """The pieces of a serialized model.

    Raises:
      BadInput: when it is none.
    """
    return [piece.piece for piece in _parse(model, where).pieces]


def _parse(model: bytes, where: str) -> Any:
    """The `ModelProto` of a serialized model."""
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    messages: Any = sentencepiece_model_pb2  # protobuf makes its classes when it is imported
    try:
        proto = messages.ModelProto.FromString(model)
    except DecodeError:
        proto = None
    if proto is None or not proto.pieces:
        raise BadInput(where, 'is not a SentencePiece model', 'a .model file') from None
    if len(proto.pieces) > MAX_TOKENS:
        raise BadInput(where, f'has {len(proto.pieces):,} pieces', f'at most {MAX_TOKENS:,}')
    if not all(isinstance(piece.piece, str) for piece in proto.pieces):  # protobuf gives what is not UTF-8 as bytes
        raise BadInput(where, 'has a piece that is not UTF-8', 'a .model file')
    return proto


def _before_model(lowercase: bool, strip_accents: bool, compose: bool) -> Any:
    """What is done to text before the model's own normalization."""
    from tokenizers import normalizers

    bert = normalizers.BertNormalizer(
        clean_text=False, handle_chinese_chars=False, strip_accents=strip_accents, lowercase=lowercase
    )
    return normalizers.Sequence([bert, normalizers.NFC()] if compose else [bert])


def _pipeline(proto: Any, lowercase: bool, strip_accents: bool) -> Any:
    """The `tokenizers.Tokenizer` of a model."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    kinds = {number: name for name, number in proto.SentencePiece.Type.items()}
    by_kind: dict[str, list[str]] = {name: [] for name in kinds.values()}
    for piece in proto.pieces:
        by_kind[kinds[piece.type]].append(piece.piece)
    if len(by_kind['UNKNOWN']) != 1:
        raise BadInput('tokenizer', f'has {len(by_kind["UNKNOWN"])} unknown pieces', 'one')
    tokens = [piece.piece for piece in proto.pieces]
    backend = tokenizers.Tokenizer(
        models.Unigram(
            [(piece.piece, piece.score) for piece in proto.pieces],
            unk_id=tokens.index(by_kind['UNKNOWN'][0]),
            byte_fallback=proto.trainer_spec.byte_fallback,
        )
    )
    spec = proto.normalizer_spec
    # `Precompiled` looks up whole graphemes and sees no sequences longer than six bytes: composing before and after
    # it gives Hangul and accents the single characters that the model's own table would.
    compose = strip_accents or bool(spec.precompiled_charsmap)
    steps = [_before_model(lowercase, strip_accents, compose)]
    if spec.precompiled_charsmap:
        steps += [normalizers.Precompiled(spec.precompiled_charsmap), normalizers.NFC()]
    if spec.remove_extra_whitespaces:
        steps += [
            normalizers.Replace(tokenizers.Regex(' {2,}'), ' '),
            normalizers.Replace(tokenizers.Regex('^ | $'), ''),
        ]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend('▁'))
    backend.normalizer = normalizers.Sequence(steps)
    # The model would find its own '[SEP]' in somebody's text: such names are cut in two before it looks.
    names = '|'.join(
        f'{re.escape(token[0])}(?={re.escape(token[1:])})'
        for kind in ('CONTROL', 'UNKNOWN', 'UNUSED', 'BYTE')
        for token in by_kind[kind]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme='never'),
            pre_tokenizers.Split(tokenizers.Regex(names), 'isolated'),
        ]
    )
    backend.decoder = decoders.Metaspace(prepend_scheme='always' if spec.add_dummy_prefix else 'never')
    backend.add_tokens([tokenizers.AddedToken(token, normalized=False) for token in by_kind['USER_DEFINED']])
    return backend
