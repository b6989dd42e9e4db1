"""The settings of text, batches and tokenizer. `L` positions, `P` predictions and `E` packed sequences per row."""

import codecs
import dataclasses
import difflib
import math
import re
import string
from typing import Any, ClassVar, TypeGuard

from bert_jax.config.cleaning import QUALITY_RULES, REDACTED, are_languages, are_redacted, are_rules
from bert_jax.config.fields import Role, at_least, fraction, setting

TABLE_KINDS = ('jsonl', 'csv', 'tsv', 'parquet', 'hf', 'tfds')  # sources of records with fields
SOURCE_KINDS = ('text', *TABLE_KINDS, 'html', 'warc', 'tfrecord')
MIN_BPE_TOKENS = 256 + 5  # bytes and special tokens
_KINDS_BY_SUFFIX = {'json': 'jsonl', 'ndjson': 'jsonl', 'htm': 'html'} | {
    kind: kind for kind in ('jsonl', 'csv', 'tsv', 'parquet', 'html', 'warc', 'tfrecord')
}
_COMPRESSED = re.compile(r'\.(gz|zst|bz2|xz)$')


def _is_source(value: Any) -> bool:
    kind, _, rest = value.partition(':') if isinstance(value, str) else ('', '', '')
    return value == 'python-docs' or (kind in SOURCE_KINDS and bool(rest))


def _suggest_source(value: str) -> str:
    """Returns a source for a path without its kind, or with a misspelled kind; '' for text that is neither."""
    kind, colon, path = value.partition(':')
    if colon and path and not path.startswith('//'):
        close = difflib.get_close_matches(kind, SOURCE_KINDS, n=1)
        return f'{close[0]}:{path}' if close else ''
    if not any(mark in value for mark in './*'):
        return ''
    suffix = _COMPRESSED.sub('', value).rpartition('.')[2]
    return f'{_KINDS_BY_SUFFIX.get(suffix, "text")}:{value}'


def is_records(source: str | tuple) -> TypeGuard[str]:
    """Returns whether a source holds finished examples instead of text."""
    return isinstance(source, str) and source.startswith('tfrecord:')


def _is_text(value: Any) -> bool:
    return _is_source(value) and not is_records(value)


def _is_source_or_several(value: Any) -> bool:
    if isinstance(value, str):
        return _is_source(value)
    pairs = [pair for pair in value if isinstance(pair, tuple) and len(pair) == 2 and _is_text(pair[0])]
    names = [name for name, _ in pairs]
    weights = [weight for _, weight in pairs if isinstance(weight, int | float) and 0 < weight <= 1000]
    return 0 < len(value) == len(weights) and len({*names}) == len(names)


def template_parts(template: str) -> list[tuple[str, str]]:
    """Splits a template into (text, name of the field after it or ''); `\\n` and `\\t` stand for line feed and tab.

    Raises:
      ValueError: for braces that do not enclose the name of a field.
    """
    parts = []
    for text, name, form, conversion in string.Formatter().parse(template.replace('\\n', '\n').replace('\\t', '\t')):
        if form or conversion or name == '':
            raise ValueError('a field has a name and nothing else')
        parts.append((text, name or ''))
    return parts


def _is_template(value: str) -> bool:
    try:
        return not value or any(name for _, name in template_parts(value))
    except ValueError:
        return False


def _is_encoding(value: str) -> bool:
    try:
        return value == 'auto' or ('a'.encode(value) != b'' and codecs.getincrementaldecoder(value) is not None)
    except (LookupError, ValueError):
        return False


def _are_names(value: tuple) -> bool:
    return all(isinstance(name, str) and name for name in value) and len({*value}) == len(value)


def _is_automatic_or_room(value: int) -> bool:
    return value == -1 or 1 <= value <= 65536


def _are_weights(value: tuple) -> bool:
    return not value or (all(isinstance(w, int | float) and w >= 0 for w in value) and 0 < sum(value) < math.inf)


def _are_lengths(value: tuple) -> bool:
    return all(type(number) is int and number >= 8 for number in value) and sorted({*value}) == list(value)


