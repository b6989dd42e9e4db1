"""Every setting of a run: its default, its meaning and its check, each in this one place.

A config file builds an `ml_collections.ConfigDict` from `bert(SIZE)` and sets what differs; the
command line may change any field of it. `resolve` turns that into the frozen dataclasses below,
or raises `BadInput` naming the field. Inside the project a function takes only the section it needs.

Legend of sizes: `L` positions, `P` predictions and `E` packed sequences in a row, `D` hidden, `H` heads.
"""

import dataclasses
import datetime
import functools
import re
from typing import Any, ClassVar, TypeGuard

from bert_jax.config.families import FAMILIES, Bert, Model
from bert_jax.config.fields import Role, as_in, at_least, fraction, setting, variants

SOURCE_KINDS = ('text', 'jsonl', 'parquet', 'tfds', 'tfrecord')


def _is_source(value: Any) -> bool:
    kind, _, rest = value.partition(':') if isinstance(value, str) else ('', '', '')
    return value == 'python-docs' or (kind in SOURCE_KINDS and bool(rest))


def _is_time(value: str) -> bool:
    try:
        return not value or bool(datetime.datetime.fromisoformat(value))
    except ValueError:
        return False


def is_records(source: str | tuple) -> TypeGuard[str]:
    """Whether a source holds examples already, not text."""
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


def _is_automatic_or_room(value: int) -> bool:
    return value == -1 or 1 <= value <= 65536


def _are_lengths(value: tuple) -> bool:
    return all(type(number) is int and number >= 8 for number in value) and sorted({*value}) == list(value)


def _are_windows(value: tuple) -> bool:
    def is_window(window: Any) -> bool:
        return isinstance(window, tuple) and len(window) == 3 and all(type(number) is int for number in window)

    return all(is_window(window) and window[0] >= 0 and 0 <= window[1] < window[2] < 2**31 for window in value)


_EXAMPLES = (
    'The capital of France is [MASK].',
    'She opened the door and went [MASK] the house.',
    'The function returns a [MASK] of all names.',
    'This is not the same [MASK] as [MASK].',
)


def _have_masks(value: tuple) -> bool:
    return all(isinstance(text, str) and '[MASK]' in text and text.isprintable() for text in value)


@dataclasses.dataclass(frozen=True)
class Masking:
    """Masked language modelling (Devlin et al. 2019, section 3.1)."""

    ROLE: ClassVar[Role] = Role.IDENTITY

    rate: float = setting(0.15, 'a number above 0 and below 1', lambda value: 0 < value < 1)
    mask_fraction: float = setting(0.8, 'a number from 0 to 1', lambda value: 0 <= value <= 1)
    random_fraction: float = setting(0.1, 'a number from 0 to 1', lambda value: 0 <= value <= 1)
    unit: str = setting('token', choices=('token', 'word', 'ngram'))  # what is masked whole; ngram: 1 to 3 words
    # never predict [UNK], and never replace a token by a special or unused one; False: as in 2018
    exclude_special: bool = setting(True, role=Role.IDENTITY_IF_SET, before=False)


