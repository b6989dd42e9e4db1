"""SentencePiece unigram models (Kudo and Richardson 2018), run by the `tokenizers` library.

A model file is converted to a pipeline that a `tokenizer.json` can hold, and the same pipeline splits text here. An
export therefore gives the ids that the model was trained on. Only plain words go to the sentencepiece library, which is
ten times as fast, and only if it provably gives the same ids.

For models trained here, the pipeline and the library agree: scores are multiples of 1/256, so that ties between two
ways to split a word are ties in any arithmetic. The exception is a wide or letterlike character with a combining mark,
whose mark is lost. For provided models they may also differ between splits whose scores are equal up to rounding, and
next to user-defined symbols.
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
from bert_jax.console import quantity, say
from bert_jax.errors import BadInput
from bert_jax.text.blanks import PREPENDED_LETTERS, BlankRule
from bert_jax.text.special_tokens import SPECIAL_TOKENS
from bert_jax.text.vocabulary import (
    ALPHABET_COVERAGE,
    MAX_TOKENS,
    Vocabulary,
    encode_joined,
    library_errors,
    tokenizer_hash,
)

_MAX_SENTENCE_BYTES = 1 << 14  # SentencePiece skips longer lines during training
_MIN_REPORTED = 0.01  # fraction of the sample that is skipped
_SCORE_STEP = 2.0**-8  # nats
_UNKNOWN_PENALTY = 10.0  # nats below the lowest score, as in the library
_MAX_TEXT_LENGTH = 1600  # characters of the words at once; float32 represents the sum of their scores exactly
_UNUSABLE = 'is not a usable SentencePiece model', 'a .model file written by spm_train'
_PIPELINE = 1  # version; increased if the same model file gives other ids


class SentencePiece(Vocabulary):
    """A SentencePiece model whose special pieces carry BERT's names."""

    kind = 'sentencepiece'
    splits_at_punctuation = False  # a piece may contain marks and letters

    def __init__(self, model: bytes, *, lowercase: bool, strip_accents: bool, where: str = 'tokenizer'):
        """Wraps a serialized model; `lowercase` and `strip_accents` are applied before the model's own normalization.

        Raises:
          BadInput: for bytes that are not a unigram model, or missing special tokens.
        """
        self._model = model
        proto = _parse(model, where)
        if proto.trainer_spec.model_type != proto.trainer_spec.UNIGRAM or proto.trainer_spec.treat_whitespace_as_suffix:
            kind = proto.trainer_spec.ModelType.Name(proto.trainer_spec.model_type).lower()
            found = 'puts spaces after words' if kind == 'unigram' else f'is a {kind} model'
            raise BadInput(where, found, 'a unigram model with spaces before words, the default of spm_train')
        tokens = [piece.piece for piece in proto.pieces]
        with library_errors(where, *_UNUSABLE):
            self._wrap(_pipeline(proto, lowercase, strip_accents), tokens, where)
        is_text = [piece.type in (piece.NORMAL, piece.USER_DEFINED, piece.BYTE) for piece in proto.pieces]
        self.is_special = self.is_special | ~np.array(is_text)
        self.lowercase, self.strip_accents = lowercase, strip_accents
        self._is_continuation = np.array(
            [not token.startswith('▁') and token not in SPECIAL_TOKENS for token in tokens]
        )
        self._begins_word = np.array([token.startswith('▁') for token in tokens])
        self._marks_words = proto.normalizer_spec.remove_extra_whitespaces and proto.normalizer_spec.add_dummy_prefix
        self._marks_words &= not any(' ' in piece.piece for piece in proto.pieces if piece.type == piece.USER_DEFINED)
        with library_errors(where, *_UNUSABLE):
            self._library = _load_exact_library(model, proto) if self._marks_words else None
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

    def extended(self, words: list[str]) -> 'SentencePiece':
        """Returns this model with pieces appended, such as '▁word'.

        A piece gets a score just above that of its present pieces, so that it replaces these and little else.
        """
        proto = _parse(self._model, self._where)
        lowest = min(piece.score for piece in proto.pieces) - _UNKNOWN_PENALTY
        split = self.encode_batch([word.removeprefix('▁') for word in words])
        for word, ids in zip(words, split, strict=True):
            scores = (lowest if index == self.unk_id else proto.pieces[index].score for index in ids)
            proto.pieces.add(piece=word, score=min(0.0, sum(scores) + _SCORE_STEP))
        model = proto.SerializeToString(deterministic=True)
        return SentencePiece(model, lowercase=self.lowercase, strip_accents=self.strip_accents, where=self._where)

    def word_text(self, token_id: int) -> str:
        return self.tokens[token_id].removeprefix('▁')

    def continues_word(self, ids: np.ndarray) -> np.ndarray:
        return self._is_continuation[ids]

    @functools.cached_property
    def blank_rule(self) -> BlankRule | None:
        """`DROPS` if normalization never reaches across a blank; the pipeline splits at blanks after it.

        In Unicode, a blank forms one grapheme with marks and joiners that follow it and with a few letters that precede
        it, and the model's character table is looked up by graphemes. So every such character is tried on both sides of
        a blank.
        """
        if not self._marks_words:
            return None
        normalize = self._backend.normalizer.normalize_str
        words = [f'{character}a{character}' for character in _grapheme_joiners()]
        is_local = normalize(' '.join(words)) == '▁' + ' '.join(normalize(word).removeprefix('▁') for word in words)
        return BlankRule.DROPS if is_local else None

    def encode_words(self, words: list[str]) -> Iterator[tuple[list[str], np.ndarray, np.ndarray]]:
        if self._library is None:
            yield from super().encode_words(words)
            return
        yield from super().encode_words(list(itertools.filterfalse(self._plain.fullmatch, words)))
        words = list(filter(self._plain.fullmatch, words))
        encode = functools.partial(self._library.encode, num_threads=1)

        def encode_plain(texts: list[str]) -> list[list[int]]:
            return encode([text.lower() for text in texts] if self.lowercase else texts)

        yield from encode_joined(words, ' ', encode_plain, self._begins_word, _MAX_TEXT_LENGTH)

    def save(self, directory: str | os.PathLike[str], max_length: int = 512, token_types: bool = True) -> None:
        directory = pathlib.Path(directory)
        settings = {
            'tokenizer_class': 'PreTrainedTokenizerFast',
            'do_lower_case': self.lowercase,
            'strip_accents': self.strip_accents,
            'model_max_length': max_length,
        }
        self._save(directory, settings, token_types)
        (directory / 'sentencepiece.model').write_bytes(self._model)


