"""Every setting of a pretraining run, with its default, meaning and check.

A config file builds an `ml_collections.ConfigDict` from `bert(SIZE)` and changes some fields; the command line may
change any field. `resolve` turns the result into the frozen dataclasses below, or raises `BadInput` with the name of
the field. Functions of the project take only the section that they need.
"""

import dataclasses
import datetime
import functools
import re
from typing import Any, ClassVar

from bert_jax.config.data import Data, Masking, Tokenizer
from bert_jax.config.families import FAMILIES, Bert, EuroBert, Model, ModernBert
from bert_jax.config.fields import Role, as_in, at_least, fraction, optional, overridden, setting, variants
from bert_jax.config.objective import Objective


def _is_time(value: str) -> bool:
    try:
        return not value or bool(datetime.datetime.fromisoformat(value))
    except ValueError:
        return False


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


def _tokens():
    """Defines a duration in tokens, for `phases.with_durations_in_steps`; the identity of a run has the steps."""
    return setting(
        0.0,
        'a whole number of at least 0, such as 2e9',
        lambda value: 0 <= value < 2**53 and value.is_integer(),
        role=Role.EXECUTION,
    )


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """The optimizer and the learning rate schedule; see `train/optimizer.py`."""

    ROLE: ClassVar[Role] = Role.IDENTITY

    # the optimizer; stableadamw is adamw with clipped updates; muon updates matrices, and adamw everything else
    name: str = setting('adamw', choices=('adamw', 'stableadamw', 'lamb', 'adafactor', 'muon'), role=Role.SHAPES)
    # learning rate after warm-up
    peak_learning_rate: float = setting(1e-4, 'a number above 0', lambda value: value > 0)
    # steps over which the learning rate rises linearly to its peak
    warmup_steps: int = at_least(10_000, 0)
    # the same in tokens, counted as in train.tokens; 0: warmup_steps counts
    warmup_tokens: float = _tokens()
    # learning rate after warm-up: linear, cosine and 1-sqrt fall until the last step; wsd stays at the peak, then
    # falls; inverse_sqrt falls with the square root of the step
    schedule: str = setting('linear', choices=('linear', 'cosine', '1-sqrt', 'constant', 'wsd', 'inverse_sqrt'))
    # schedule=wsd: the curve on which the learning rate falls
    decay: str = setting('linear', choices=('linear', 'cosine', '1-sqrt', 'inverse_sqrt'), role=Role.IDENTITY_IF_SET)
    # schedule=wsd: share of the steps over which the learning rate falls; at most those after the warm-up
    decay_fraction: float = setting(0.1, 'a number above 0, at most 1', lambda value: 0 < value <= 1)
    # schedule=wsd: the same in steps; 0: decay_fraction counts
    decay_steps: int = at_least(0, 0, Role.IDENTITY_IF_SET)
    # schedule=wsd: the same in tokens, counted as in train.tokens; 0: decay_steps or decay_fraction counts
    decay_tokens: float = _tokens()
    # share of the peak that a falling learning rate ends at
    final_fraction: float = fraction(0.0, Role.IDENTITY_IF_SET)
    # decoupled weight decay; never on biases and norms
    weight_decay: float = at_least(0.01, 0)
    # decay rate of the first moment, per step
    b1: float = fraction(0.9)
    # decay rate of the second moment, per step
    b2: float = fraction(0.999)
    # adamw and lamb: correct the bias of the first steps; the original BERT does not
    bias_correction: bool = True
    # added to the denominator of the update; adamw, stableadamw and lamb
    eps: float = setting(1e-6, 'a number above 0', lambda value: value > 0)
    # largest global norm of the gradients; larger ones are scaled down; 0: never
    clip_norm: float = at_least(1.0, 0)

    def num_decay_steps(self, num_steps: int) -> int:
        """Returns the steps over which a `wsd` schedule of a number of steps falls."""
        decay_steps = self.decay_steps or round(self.decay_fraction * num_steps)
        return min(max(decay_steps, 1), max(num_steps - self.warmup_steps, 1))