@dataclasses.dataclass(frozen=True)
class Data:
    """Where the text comes from, where its corpus lies, and how batches are cut from it."""

    ROLE: ClassVar[Role] = Role.IDENTITY

    source: str | tuple = setting(
        'python-docs',
        'python-docs, '
        + ', '.join(f'{kind}:…' for kind in SOURCE_KINDS)
        + ', or a tuple of (source, weight), each source once, weights above 0 up to 1000',
        _is_source_or_several,
        role=Role.CONTENT,
    )
    corpus: str = setting('corpora/python-docs', 'a directory', bool, role=Role.EXECUTION)
    # a directory on each host's own disk, where training copies the corpus to and reads it from
    local_copy: str = setting('', role=Role.EXECUTION, is_written=True)
    text_field: str = setting('text', 'the name of a field', bool, role=Role.CONTENT)
    # of records: those with the same value (patient, book) are never in both splits
    group_field: str = setting('', role=Role.CONTENT)
    # share of the records that may be bad (not JSON, no text) and are skipped
    bad_records: float = fraction(0.001, Role.EXECUTION)
    # share of the whole text, and of each file, that may be bytes which are not UTF-8; they are replaced and counted
    bad_text: float = fraction(0.001, Role.EXECUTION)
    # what ends a document of a text file: a blank line, or only the end of the file
    documents: str = setting('blank_lines', choices=('blank_lines', 'file'), role=Role.CONTENT_IF_SET)
    # True: lines are wrapped at some width, and those between blank lines are one paragraph
    join_lines: bool = setting(False, role=Role.CONTENT_IF_SET)
    # of equal lines keep the first; of equal documents this is always done
    deduplicate_lines: bool = setting(False, role=Role.CONTENT)
    split_sentences: bool = setting(True, role=Role.CONTENT)  # False: a line is a sentence as it stands
    validation_source: str = setting(
        '', 'empty, or a source like data.source', lambda value: not value or _is_source(value), role=Role.CONTENT
    )
    validation_fraction: float = fraction(0.05, Role.CONTENT)  # of the documents, by hash; without validation_source
    # L; of records it is inferred
    sequence_length: int = setting(128, 'a number from 8 to 65536', lambda value: 8 <= value <= 65536)
    short_sequence_probability: float = setting(0.1, 'a number from 0 to 1', lambda value: 0 <= value <= 1)
    pairing: str = setting('nsp', choices=('nsp', 'sop', 'none'))
    # nsp: a random B is like the true one, so that lengths and cuts do not reveal the label; False: it fills the row
    match_lengths: bool = setting(True, role=Role.IDENTITY_IF_SET, before=False)
    packing: bool = False  # several sequences in a row, each with its own [CLS], attention inside each
    # E, packed; 0 is as many as fill the rows of the corpus, a number that the workdir then records
    max_sequences: int = setting(
        0,
        '0 (as many as fill the rows of the corpus), -1 (L / 32, at least 4) or 1 to 65536',
        lambda value: value == 0 or _is_automatic_or_room(value),
        before=-1,
    )
    max_predictions: int = setting(-1, '-1 (rate x L, rounded) or 1 to 65536', _is_automatic_or_room)  # P
    # Without packing, in training: rows that fit are cut to the shortest of these, a batch holds rows of one length;
    # such as (64, 128, 256) with a sequence_length of 512
    bucket_lengths: tuple = setting(
        (), 'a tuple of rising numbers, each at least 8', _are_lengths, role=Role.IDENTITY_IF_SET
    )
    masking: Masking = Masking()
    remask: bool = True  # records: restore the tokens and mask them anew in every epoch; False: masks as stored


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A tokenizer to train on the corpus, or (with `path`) one that exists."""

    ROLE: ClassVar[Role] = Role.CONTENT

    kind: str = setting('wordpiece', choices=('wordpiece', 'sentencepiece'))
    path: str = setting('', role=Role.EXECUTION)  # a vocab.txt, tokenizer.json or .model file
    # a file of words, one a line, appended to the WordPiece vocabulary of `path` or `init`
    add_tokens: str = setting('', role=Role.EXECUTION)
    vocab_size: int = at_least(30522, 64)  # of a trained vocabulary; ignored with `path`
    # None: of a vocabulary trained here True and False; of `path`, as the files there say, or else its tokens
    lowercase: bool | None = None
    strip_accents: bool | None = None
    sample_bytes: int = at_least(100_000_000, 1000)  # of text that a vocabulary is trained on, at most

    def for_training(self) -> 'Tokenizer':
        """The settings of a vocabulary that is trained here, with `lowercase` and `strip_accents` settled."""
        lowercase = True if self.lowercase is None else self.lowercase
        return dataclasses.replace(self, lowercase=lowercase, strip_accents=bool(self.strip_accents))


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """The optimisers and schedules of `train/optimizer.py`; no decay on biases and layer norms."""

    ROLE: ClassVar[Role] = Role.IDENTITY

    name: str = setting('adamw', choices=('adamw', 'lamb', 'adafactor', 'muon'), role=Role.SHAPES)
    peak_learning_rate: float = setting(1e-4, 'a number above 0', lambda value: value > 0)
    warmup_steps: int = at_least(10_000, 0)
    schedule: str = setting('linear', choices=('linear', 'cosine', 'constant', 'wsd', 'inverse_sqrt'))
    decay_fraction: float = setting(0.1, 'a number above 0, at most 1', lambda value: 0 < value <= 1)  # wsd only
    weight_decay: float = at_least(0.01, 0)
    b1: float = fraction(0.9)
    b2: float = fraction(0.999)
    bias_correction: bool = True  # of adamw and lamb; the original leaves it out
    eps: float = setting(1e-6, 'a number above 0', lambda value: value > 0)
    clip_norm: float = setting(1.0, 'a number above 0', lambda value: value > 0)


@dataclasses.dataclass(frozen=True)
class Train:
    """How long, how large a batch, and how often to look and to save."""

    ROLE: ClassVar[Role] = Role.EXECUTION

    steps: int = at_least(1_000_000, 1, Role.IDENTITY)
    global_batch_size: int = at_least(256, 1, Role.IDENTITY)
    microbatches: int = setting(1, 'at least 1, or -1 (the fewest that fit)', lambda v: v == -1 or v >= 1)
    reduction: str = setting('fast', choices=('fast', 'exact'))  # exact: the same bits on any number of devices
    exact_shards: int = setting(  # parts of the global batch that `exact` adds up in a fixed order
        8, 'a power of two', lambda value: value >= 1 and value & (value - 1) == 0
    )
    seed: int = setting(0, 'a number from 0 to 2**31 - 1', lambda value: 0 <= value < 2**31, role=Role.IDENTITY)
    log_every: int = at_least(100, 1)
    checkpoint_every: int = at_least(1000, 1)
    keep_checkpoints: int = at_least(2, 1)  # the newest
    keep_every: int = at_least(0, 0)  # steps; checkpoints of its multiples are kept for good; 0: none
    watchdog_seconds: float = at_least(120.0, 0)  # no sign of life, or no progress of a step: all end; 0: never
    watchdog_long_seconds: float = at_least(3600.0, 1)  # the same for compiling, evaluating, reading and saving
    stop_at: str = setting('', 'empty, or a time like 2026-01-31T18:00', _is_time)  # saves and exits with 75 then
    evaluate_every: int = at_least(10_000, 0)  # 0: only at the end
    evaluate_rows: int = at_least(4096, 1)  # validation rows looked at during training; `evaluate` takes all
    probe_every: int = at_least(0, 0)  # steps between probes of the encoder (`probe`), and at the end; 0: never
    max_bad_steps: int = at_least(10, 1)  # in a row, not finite or a spike; then the run goes back to a checkpoint
    max_rollbacks: int = at_least(5, 0)  # then it ends with a message
    spike_threshold: float = at_least(10.0, 0)  # median absolute deviations over the median of the losses; 0: off
    spike_window: int = setting(256, 'a number from 8 to 100000', lambda value: 8 <= value <= 100_000)  # losses
    # windows of the stream to leave out, as a run that went back does: (phase, first batch, the one after the last)
    skip: tuple = setting(
        (),
        'a tuple of (phase, first, stop), whole numbers with first < stop',
        _are_windows,
        role=Role.IDENTITY_IF_SET,
    )
    # filled in at every evaluation, for the report; () for none
    examples: tuple = setting(_EXAMPLES, 'a tuple of lines of text, each with [MASK]', _have_masks)
    replica_check_every: int = at_least(1000, 0)  # steps between comparisons of what the devices hold; 0: never


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Devices along each axis; one axis may be -1, 'the rest'."""

    ROLE: ClassVar[Role] = Role.EXECUTION

    data: int = setting(-1, '-1 or at least 1', lambda value: value == -1 or value >= 1)
    fsdp: int = setting(1, '-1 or at least 1', lambda value: value == -1 or value >= 1)
    tensor: int = setting(1, '-1 or at least 1', lambda value: value == -1 or value >= 1)


