"""Every setting of a run: its default, its meaning and its check, each in this one place.

A config file builds an `ml_collections.ConfigDict` from `bert(SIZE)` and sets what differs; the
command line may change any field of it. `resolve` turns that into the frozen dataclasses below,
or raises `BadInput` naming the field. Inside the project a function takes only the section it needs.

Legend of sizes: `L` positions, `P` predictions and `E` packed sequences in a row, `D` hidden, `H` heads.
"""

import dataclasses
import datetime
import difflib
import itertools
import re
import typing
from typing import Any

from ml_collections import ConfigDict

from bert_jax.config.fields import as_in, at_least, fraction, nearest, resolve_section, setting
from bert_jax.errors import BadInput

SOURCE_KINDS = ('text', 'jsonl', 'parquet', 'tfds', 'tfrecord')


def _is_source(value: Any) -> bool:
    kind, _, rest = value.partition(':') if isinstance(value, str) else ('', '', '')
    return value == 'python-docs' or (kind in SOURCE_KINDS and bool(rest))


def _is_time(value: str) -> bool:
    try:
        return not value or bool(datetime.datetime.fromisoformat(value))
    except ValueError:
        return False


def is_records(source: str | tuple) -> bool:
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

    rate: float = setting(0.15, 'a number above 0 and below 1', lambda value: 0 < value < 1)
    mask_fraction: float = setting(0.8, 'a number from 0 to 1', lambda value: 0 <= value <= 1)
    random_fraction: float = setting(0.1, 'a number from 0 to 1', lambda value: 0 <= value <= 1)
    unit: str = setting('token', choices=('token', 'word', 'ngram'))  # what is masked whole; ngram: 1 to 3 words