@dataclasses.dataclass(frozen=True)
class Train:
    """The length of the run, the batch, and the intervals of logging, evaluation and checkpoints."""

    ROLE: ClassVar[Role] = Role.EXECUTION

    # optimizer updates; with `phases`, their sum
    steps: int = at_least(1_000_000, 1, Role.IDENTITY)
    # the length of the run in tokens, padding included: rows x sequence_length per step; 0: steps counts
    tokens: float = _tokens()
    # rows per step, over all devices
    global_batch_size: int = at_least(256, 1, Role.IDENTITY)
    # batch-size warm-up: rows of the first steps, a divisor of global_batch_size; 0: no warm-up
    first_batch_size: int = at_least(0, 0, Role.IDENTITY_IF_SET)
    # steps in which the batch grows from first_batch_size to global_batch_size, in up to 8 sizes
    batch_warmup_steps: int = at_least(0, 0, Role.IDENTITY_IF_SET)
    # the same in tokens, counted as in train.tokens; 0: batch_warmup_steps counts
    batch_warmup_tokens: float = _tokens()
    # parts of a batch whose gradients are accumulated, to save memory; -1 finds the fewest that fit
    microbatches: int = setting(1, 'at least 1, or -1 (the fewest that fit)', lambda v: v == -1 or v >= 1)
    # decay rate per step of a moving average of the parameters, which is evaluated and exported in their place; 0: none
    ema: float = fraction(0.0, Role.SHAPES_IF_SET)
    # how gradients are summed: exact gives the same bits on any number of devices, and costs 1.2 to 1.6 times as much
    reduction: str = setting('fast', choices=('fast', 'exact'))
    # reduction=exact: parts of the global batch that are added in a fixed order; at least as many as devices
    exact_shards: int = setting(8, 'a power of two', lambda value: value >= 1 and value & (value - 1) == 0)
    # of parameters, order, pairs, masks and dropout
    seed: int = setting(0, 'a number from 0 to 2**31 - 1', lambda value: 0 <= value < 2**31, role=Role.IDENTITY)
    # steps between lines in metrics.jsonl
    log_every: int = at_least(100, 1)
    # steps between checkpoints
    checkpoint_every: int = at_least(1000, 1)
    # how many of the newest checkpoints stay on disk
    keep_checkpoints: int = at_least(2, 1)
    # checkpoints whose step is a multiple of this stay on disk for good; 0: none
    keep_every: int = at_least(0, 0)
    # the run ends when a process shows no sign of life, or a step no progress, for this many seconds; 0: never
    watchdog_seconds: float = at_least(120.0, 0)
    # the same while compiling, evaluating, reading or saving
    watchdog_long_seconds: float = at_least(3600.0, 1)
    # local time at which the run saves and exits with status 75; empty: never
    stop_at: str = setting('', 'empty, or a time like 2026-01-31T18:00', _is_time)
    # steps between evaluations on the validation split; 0: only at the end
    evaluate_every: int = at_least(10_000, 0)
    # validation rows used during training; the command `evaluate` uses all
    evaluate_rows: int = at_least(4096, 1)
    # evaluate with 15% of the tokens masked, in rows as long as those of the shortest phase, whatever a phase trains
    # with; False: with the masking and the length of the phase
    fixed_evaluation: bool = setting(True, before=False)
    # steps between probes of the frozen encoder (section `probe`), and once at the end; 0: never
    probe_every: int = at_least(0, 0)
    # steps in a row with a non-finite value or a loss spike, after which the run rolls back to a checkpoint
    max_bad_steps: int = at_least(10, 1)
    # rollbacks after which the run ends with an error
    max_rollbacks: int = at_least(5, 0)
    # a loss is a spike this many median absolute deviations above the median of the last losses; 0: never
    spike_threshold: float = at_least(10.0, 0)
    # losses that the median is taken over
    spike_window: int = setting(256, 'a number from 8 to 100000', lambda value: 8 <= value <= 100_000)
    # batches to leave out, as a run does after a rollback: (phase, first batch, the one after the last)
    skip: tuple = setting(
        (),
        'a tuple of (phase, first, stop), whole numbers with first < stop',
        _are_windows,
        role=Role.IDENTITY_IF_SET,
    )
    # sentences with [MASK] that are filled in at every evaluation, for the report; (): none
    examples: tuple = setting(_EXAMPLES, 'a tuple of lines of text, each with [MASK]', _have_masks)
    # steps between comparisons of the replicas of parameters and moments, to find silent data corruption; 0: never
    replica_check_every: int = at_least(1000, 0)