def _are_labelled_sets(value: tuple) -> bool:
    def is_set(item: Any) -> bool:
        return isinstance(item, tuple) and len(item) == 2 and all(isinstance(part, str) for part in item)

    def is_file(source: str) -> bool:
        kind, _, rest = source.partition(':')
        return kind in ('tsv', 'csv', 'jsonl', 'tfds') and bool(rest)

    names = [item[0] for item in value if is_set(item) and re.fullmatch(r'[\w.-]+', item[0]) and is_file(item[1])]
    return len({*names}) == len(value)


@dataclasses.dataclass(frozen=True)
class Probe:
    """Labelled texts for a linear classifier on the mean vectors of the frozen encoder (`train.probe_every`)."""

    ROLE: ClassVar[Role] = Role.EXECUTION

    sets: tuple = setting(
        (), 'a tuple of (name, FORMAT:FILE), FORMAT one of tsv, csv, jsonl, tfds, each name once', _are_labelled_sets
    )
    text: str = setting('sentence', 'the name of a column', bool)
    label: str = setting('label', 'the name of a column', bool)
    max_examples: int = at_least(2000, 10)  # of each set, chosen by hash; a fifth of them is the test


_ONE_LINE = 'one line of text', lambda value: value.isprintable()


@dataclasses.dataclass(frozen=True)
class Card:
    """Facts for the model card of an export that no file of a run holds; empty fields are left out.

    `language` and `datasets` take several values, separated by commas: `en, de`.
    """

    ROLE: ClassVar[Role] = Role.EXECUTION

    name: str = setting('', *_ONE_LINE)  # title of the card; by default, the name of the workdir
    description: str = setting('', *_ONE_LINE)  # sentences for the top of the card
    training_data: str = setting('', *_ONE_LINE)  # sentences: where the text comes from, how it was selected
    license: str = setting('', *_ONE_LINE)  # as on the model hub: apache-2.0
    language: str = setting('', *_ONE_LINE)  # codes: en
    datasets: str = setting('', *_ONE_LINE)  # names on the model hub


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of a run with a batch and a learning rate of its own; but for `steps`, what it leaves out is inherited."""

    ROLE: ClassVar[Role] = Role.IDENTITY

    steps: int = as_in(Train, 'steps')
    sequence_length: int = as_in(Data, 'sequence_length')
    global_batch_size: int = as_in(Train, 'global_batch_size')
    peak_learning_rate: float = as_in(Optimizer, 'peak_learning_rate')
    warmup_steps: int = as_in(Optimizer, 'warmup_steps')


SECTION_OF = {
    'steps': 'train',
    'sequence_length': 'data',
    'global_batch_size': 'train',
    'peak_learning_rate': 'optimizer',
    'warmup_steps': 'optimizer',
}


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run."""

    ROLE: ClassVar[Role] = Role.EXECUTION

    data: Data = Data()
    tokenizer: Tokenizer = Tokenizer()
    model: Model = variants(Bert(), FAMILIES, by='family')
    optimizer: Optimizer = Optimizer()
    train: Train = Train()
    probe: Probe = Probe()
    mesh: Mesh = Mesh()
    # what to start from: a workdir, WORKDIR@STEP, an export or a Hugging Face directory
    init: str = setting('', role=Role.CONTENT)
    # the optimizer's moments of that workdir too; its schedule starts from the beginning
    init_optimizer: bool = setting(False, role=Role.IDENTITY_IF_SET)
    card: Card = Card()
    platform: str = setting('', choices=('', 'cpu', 'cuda', 'tpu'))  # '' takes the best there is
    # one after the other, instead of the single fields; train.steps becomes their sum
    phases: tuple[Phase, ...] = setting((), role=Role.IDENTITY)

    @functools.cached_property
    def in_phases(self) -> tuple['Config', ...]:
        """A config for each phase, its values in the single fields; this config alone where there are no phases."""
        found = []
        for phase in self.phases:
            one = dataclasses.replace(self, phases=())
            for name, section in SECTION_OF.items():
                changed = dataclasses.replace(getattr(one, section), **{name: getattr(phase, name)})
                one = dataclasses.replace(one, **{section: changed})
            found.append(one)
        return tuple(found) or (self,)


def sources(data: Data) -> tuple[tuple[str, float], ...]:
    """(source, weight) of each source.

    A weight is how often an epoch goes through the source's documents: 2.0 takes each twice, 0.5 half of them.
    """
    return ((data.source, 1.0),) if isinstance(data.source, str) else data.source


def num_predictions(data: Data) -> int:
    """P, the predictions that a row has room for."""
    if data.max_predictions != -1:
        return data.max_predictions
    return max(1, round(data.masking.rate * data.sequence_length))


def row_lengths(data: Data) -> tuple[int, ...]:
    """The lengths that rows of training have, rising; the last is L."""
    return (*(length for length in data.bucket_lengths if length < data.sequence_length), data.sequence_length)


def chooses_max_sequences(data: Data) -> bool:
    """Whether the number of sequences per packed row is to be chosen from the corpus."""
    return data.packing and data.max_sequences == 0


def max_sequences(data: Data) -> int:
    """E, the sequences that a row has room for; where no corpus has been looked at, 0 is taken for -1."""
    if not data.packing:
        return 1
    return max(4, data.sequence_length // 32) if data.max_sequences in (-1, 0) else data.max_sequences