@dataclasses.dataclass(frozen=True)
class Data:
    """Where the text comes from, where its corpus lies, and how batches are cut from it."""

    source: str | tuple = setting(
        'python-docs',
        'python-docs, '
        + ', '.join(f'{kind}:…' for kind in SOURCE_KINDS)
        + ', or a tuple of (source, weight), each source once, weights above 0 up to 1000',
        _is_source_or_several,
    )
    corpus: str = setting('corpora/python-docs', 'a directory', bool)
    local_copy: str = ''  # a directory on each host's own disk, where training copies the corpus to and reads it from
    text_field: str = setting('text', 'the name of a field', bool)
    group_field: str = ''  # of records: those with the same value (patient, book) are never in both splits
    bad_records: float = fraction(0.001)  # share of the records that may be bad (not JSON, no text) and are skipped
    deduplicate_lines: bool = False  # of equal lines keep the first; of equal documents this is always done
    split_sentences: bool = True  # False: a line is a sentence as it stands
    validation_source: str = setting(
        '', 'empty, or a source like data.source', lambda value: not value or _is_source(value)
    )
    validation_fraction: float = fraction(0.05)  # of the documents, by hash; without validation_source
    # L; of records it is inferred
    sequence_length: int = setting(128, 'a number from 8 to 65536', lambda value: 8 <= value <= 65536)
    short_sequence_probability: float = setting(0.1, 'a number from 0 to 1', lambda value: 0 <= value <= 1)
    pairing: str = setting('nsp', choices=('nsp', 'sop', 'none'))
    packing: bool = False  # several sequences in a row, each with its own [CLS], attention inside each
    max_sequences: int = setting(-1, '-1 (L / 32, at least 4) or 1 to 65536', _is_automatic_or_room)  # E, packed
    max_predictions: int = setting(-1, '-1 (rate x L, rounded) or 1 to 65536', _is_automatic_or_room)  # P
    # Without packing, in training: rows that fit are cut to the shortest of these, a batch holds rows of one length;
    # such as (64, 128, 256) with a sequence_length of 512
    bucket_lengths: tuple = setting((), 'a tuple of rising numbers, each at least 8', _are_lengths)
    masking: Masking = Masking()
    remask: bool = True  # records: restore the tokens and mask them anew in every epoch; False: masks as stored


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A tokenizer to train on the corpus, or (with `path`) one that exists."""

    kind: str = setting('wordpiece', choices=('wordpiece', 'sentencepiece'))
    path: str = ''  # a vocab.txt, tokenizer.json or .model file
    add_tokens: str = ''  # a file of words, one a line, appended to the WordPiece vocabulary of `path` or `init`
    vocab_size: int = at_least(30522, 64)  # of a trained vocabulary; ignored with `path`
    lowercase: bool = True
    strip_accents: bool = False
    sample_bytes: int = at_least(100_000_000, 1000)  # of text that a vocabulary is trained on, at most


@dataclasses.dataclass(frozen=True)
class Model:
    """The encoder. The vocabulary size comes from the tokenizer."""

    num_layers: int = at_least(12, 1)
    hidden_size: int = at_least(768, 1)  # D
    num_heads: int = at_least(12, 1)  # H
    intermediate_size: int = at_least(3072, 1)
    max_positions: int = at_least(512, 8)
    dropout_rate: float = fraction(0.1)
    attention_dropout_rate: float = fraction(0.1)
    initializer_range: float = setting(0.02, 'a number above 0', lambda value: value > 0)
    layer_norm_eps: float = setting(1e-12, 'a number above 0', lambda value: value > 0)
    dtype: str = setting('float32', choices=('float32', 'bfloat16'))  # of the computation; parameters are float32
    remat: str = setting('none', choices=('none', 'dots', 'full'))
    # 'fused': the scores stay on the chip (TPU, GPU); auto: wherever the shapes suit, see `model/attention.py`
    attention: str = setting('auto', choices=('auto', 'plain', 'fused'))
    scan_layers: bool = True  # one compiled layer, looped over; False: unrolled


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """The optimisers and schedules of `train/optimizer.py`; no decay on biases and layer norms."""

    name: str = setting('adamw', choices=('adamw', 'lamb', 'adafactor', 'muon'))
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

    steps: int = at_least(1_000_000, 1)
    global_batch_size: int = at_least(256, 1)
    microbatches: int = setting(1, 'at least 1, or -1 (the fewest that fit)', lambda v: v == -1 or v >= 1)
    reduction: str = setting('fast', choices=('fast', 'exact'))  # exact: the same bits on any number of devices
    exact_shards: int = setting(  # parts of the global batch that `exact` adds up in a fixed order
        8, 'a power of two', lambda value: value >= 1 and value & (value - 1) == 0
    )
    seed: int = setting(0, 'a number from 0 to 2**31 - 1', lambda value: 0 <= value < 2**31)
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
    skip: tuple = setting((), 'a tuple of (phase, first, stop), whole numbers with first < stop', _are_windows)
    # filled in at every evaluation, for the report; () for none
    examples: tuple = setting(_EXAMPLES, 'a tuple of lines of text, each with [MASK]', _have_masks)
    replica_check_every: int = at_least(1000, 0)  # steps between comparisons of what the devices hold; 0: never


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Devices along each axis; one axis may be -1, 'the rest'."""

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

    sets: tuple = setting(
        (), 'a tuple of (name, FORMAT:FILE), FORMAT one of tsv, csv, jsonl, tfds, each name once', _are_labelled_sets
    )
    text: str = setting('sentence', 'the name of a column', bool)
    label: str = setting('label', 'the name of a column', bool)
    max_examples: int = at_least(2000, 10)  # of each set, chosen by hash; a fifth of them is the test


_ONE_LINE = 'one line of text', lambda value: value.isprintable()