@dataclasses.dataclass(frozen=True)
class Mesh:
    """The number of devices along each axis; one axis may be -1, for the rest of the devices."""

    ROLE: ClassVar[Role] = Role.EXECUTION

    # devices that split the batch and hold whole weights; -1: all that the other axes leave
    data: int = setting(-1, '-1 or at least 1', lambda value: value == -1 or value >= 1)
    # devices that split the batch, and weights and moments with it; -1: all that the other axes leave
    fsdp: int = setting(1, '-1 or at least 1', lambda value: value == -1 or value >= 1)
    # devices that split heads, intermediate layers and vocabulary; -1: all that the other axes leave
    tensor: int = setting(1, '-1 or at least 1', lambda value: value == -1 or value >= 1)


def _are_labelled_sets(value: tuple) -> bool:
    def is_set(item: Any) -> bool:
        return isinstance(item, tuple) and len(item) == 2 and all(isinstance(part, str) for part in item)

    def is_file(source: str) -> bool:
        kind, _, rest = source.partition(':')
        return kind in ('tsv', 'csv', 'jsonl', 'tfds', 'beir') and bool(rest)

    names = [item[0] for item in value if is_set(item) and re.fullmatch(r'[\w.-]+', item[0]) and is_file(item[1])]
    return len({*names}) == len(value)


@dataclasses.dataclass(frozen=True)
class Probe:
    """What the frozen encoder is probed on (`train.probe_every`): labelled texts, for a linear classifier on its mean
    vectors, and retrieval sets."""

    ROLE: ClassVar[Role] = Role.EXECUTION

    # labelled sets, such as (('mood', 'tsv:mood.tsv'),), and retrieval sets, such as
    # (('wiki', 'beir:wiki/qrels/dev.tsv'),)
    sets: tuple = setting(
        (),
        'a tuple of (name, FORMAT:FILE), FORMAT one of tsv, csv, jsonl, tfds, beir, each name once',
        _are_labelled_sets,
    )
    # column of the text
    text: str = setting('sentence', 'the name of a column', bool)
    # column of the label
    label: str = setting('label', 'the name of a column', bool)
    # examples of each set, chosen by hash; a fifth of them is the test
    max_examples: int = at_least(2000, 10)


_ONE_LINE = 'one line of text', lambda value: value.isprintable()


@dataclasses.dataclass(frozen=True)
class Card:
    """Facts for the model card of an export that a run does not know; empty fields are left out.

    `language` and `datasets` take several values, separated by commas: `en, de`.
    """

    ROLE: ClassVar[Role] = Role.EXECUTION

    # title of the model card; empty takes the name of the workdir
    name: str = setting('', *_ONE_LINE)
    # one or more sentences for the top of the card
    description: str = setting('', *_ONE_LINE)
    # one or more sentences: where the text comes from and how it was selected
    training_data: str = setting('', *_ONE_LINE)
    # as on the model hub, such as apache-2.0
    license: str = setting('', *_ONE_LINE)
    # codes, separated by commas, such as en, de
    language: str = setting('', *_ONE_LINE)
    # names of datasets on the hub, separated by commas
    datasets: str = setting('', *_ONE_LINE)