def _load_exact_library(model: bytes, proto: Any) -> Any:
    """Loads the sentencepiece library's processor of a model, if it gives words of plain ASCII the pipeline's ids.

    This holds if scores are multiples of `_SCORE_STEP`, so that sums are exact in any order and ties are ties; if no
    piece is matched before the model runs; and if neither changes ASCII characters. Otherwise returns None.
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


def _grapheme_joiners() -> list[str]:
    """Returns characters that may share a grapheme with a blank: marks, format characters, prepended letters."""
    joining = ('Mn', 'Mc', 'Me', 'Cf')
    planes = itertools.chain(range(0x20000), range(0xE0000, 0xE1000))  # all other planes hold ideographs or are empty
    marks = [character for character in map(chr, planes) if unicodedata.category(character) in joining]
    return marks + list(PREPENDED_LETTERS)


def train_sentencepiece(settings: config.Tokenizer, sample: list[str]) -> SentencePiece:
    """Trains a unigram vocabulary, deterministically.

    Raises:
      BadInput: if `vocab_size` is too small for the characters of the text.
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
            max_sentence_length=_MAX_SENTENCE_BYTES,
            num_threads=16,  # sums are grouped by thread, so a fixed number gives the same model on every machine
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
            f'is {settings.vocab_size:,}, and no unigram vocabulary of that size can be trained on this text',
            'a size with room for every character of the text, and text in which subwords repeat',
            '--config.tokenizer.kind=wordpiece, or a larger --config.tokenizer.vocab_size',
        ) from None
    proto = _parse(writer.getvalue(), 'tokenizer')
    for piece in proto.pieces:
        piece.score = round(piece.score / _SCORE_STEP) * _SCORE_STEP
    model = proto.SerializeToString(deterministic=True)
    return SentencePiece(model, **flags)