@dataclasses.dataclass(frozen=True)
class Card:
    """What the model card of an export says and no file of a run knows; empty: not said. Several: `en, de`."""

    license: str = setting('', *_ONE_LINE)  # as on the model hub: apache-2.0
    language: str = setting('', *_ONE_LINE)
    datasets: str = setting('', *_ONE_LINE)


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of a run with a batch and a learning rate of its own; but for `steps`, what it leaves out is inherited."""

    steps: int = as_in(Train, 'steps')
    sequence_length: int = as_in(Data, 'sequence_length')
    global_batch_size: int = as_in(Train, 'global_batch_size')
    peak_learning_rate: float = as_in(Optimizer, 'peak_learning_rate')
    warmup_steps: int = as_in(Optimizer, 'warmup_steps')


_SECTION_OF = {
    'steps': 'train',
    'sequence_length': 'data',
    'global_batch_size': 'train',
    'peak_learning_rate': 'optimizer',
    'warmup_steps': 'optimizer',
}


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run."""

    data: Data = Data()
    tokenizer: Tokenizer = Tokenizer()
    model: Model = Model()
    optimizer: Optimizer = Optimizer()
    train: Train = Train()
    probe: Probe = Probe()
    mesh: Mesh = Mesh()
    init: str = ''  # what to start from: a workdir, WORKDIR@STEP, an export or a Hugging Face directory
    init_optimizer: bool = False  # the optimizer's moments of that workdir too; its schedule starts anew
    card: Card = Card()
    platform: str = setting('', choices=('', 'cpu', 'cuda', 'tpu'))  # '' takes the best there is
    phases: tuple[Phase, ...] = ()  # one after the other, instead of the single fields; train.steps becomes their sum


# --- The sizes of Devlin et al. (2019) and of the miniatures of Turc et al. (2019). ---

_NAMED_SIZES = {
    'tiny': (2, 128),
    'mini': (4, 256),
    'small': (4, 512),
    'medium': (8, 512),
    'base': (12, 768),
    'large': (24, 1024),
}
_FEW_LAYERS = 4  # so many compile quickly one by one, and run faster than a loop over stacked weights
SIZES = dict(_NAMED_SIZES)
SIZES.update({f'L{n}_H{d}': (n, d) for n in (2, 4, 6, 8, 10, 12) for d in (128, 256, 512, 768)})


def bert(size: str = 'base') -> ConfigDict:
    """The config of a published size with the original recipe, to build on.

    Args:
      size: a name in `SIZES`: tiny, mini, small, medium, base, large, or LN_HD (L4_H512).

    Raises:
      BadInput: for a size that is not in the table.
    """
    if size not in SIZES:
        raise BadInput(f'size {size!r}', 'is not a published size', ', '.join(SIZES), nearest(size, SIZES))
    num_layers, hidden_size = SIZES[size]
    config = ConfigDict(dataclasses.asdict(Config()))
    config.data = ConfigDict(
        config.data.to_dict(), type_safe=False
    )  # a source may be text or a tuple; `resolve` checks
    config.model.update(
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_heads=hidden_size // 64,
        intermediate_size=4 * hidden_size,
        scan_layers=num_layers > _FEW_LAYERS,
    )
    config.lock()
    return config


def resolve(config: ConfigDict | dict) -> Config:
    """Checks a config and freezes it.

    Raises:
      BadInput: names the first field that is unknown, of the wrong type, or out of range.
    """
    values = config.to_dict() if isinstance(config, ConfigDict) else config
    if not isinstance(values, dict):
        raise BadInput('config', f'is {values!r}', 'a group of fields')
    phases = values.get('phases', ())
    single = {name: value for name, value in values.items() if name != 'phases'}
    resolved = resolve_section(Config, single, '', unknown_field)
    resolved = _with_phases(resolved, phases)
    _check_together(resolved)
    for number, phase in enumerate(in_phases(resolved)):
        _check_phase(phase, f'phases[{number}].' if resolved.phases else '')
    return resolved


def _with_phases(config: Config, values: Any) -> Config:
    """A config with its phases, each complete, and `train.steps` their sum."""
    if not isinstance(values, (list, tuple)):
        raise BadInput('config.phases', f'is {values!r}', f'a tuple of groups of {", ".join(_SECTION_OF)}')
    if not values:
        return config
    phases = []
    for number, given in enumerate(values):
        given = given.to_dict() if isinstance(given, ConfigDict) else given
        if isinstance(given, dict) and 'steps' not in given:
            raise BadInput(f'config.phases[{number}]', 'does not say how many steps', "'steps' among its fields")
        inherited = {name: getattr(getattr(config, section), name) for name, section in _SECTION_OF.items()}
        given = inherited | given if isinstance(given, dict) else given
        phases.append(resolve_section(Phase, given, f'phases[{number}].', unknown_field))
    train = dataclasses.replace(config.train, steps=sum(phase.steps for phase in phases))
    return dataclasses.replace(config, phases=tuple(phases), train=train)