@dataclasses.dataclass(frozen=True)
class PhaseMasking:
    """The masking of a phase. Fields that are None have the values of the run."""

    ROLE: ClassVar[Role] = Role.IDENTITY

    rate: float | None = optional(Masking, 'rate')
    mask_fraction: float | None = optional(Masking, 'mask_fraction')
    random_fraction: float | None = optional(Masking, 'random_fraction')
    unit: str | None = optional(Masking, 'unit')


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of a run. Fields that it leaves out or that are None, except its length, have the values of the run."""

    ROLE: ClassVar[Role] = Role.IDENTITY

    steps: int = as_in(Train, 'steps')
    tokens: float = as_in(Train, 'tokens')
    sequence_length: int = as_in(Data, 'sequence_length')
    source_weights: tuple | None = optional(Data, 'source_weights')
    source_temperature: float | None = optional(Data, 'source_temperature')
    global_batch_size: int = as_in(Train, 'global_batch_size')
    microbatches: int | None = optional(Train, 'microbatches', Role.EXECUTION)
    first_batch_size: int | None = optional(Train, 'first_batch_size')
    batch_warmup_steps: int | None = optional(Train, 'batch_warmup_steps')
    batch_warmup_tokens: float | None = optional(Train, 'batch_warmup_tokens', Role.EXECUTION)
    peak_learning_rate: float = as_in(Optimizer, 'peak_learning_rate')
    warmup_steps: int = as_in(Optimizer, 'warmup_steps')
    warmup_tokens: float = as_in(Optimizer, 'warmup_tokens')
    schedule: str | None = optional(Optimizer, 'schedule')
    decay: str | None = optional(Optimizer, 'decay')
    decay_fraction: float | None = optional(Optimizer, 'decay_fraction')
    decay_steps: int | None = optional(Optimizer, 'decay_steps')
    decay_tokens: float | None = optional(Optimizer, 'decay_tokens', Role.EXECUTION)
    final_fraction: float | None = optional(Optimizer, 'final_fraction')
    weight_decay: float | None = optional(Optimizer, 'weight_decay')
    objective: str | None = optional(Objective, 'name')
    causal_share: float | None = optional(Objective, 'causal_share')
    masking: PhaseMasking = dataclasses.field(default=PhaseMasking(), metadata={'role': Role.IDENTITY_IF_SET})
    global_rope_theta: float | None = optional(ModernBert, 'global_rope_theta')
    local_rope_theta: float | None = optional(ModernBert, 'local_rope_theta')
    local_attention: int | None = optional(ModernBert, 'local_attention')
    rope_theta: float | None = optional(EuroBert, 'rope_theta')


@dataclasses.dataclass(frozen=True)
class Config:
    """The config of a pretraining run."""

    ROLE: ClassVar[Role] = Role.EXECUTION

    # the text, and how batches are made from it
    data: Data = Data()
    tokenizer: Tokenizer = Tokenizer()
    model: Model = variants(Bert(), FAMILIES, by='family')
    # what the model learns from the text
    objective: Objective = Objective()
    optimizer: Optimizer = Optimizer()
    train: Train = Train()
    probe: Probe = Probe()
    mesh: Mesh = Mesh()
    # model to start from: a workdir, WORKDIR@STEP, an export or a Hugging Face directory; empty: random weights
    init: str = setting('', role=Role.CONTENT)
    # start from the optimizer's moments of that workdir too; the schedule starts at the beginning
    init_optimizer: bool = setting(False, role=Role.IDENTITY_IF_SET)
    # start from a smaller model of the same family: its weights are tiled to the sizes in `model`; without this, a run
    # has the sizes of its initial model
    init_larger: bool = setting(False, role=Role.IDENTITY_IF_SET)
    card: Card = Card()
    # devices to run on; '' takes the fastest available
    platform: str = setting('', choices=('', 'cpu', 'cuda', 'tpu'))
    # consecutive parts of the run with their own objective, length, rows, batch size, masking, learning rate and weight
    # decay; (): one phase
    phases: tuple[Phase, ...] = setting((), role=Role.IDENTITY)

    @functools.cached_property
    def in_phases(self) -> tuple['Config', ...]:
        """One config per phase, with the values of the phase in the other sections; without phases, this config."""
        found = []
        for phase in self.phases:
            data = overridden(self.data, phase)
            found.append(
                dataclasses.replace(
                    self,
                    phases=(),
                    data=dataclasses.replace(data, masking=overridden(data.masking, phase.masking)),
                    model=overridden(self.model, phase),
                    objective=overridden(self.objective, phase),
                    optimizer=overridden(self.optimizer, phase),
                    train=overridden(self.train, phase),
                )
            )
        return tuple(found) or (self,)