def _report_long_sentences(sample: list[str]) -> None:
    sizes = [len(text.encode()) for text in sample]
    too_long = [num_bytes for num_bytes in sizes if num_bytes > _MAX_SENTENCE_BYTES]
    if sum(too_long) > _MIN_REPORTED * sum(sizes):
        fraction = sum(too_long) / sum(sizes)
        say(
            f'warning: SentencePiece skips {quantity(len(too_long), "sentence")} of more than '
            f'{_MAX_SENTENCE_BYTES:,} bytes, {fraction:.0%} of the training sample'
        )


def read_pieces(model: bytes, where: str) -> list[str]:
    """Returns the pieces of a serialized model.

    Raises:
      BadInput: for bytes that are not a model.
    """
    return [piece.piece for piece in _parse(model, where).pieces]


def _parse(model: bytes, where: str) -> Any:
    """Parses a serialized model to a `ModelProto`."""
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    messages: Any = sentencepiece_model_pb2  # protobuf creates its classes at import time
    try:
        proto = messages.ModelProto.FromString(model)
    except DecodeError:
        proto = None
    if proto is None or not proto.pieces:
        raise BadInput(where, 'is not a SentencePiece model', 'a .model file') from None
    if len(proto.pieces) > MAX_TOKENS:
        raise BadInput(where, f'has {len(proto.pieces):,} pieces', f'at most {MAX_TOKENS:,}')
    if not all(isinstance(piece.piece, str) for piece in proto.pieces):  # protobuf returns invalid UTF-8 as bytes
        raise BadInput(where, 'contains a piece that is not UTF-8', 'a .model file')
    return proto


def _before_model(lowercase: bool, strip_accents: bool, compose: bool) -> Any:
    """Returns the normalizer that runs before the model's own normalization."""
    from tokenizers import normalizers

    bert = normalizers.BertNormalizer(
        clean_text=False, handle_chinese_chars=False, strip_accents=strip_accents, lowercase=lowercase
    )
    return normalizers.Sequence([bert, normalizers.NFC()] if compose else [bert])


def _pipeline(proto: Any, lowercase: bool, strip_accents: bool) -> Any:
    """Builds the `tokenizers.Tokenizer` of a model."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    kinds = {number: name for name, number in proto.SentencePiece.Type.items()}
    by_kind: dict[str, list[str]] = {name: [] for name in kinds.values()}
    for piece in proto.pieces:
        by_kind[kinds[piece.type]].append(piece.piece)
    if len(by_kind['UNKNOWN']) != 1:
        raise BadInput('tokenizer', f'has {quantity(len(by_kind["UNKNOWN"]), "unknown piece")}', 'exactly one')
    tokens = [piece.piece for piece in proto.pieces]
    backend = tokenizers.Tokenizer(
        models.Unigram(
            [(piece.piece, piece.score) for piece in proto.pieces],
            unk_id=tokens.index(by_kind['UNKNOWN'][0]),
            byte_fallback=proto.trainer_spec.byte_fallback,
        )
    )
    spec = proto.normalizer_spec
    # `Precompiled` looks up whole graphemes and ignores sequences longer than six bytes. NFC before and after it turns
    # Hangul and accented letters into single characters, as the model's own table would.
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
    # The model would recognize its own '[SEP]' in a text, so such names are cut in two before it runs.
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