def in_phases(config: Config) -> tuple[Config, ...]:
    """A config for each phase of a run, its values in the single fields; the run's own where there are no phases."""
    found = []
    for phase in config.phases:
        one = dataclasses.replace(config, phases=())
        for name, section in _SECTION_OF.items():
            changed = dataclasses.replace(getattr(one, section), **{name: getattr(phase, name)})
            one = dataclasses.replace(one, **{section: changed})
        found.append(one)
    return tuple(found) or (config,)


def phase_at(config: Config, step: int) -> int:
    """The number of the phase in which a run makes its `step`-th step; steps count from 1, phases from 0."""
    ends = list(itertools.accumulate(phase.train.steps for phase in in_phases(config)))
    return min(sum(end < step for end in ends), len(ends) - 1)


def positions_trained(config: Config, step: int) -> int:
    """Positions of the longest rows that a run has trained on up to a step: what its model can be trusted with."""
    phases = in_phases(config)[: phase_at(config, step) + 1]
    return min(max(phase.data.sequence_length for phase in phases), config.model.max_positions)


def unknown_field(path: str, root: type | None = None) -> BadInput:
    """The error for a field that does not exist, with the nearest name there is. root: another command's config."""
    phase = re.match(r'phases\[\d+\]\.', path)
    names = list(field_names(Phase, phase[0]) if phase else field_names(root or Config))
    leaf = {name.rpartition('.')[2]: name for name in names}
    close = difflib.get_close_matches(path, names, n=1, cutoff=0.6) or [
        leaf[name] for name in difflib.get_close_matches(path.rpartition('.')[2], leaf, n=1, cutoff=0.5)
    ]
    section = path.rpartition('.')[0]
    siblings = [name for name in names if name.rpartition('.')[0] == section] or names
    mend = f'did you mean config.{close[0]}?' if close else ''
    return BadInput(f'config.{path}', 'there is no such field', ', '.join(siblings), mend)


def field_names(section: type = Config, prefix: str = '') -> typing.Iterator[str]:
    """Dotted names of all fields, for example `train.steps`."""
    for field in dataclasses.fields(section):
        if dataclasses.is_dataclass(field.type):
            yield from field_names(field.type, f'{prefix}{field.name}.')
        else:
            yield prefix + field.name


def check_model(model: Model) -> None:
    """Raises `BadInput` when the heads do not divide the hidden size."""
    if model.hidden_size % model.num_heads:
        works = [h for h in range(1, model.hidden_size + 1) if model.hidden_size % h == 0]
        near = sorted(works, key=lambda h: abs(h - model.num_heads))[:3]
        raise BadInput(
            'config.model.num_heads',
            f'is {model.num_heads}, which does not divide hidden_size={model.hidden_size}',
            f'a divisor of {model.hidden_size}, for example {", ".join(map(str, sorted(near)))}',
        )


def _check_together(config: Config) -> None:
    """The checks that concern more than one field."""
    data, masking = config.data, config.data.masking
    check_model(config.model)
    if data.group_field and any(name.partition(':')[0] in ('python-docs', 'text') for name, _ in sources(data)):
        raise BadInput(
            'config.data.group_field',
            f'is {data.group_field!r}, but text files have no fields',
            'jsonl, parquet or tfds',
        )
    if data.validation_source and is_records(data.validation_source) != is_records(data.source):
        raise BadInput(
            'config.data.validation_source',
            f'is {data.validation_source!r}, and data.source is {data.source!r}',
            'both text, or both tfrecord:GLOB',
        )
    if data.packing and is_records(data.source):
        raise BadInput('config.data.packing', 'is True, and records are rows already', 'False with tfrecord:GLOB')
    if data.bucket_lengths:
        _check_buckets(config)
    if masking.mask_fraction + masking.random_fraction > 1:
        raise BadInput(
            'config.data.masking',
            f'mask_fraction={masking.mask_fraction} + random_fraction={masking.random_fraction} is more than 1',
            'a sum of at most 1; the rest keeps its token',
        )
    if config.tokenizer.add_tokens and not (config.init or config.tokenizer.path):
        raise BadInput(
            'config.tokenizer.add_tokens',
            'is set, and there is no vocabulary to add to',
            'an initial model or a tokenizer',
            '--config.init=DIR or --config.tokenizer.path=DIR; a vocabulary trained here has its words from the text',
        )
    if config.init_optimizer and not config.init:
        mend = '--config.init=WORKDIR or --config.init=WORKDIR@STEP'
        raise BadInput('config.init_optimizer', 'is True, and config.init names no run', 'both or neither', mend)
    if config.train.probe_every and not config.probe.sets:
        mend = "--config.probe.sets=\"(('mood','tsv:mood.tsv'),)\""
        raise BadInput('config.probe.sets', 'is (), and train.probe_every asks for probes', 'labelled sets', mend)
    axes = dataclasses.asdict(config.mesh)
    if sum(size == -1 for size in axes.values()) > 1:
        raise BadInput('config.mesh', f'is {axes}', 'at most one axis of -1 (the rest of the devices)')