@dataclasses.dataclass(frozen=True)
class Masking:
    """Masked language modelling (Devlin et al. 2019, section 3.1)."""

    ROLE: ClassVar[Role] = Role.IDENTITY

    # share of the tokens of a sequence that are predicted, special tokens counted in its length
    rate: float = setting(0.15, 'a number above 0 and below 1', lambda value: 0 < value < 1)
    # share of the predicted tokens that become [MASK]
    mask_fraction: float = setting(0.8, 'a number from 0 to 1', lambda value: 0 <= value <= 1)
    # share of the predicted tokens that become a random token; the rest keep their own
    random_fraction: float = setting(0.1, 'a number from 0 to 1', lambda value: 0 <= value <= 1)
    # what is masked as a whole: tokens, words, or n-grams of 1 to 3 words
    unit: str = setting('token', choices=('token', 'word', 'ngram'))
    # never predict [UNK], and never replace a token with a special or unused one; False does as the original BERT did
    exclude_special: bool = setting(True, role=Role.IDENTITY_IF_SET, before=False)


@dataclasses.dataclass(frozen=True)
class Data:
    """The text, its corpus, and how batches are made from it."""

    ROLE: ClassVar[Role] = Role.IDENTITY

    # the text to train on; several sources with weights form a mixture, in which 2.0 takes each document twice per
    # epoch
    source: str | tuple = setting(
        'python-docs',
        'python-docs, '
        + ', '.join(f'{kind}:…' for kind in SOURCE_KINDS)
        + ', or a tuple of (source, weight), each source once, weights above 0 up to 1000',
        _is_source_or_several,
        role=Role.CONTENT,
        suggest=_suggest_source,
    )
    # directory that `prepare` writes and `train` reads
    corpus: str = setting('corpora/python-docs', 'a directory', bool, role=Role.EXECUTION)
    # directory on each host's own disk, to which training copies the corpus before it reads it; empty reads the corpus
    # where it is
    local_copy: str = setting('', role=Role.EXECUTION, is_written=True)
    # relative shares of the rows that the sources of the corpus get, in their order, such as (0.7, 0.3, 0); 0 leaves a
    # source out; (): every row of the corpus once per epoch
    source_weights: tuple = setting(
        (), 'a tuple of numbers of at least 0, not all of them 0', _are_weights, role=Role.IDENTITY_IF_SET
    )
    # the same by sampling temperature: shares in proportion to the tokens of a source to this power (0: equal shares);
    # None: source_weights count
    source_temperature: float | None = setting(
        None,
        'None, or a number from 0 to 1',
        lambda value: value is None or 0 <= value <= 1,
        role=Role.IDENTITY_IF_SET,
    )
    # field of a record, or column of a table, that holds the text; a.b is field b of the object in field a
    text_field: str = setting('text', 'the name of a field', bool, role=Role.CONTENT)
    # text of a record from several fields, such as '{title}\n\n{body}', instead of `text_field`; empty: one field
    template: str = setting(
        '',
        "empty, or text with names of fields in braces, such as '{title}\\n\\n{body}'",
        _is_template,
        role=Role.CONTENT_IF_SET,
    )
    # names of the columns of csv and tsv files without a header; (): the first record names them
    columns: tuple = setting(
        (), "a tuple of different names, such as ('id', 'text')", _are_names, role=Role.CONTENT_IF_SET
    )
    # character between the cells of csv and tsv files; empty: a tab in tsv files, and found in csv files
    delimiter: str = setting(
        '',
        'empty, or one character',
        lambda value: len(value) <= 1 and value not in ('"', '\n', '\r'),
        role=Role.CONTENT_IF_SET,
    )
    # csv and tsv files: quotation marks enclose cells that contain delimiters or line feeds; False: they are text
    quotes: bool = setting(True, role=Role.CONTENT_IF_SET)
    # encoding of text, jsonl, csv and tsv files without a byte order mark: a name such as windows-1252, or auto, which
    # detects it in each file
    encoding: str = setting('utf-8', 'auto, or the name of an encoding', _is_encoding, role=Role.CONTENT_IF_SET)
    # field whose value keeps records together: those of one patient or book are never in both splits; empty: no groups
    group_field: str = setting('', role=Role.CONTENT)
    # share of the records that may be invalid (not JSON, no text) and are skipped; more is an error
    bad_records: float = fraction(0.001, Role.EXECUTION)
    # share of the bytes, of all text and of each file, that may be invalid UTF-8; they are replaced and counted, and
    # more is an error
    bad_text: float = fraction(0.001, Role.EXECUTION)
    # what ends a document of a text file: a blank line, or only the end of the file
    documents: str = setting('blank_lines', choices=('blank_lines', 'file'), role=Role.CONTENT_IF_SET)
    # text files whose lines are wrapped: the lines between blank lines become one paragraph
    join_lines: bool = setting(False, role=Role.CONTENT_IF_SET)
    # keep only the first of equal lines; of equal documents only the first is kept in any case
    deduplicate_lines: bool = setting(False, role=Role.CONTENT)
    # languages to keep, by ISO 639 code, such as ('en', 'de'); documents in others are dropped. ('*',) only counts them
    languages: tuple = setting(
        (), "codes of ISO 639, such as ('en', 'de'), or ('*',)", are_languages, role=Role.CONTENT_IF_SET
    )
    # rules for the quality of documents and lines: 'gopher', 'c4' or single rules; '-' before a name takes it out, as
    # in ('gopher', '-gopher_stop_words')
    quality_rules: tuple = setting(
        (),
        "a tuple of 'gopher', 'c4' and " + ', '.join(QUALITY_RULES) + "; '-' before a name takes it out",
        are_rules,
        role=Role.CONTENT_IF_SET,
    )
    # drop every line that occurs in at least this many different documents, apart from case and numbers; 0: none
    boilerplate_documents: int = setting(
        0, '0, or a number from 2', lambda value: value == 0 or 2 <= value < 2**31, role=Role.CONTENT_IF_SET
    )
    # what to replace in the text: 'email' by <EMAIL>, 'phone' numbers by <PHONE>, 'card' numbers by <CARD>
    redact: tuple = setting((), 'a tuple of ' + ', '.join(map(repr, REDACTED)), are_redacted, role=Role.CONTENT_IF_SET)
    # drop near copies: texts at least this similar to one that stays, such as 0.8; 0: keep them. The similarity is the
    # share of the words of two texts that both have. A copy with 5% of its words replaced has 0.90, with 11% 0.80
    near_duplicates: float = setting(
        0.0,
        '0 (off), or a number from 0.7 to 1',
        lambda value: value == 0 or 0.7 <= value <= 1,
        role=Role.CONTENT_IF_SET,
    )
    # what near_duplicates compares: documents, or documents and then the paragraphs (lines) of at least 20 words in the
    # documents that stay
    near_duplicate_unit: str = setting('document', choices=('document', 'paragraph'), role=Role.CONTENT_IF_SET)
    # split lines into sentences; False takes each line as one sentence
    split_sentences: bool = setting(True, role=Role.CONTENT)
    # text to evaluate on; empty: part of `source`
    validation_source: str = setting(
        '',
        'empty, or a source like data.source',
        lambda value: not value or _is_source(value),
        role=Role.CONTENT,
        suggest=_suggest_source,
    )
    # share of the documents that is held out, chosen by hash; without a `validation_source`
    validation_fraction: float = fraction(0.05, Role.CONTENT)
    # tokens per row; for TFRecords it is inferred
    sequence_length: int = setting(128, 'a number from 8 to 65536', lambda value: 8 <= value <= 65536)
    # share of the sequences that get a random shorter target length, as in the original BERT
    short_sequence_probability: float = setting(0.1, 'a number from 0 to 1', lambda value: 0 <= value <= 1)
    # what a sequence is made of: nsp, two segments of which the second is random half of the time; sop, two segments of
    # which half are swapped; none, one contiguous text
    pairing: str = setting('nsp', choices=('nsp', 'sop', 'none'))
    # pairing=nsp: choose a random second segment like the true one, so that its length does not reveal the label; False
    # fills the row, as in the original BERT
    match_lengths: bool = setting(True, role=Role.IDENTITY_IF_SET, before=False)
    # put several sequences into a row; attention and positions stay within each
    packing: bool = False
    # most sequences in a packed row; 0 chooses it from the corpus and records it in the workdir, -1 is a row for every
    # 32 tokens, at least 4
    max_sequences: int = setting(
        0,
        '0 (as many as fill the rows of the corpus), -1 (L / 32, at least 4) or 1 to 65536',
        lambda value: value == 0 or _is_automatic_or_room(value),
        before=-1,
    )
    # most predictions per row; -1 is rate x sequence_length
    max_predictions: int = setting(-1, '-1 (rate x L, rounded) or 1 to 65536', _is_automatic_or_room)
    # row lengths below `sequence_length`, such as (64, 128, 256): without packing, each batch has the shortest that
    # fits its rows
    bucket_lengths: tuple = setting(
        (), 'a tuple of ascending numbers, each at least 8', _are_lengths, role=Role.IDENTITY_IF_SET
    )
    # which tokens are predicted
    masking: Masking = Masking()
    # TFRecords: restore the original tokens and mask others in every epoch; False keeps the stored masks
    remask: bool = True


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A tokenizer to train on the corpus or, with `path`, an existing one."""

    ROLE: ClassVar[Role] = Role.CONTENT

    # kind of vocabulary to train: wordpiece as in BERT, sentencepiece (unigram), or bpe (byte-level, as in ModernBERT);
    # ignored with `path`
    kind: str = setting('wordpiece', choices=('wordpiece', 'sentencepiece', 'bpe'))
    # an existing tokenizer: a vocab.txt, tokenizer.json or .model file, or a directory; empty trains one on the corpus
    path: str = setting('', role=Role.EXECUTION)
    # file of words, one per line, to append to the vocabulary of `path` or `init`; empty: none
    add_tokens: str = setting('', role=Role.EXECUTION)
    # tokens of a vocabulary that is trained, rounded up to a multiple of 64 for kind=bpe; ignored with `path`
    vocab_size: int = at_least(30522, 64)
    # of these, tokens named [unused0], [unused1], … for later use; kind=bpe only
    num_unused: int = setting(
        0, 'a number from 0 to 10000', lambda value: 0 <= value <= 10_000, role=Role.CONTENT_IF_SET
    )
    # lower-case the text; None: yes for a new vocabulary (no for kind=bpe), and for an existing one what its files say
    # or its tokens show
    lowercase: bool | None = None
    # remove accents; None: no for a new vocabulary, and for an existing one what its files say or its tokens show
    strip_accents: bool | None = None
    # bytes of text that a new vocabulary is trained on, at most
    sample_bytes: int = at_least(100_000_000, 1000)

    def for_training(self) -> 'Tokenizer':
        """Returns the settings for training a vocabulary, with values for `lowercase` and `strip_accents`."""
        lowercase = self.kind != 'bpe' if self.lowercase is None else self.lowercase
        return dataclasses.replace(self, lowercase=lowercase, strip_accents=bool(self.strip_accents))


def sources(data: Data) -> tuple[tuple[str, float], ...]:
    """Returns (source, weight) of each source.

    The weight is the number of passes over the documents of the source per epoch; 0.5 takes half of them.
    """
    return ((data.source, 1.0),) if isinstance(data.source, str) else data.source


def mixes_sources(data: Data) -> bool:
    """Returns whether the sources of the corpus are mixed in shares of their own."""
    return bool(data.source_weights) or data.source_temperature is not None


def num_predictions(data: Data) -> int:
    """Returns P, the most predictions in a row."""
    if data.max_predictions != -1:
        return data.max_predictions
    return max(1, round(data.masking.rate * data.sequence_length))


def row_lengths(data: Data) -> tuple[int, ...]:
    """Returns the row lengths in training in ascending order; the last is L."""
    return (*(length for length in data.bucket_lengths if length < data.sequence_length), data.sequence_length)


def chooses_max_sequences(data: Data) -> bool:
    """Returns whether the number of sequences per packed row is chosen from the corpus."""
    return data.packing and data.max_sequences == 0


def max_sequences(data: Data) -> int:
    """Returns E, the most sequences in a row; 0 (chosen from the corpus) counts as -1 here."""
    if not data.packing:
        return 1
    return max(4, data.sequence_length // 32) if data.max_sequences in (-1, 0) else data.max_sequences