def _check_phase(config: Config, phase: str) -> None:
    """The checks of fields that a phase may set; `phase` is where they stand, '' for the single fields."""
    model, data, train, optimizer = config.model, config.data, config.train, config.optimizer
    grows = bool(config.init) or is_records(data.source)  # an initial model's positions grow; records tell their length
    if data.sequence_length > model.max_positions and not grows:
        raise BadInput(
            f'config.{phase or "data."}sequence_length',
            f'is {data.sequence_length}, more than the model has positions',
            f'at most model.max_positions={model.max_positions}',
            f'--config.model.max_positions={data.sequence_length}',
        )
    if train.reduction == 'exact':
        _check_exact(train, phase)
    if train.microbatches != -1 and train.global_batch_size % train.microbatches:
        works = -(-train.global_batch_size // train.microbatches) * train.microbatches
        where = f'config.{phase or "train."}global_batch_size'
        raise BadInput(
            'config.train.microbatches',
            f'is {train.microbatches}, which does not divide {where[7:]}={train.global_batch_size}',
            f'a divisor of {train.global_batch_size}',
            f'--{where}={works}',
        )
    if optimizer.warmup_steps > train.steps:
        where = f'config.{phase or "optimizer."}warmup_steps'
        raise BadInput(
            where,
            f'is {optimizer.warmup_steps}, more than {"the phase" if phase else "the run"} has steps',
            f'at most {phase or "train."}steps={train.steps}',
            f'--{where}={train.steps // 10}',
        )


def _check_buckets(config: Config) -> None:
    data, where = config.data, 'config.data.bucket_lengths'
    if data.packing or is_records(data.source):
        found = 'data.packing fills the rows' if data.packing else 'records are rows already'
        raise BadInput(where, f'is {data.bucket_lengths}, and {found}', '() with packing or tfrecord:GLOB')
    longest = max(phase.data.sequence_length for phase in in_phases(config))
    if data.bucket_lengths[-1] >= longest:
        expected = f'lengths below data.sequence_length={longest}, which is the longest already'
        shorter = tuple(length for length in data.bucket_lengths if length < longest)
        raise BadInput(where, f'is {data.bucket_lengths}', expected, f'--config.data.bucket_lengths="{shorter}"')


def _check_exact(train: Train, phase: str) -> None:
    if train.microbatches != 1:
        raise BadInput(
            'config.train.microbatches',
            f"is {train.microbatches}, and with train.reduction='exact' the shards are the microbatches",
            '1; more shards are smaller ones',
            '--config.train.microbatches=1',
        )
    if train.global_batch_size % train.exact_shards:
        where = f'config.{phase or "train."}global_batch_size'
        works = -(-train.global_batch_size // train.exact_shards) * train.exact_shards
        raise BadInput(
            'config.train.exact_shards',
            f'is {train.exact_shards}, which does not divide {where[7:]}={train.global_batch_size}',
            f'a power of two that divides {train.global_batch_size}',
            f'--{where}={works}',
        )


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


def max_sequences(data: Data) -> int:
    """E, the sequences that a row has room for."""
    if not data.packing:
        return 1
    return max(4, data.sequence_length // 32) if data.max_sequences == -1 else data.max_sequences
