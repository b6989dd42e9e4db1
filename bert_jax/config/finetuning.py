"""Every setting of a fine-tune, with its default, meaning and check; `pretraining.py` has those of a pretraining run.

A config file builds a `ConfigDict` from `finetune(KIND)` and changes some fields; `resolve` checks and freezes it.
"""

import dataclasses
from typing import Any, ClassVar

from ml_collections import ConfigDict

from bert_jax import config
from bert_jax.config.embedding import Embedding, check_embedding
from bert_jax.config.fields import (
    Role,
    as_in,
    at_least,
    config_dict_of,
    fraction,
    resolve_section,
    setting,
    variants,
)
from bert_jax.config.finetuning_models import MODELS, Bert, with_own_defaults
from bert_jax.errors import BadInput

KINDS = ('classification', 'regression', 'ranking', 'tagging', 'spans', 'embedding')
SCORES = ('regression', 'ranking')  # kinds whose output is one number per example
POOLED = ('classification', *SCORES)  # kinds whose classifier reads one vector per example
FORMATS = ('tsv', 'csv', 'jsonl', 'parquet', 'conll', 'squad', 'tfds')
CORPUS = 'corpus'  # the format of a prepared corpus, which only embeddings use
METRICS = {  # the first is the one that a kind has by default
    'classification': ('accuracy', 'f1', 'macro_f1', 'matthews'),
    'regression': ('pearson', 'spearman'),
    'ranking': ('ndcg_at_10', 'mrr_at_10', 'average_precision'),
    'tagging': ('entity_f1', 'entity_precision', 'entity_recall', 'token_accuracy'),
    'spans': ('exact_match', 'f1'),
    'embedding': ('sts_spearman', 'accuracy', 'mrr'),  # all that the columns of a file allow, by default
}
# [CLS] and [SEP]s, at most
FRAME = dict.fromkeys(POOLED, 3) | {'tagging': 2, 'spans': 3, 'embedding': 2}


def _is_source(value: Any) -> bool:
    kind, _, rest = value.partition(':') if isinstance(value, str) else ('', '', '')
    return kind in FORMATS and bool(rest)


def _is_corpus(value: Any) -> bool:
    kind, _, directory = value.partition(':') if isinstance(value, str) else ('', '', '')
    return kind == CORPUS and bool(directory)


def _is_source_or_corpus(value: Any) -> bool:
    return _is_source(value) or _is_corpus(value)


def _is_validation(value: Any) -> bool:
    return _is_source_or_corpus(value) or (
        isinstance(value, tuple) and bool(value) and all(map(_is_source_or_corpus, value))
    )


def _is_training_source(value: Any) -> bool:
    def is_weighted(value: Any) -> bool:
        return (
            isinstance(value, tuple)
            and len(value) == 2
            and _is_source_or_corpus(value[0])
            and type(value[1]) in (int, float)
            and 0 < value[1] < float('inf')
        )

    return _is_source_or_corpus(value) or (isinstance(value, tuple) and bool(value) and all(map(is_weighted, value)))


def _are_texts(value: tuple) -> bool:
    return all(isinstance(item, str) and item for item in value) and len({*value}) == len(value)


_SOURCE = 'FORMAT:FILE with FORMAT one of ' + ', '.join(FORMATS) + ' (tfds:NAME[:SPLIT])'


@dataclasses.dataclass(frozen=True)
class Task:
    """The task and its files, which may end in `.gz`, `.zst`, `.bz2` or `.xz`."""

    ROLE: ClassVar[Role] = Role.IDENTITY

    # what is learned
    kind: str = setting('classification', choices=KINDS)
    # directory of the files below; absolute names stand for themselves
    directory: str = setting('', role=Role.CONTENT)
    # labelled examples to train on. embedding: also corpus:DIR, a prepared corpus; or a tuple of (source, weight), in
    # which case each batch comes from one source, chosen in proportion to the weights
    train: str | tuple = setting(
        'tsv:train.tsv',
        _SOURCE + f'; embedding: also {CORPUS}:DIR, or a tuple of (source, weight)',
        _is_training_source,
        role=Role.CONTENT,
    )
    # labelled examples to evaluate on; of several files the first decides which seed is best. embedding: also
    # corpus:DIR, the held-out documents of a prepared corpus
    validation: str | tuple = setting(
        'tsv:dev.tsv',
        _SOURCE + f', or a tuple of them; embedding: also {CORPUS}:DIR',
        _is_validation,
        role=Role.CONTENT,
    )
    # examples without labels, for predictions only; empty: none
    predict: str = setting('', 'empty, or ' + _SOURCE, lambda v: not v or _is_source(v), role=Role.CONTENT)
    # column of the text, or of the words (tagging)
    text: str = setting('sentence', 'the name of a column', bool, role=Role.CONTENT)
    # column of the second text of a pair; empty: single texts. ranking: `text` is the query, this the passage
    text_pair: str = setting('', role=Role.CONTENT)
    # column of the label, of the tags (tagging), or of the relevance from 0 to 1 (ranking)
    label: str = setting('label', 'the name of a column', bool, role=Role.CONTENT)
    # names of the columns, for files without a header line
    columns: tuple = setting((), 'a tuple of names, each once', _are_texts, role=Role.CONTENT)
    # all labels in the order of their ids; () sorts those of the training file
    labels: tuple = setting((), 'a tuple of texts, each once', _are_texts, role=Role.CONTENT)
    # metrics to report, the main one first; () takes the kind's own
    metrics: tuple = setting((), 'a tuple of names', _are_texts, role=Role.EXECUTION)
    # tokens per example; longer texts are cut, or split into windows
    sequence_length: int = as_in(config.Data, 'sequence_length')
    # share of the records that may lack a column and are skipped; more is an error
    bad_records: float = fraction(0.001, Role.EXECUTION)
    # conll: prefix to remove from every word, such as 'en:' in WikiANN
    token_prefix: str = setting('', role=Role.CONTENT)
    # spans: tokens of text between the starts of two windows
    stride: int = at_least(128, 1)
    # spans: longer questions are cut
    max_question_tokens: int = at_least(64, 1)
    # spans: longest answer that is predicted, in tokens
    max_answer_tokens: int = at_least(30, 1)
    # spans: candidate answers per question in the predictions
    n_best: int = at_least(20, 1)
    # examples that share a row in training, on average; 0 chooses one to ten by their lengths, 1 pads each example to
    # sequence_length
    examples_per_row: int = setting(
        0, '0 (automatic) or a number up to 64', lambda v: 0 <= v <= 64, role=Role.IDENTITY_IF_SET, before=1
    )
    # distribution of the new head, with standard deviation model.initializer_range; truncated at two of them, as in the
    # original BERT, its deviation is 0.88 of that
    head_initializer: str = setting(
        'normal', choices=('normal', 'truncated_normal'), role=Role.IDENTITY_IF_SET, before='truncated_normal'
    )
    # spans: questions without an answer. learn: predict that there is none; drop: leave them out; auto: learn where the
    # training file has `is_impossible`, as SQuAD 2.0 does
    unanswerable: str = setting('auto', choices=('auto', 'learn', 'drop'), role=Role.CONTENT, before='drop')


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """As in pretraining, with a warm-up relative to the length of the run."""

    ROLE: ClassVar[Role] = Role.IDENTITY

    name: str = as_in(config.Optimizer, 'name')
    peak_learning_rate: float = as_in(config.Optimizer, 'peak_learning_rate', 2e-5)
    # share of the steps over which the learning rate rises linearly to its peak
    warmup_fraction: float = fraction(0.1)
    schedule: str = as_in(config.Optimizer, 'schedule')
    weight_decay: float = as_in(config.Optimizer, 'weight_decay')
    b1: float = as_in(config.Optimizer, 'b1')
    b2: float = as_in(config.Optimizer, 'b2')
    bias_correction: bool = as_in(config.Optimizer, 'bias_correction')
    eps: float = as_in(config.Optimizer, 'eps')
    clip_norm: float = as_in(config.Optimizer, 'clip_norm')


@dataclasses.dataclass(frozen=True)
class Train:
    """The length of the run, the batch, and the intervals of logging, evaluation and checkpoints."""

    ROLE: ClassVar[Role] = Role.EXECUTION

    # passes over the training examples; a fraction is allowed
    epochs: float = setting(3.0, 'a number above 0', lambda value: value > 0)
    global_batch_size: int = as_in(config.Train, 'global_batch_size', 32)
    # parts of a batch whose gradients are accumulated, to save memory
    microbatches: int = at_least(1, 1)
    reduction: str = as_in(config.Train, 'reduction')
    exact_shards: int = as_in(config.Train, 'exact_shards')
    # of the first run; further seeds count up from it
    seed: int = as_in(config.Train, 'seed')
    # train on this many examples, chosen by hash; 0: all
    max_examples: int = at_least(0, 0)
    log_every: int = as_in(config.Train, 'log_every', 50)
    checkpoint_every: int = as_in(config.Train, 'checkpoint_every', 500)
    keep_checkpoints: int = as_in(config.Train, 'keep_checkpoints', 1)
    evaluate_every: int = as_in(config.Train, 'evaluate_every', 0)
    # steps between probes of the encoder while it is fine-tuned; 0: never
    probe_every: int = as_in(config.Train, 'probe_every')
    stop_at: str = as_in(config.Train, 'stop_at')
    max_bad_steps: int = as_in(config.Train, 'max_bad_steps')
    max_rollbacks: int = as_in(config.Train, 'max_rollbacks')
    spike_threshold: float = as_in(config.Train, 'spike_threshold')
    spike_window: int = as_in(config.Train, 'spike_window')
    replica_check_every: int = as_in(config.Train, 'replica_check_every')
    watchdog_seconds: float = as_in(config.Train, 'watchdog_seconds')
    watchdog_long_seconds: float = as_in(config.Train, 'watchdog_long_seconds')


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """The config of a fine-tune."""

    ROLE: ClassVar[Role] = Role.EXECUTION

    task: Task = Task()
    embedding: Embedding = Embedding()
    # model to fine-tune: a workdir, WORKDIR@STEP, an export or a Hugging Face directory; scratch: random weights
    init: str = setting('', role=Role.CONTENT)
    # how many of the top layers get new random weights, with the pooler or prediction head above them
    reinitialized_layers: int = at_least(0, 0, Role.IDENTITY_IF_SET)
    # init=scratch: its `path`
    tokenizer: config.Tokenizer = config.Tokenizer()
    model: config.Model = variants(Bert(), MODELS, by='family')
    optimizer: Optimizer = Optimizer()
    train: Train = Train()
    probe: config.Probe = config.Probe()
    mesh: config.Mesh = config.Mesh()
    card: config.Card = config.Card()
    platform: str = as_in(config.Config, 'platform')


def finetune(kind: str = 'classification') -> ConfigDict:
    """Returns the config of a fine-tune to build on, with the stable recipe of Mosbach et al. (2021).

    That is bias correction, warm-up over 10% of the steps and decay to 0 ("On the Stability of Fine-tuning BERT").

    Raises:
      BadInput: for an unknown kind of task.
    """
    if kind not in KINDS:
        raise BadInput(f'kind {kind!r}', 'is not a kind of task', ', '.join(KINDS))
    found = config_dict_of(FinetuneConfig())
    found.task = ConfigDict(found.task.to_dict() | {'kind': kind}, type_safe=False)  # texts or tuples; `resolve` checks
    found.lock()
    return found


def use_original_recipe(found: ConfigDict) -> ConfigDict:
    """Sets the recipe of Devlin et al. 2019: Adam without bias correction, 3 epochs, warm-up over 10% of the steps."""
    found.optimizer.bias_correction = False
    found.train.epochs = 3.0
    return found


def unknown_field(path: str) -> BadInput:
    """Returns the error for a field that does not exist, with the nearest name."""
    return config.unknown_field(path, FinetuneConfig)


def resolve(given: ConfigDict | dict) -> FinetuneConfig:
    """Checks a config and freezes it.

    Raises:
      BadInput: names the first field that is unknown, of the wrong type, or out of range.
    """
    values = given.to_dict() if isinstance(given, ConfigDict) else given
    if isinstance(values, dict) and 'task' not in values:
        expected = 'a config with a task, like those in configs/finetune'
        raise BadInput(
            '--config', 'is not the config of a fine-tune', expected, '--config=configs/finetune/glue.py:sst2'
        )
    resolved = resolve_section(FinetuneConfig, _without_defaults_of_bert(values), '', unknown_field)
    if resolved.init == 'scratch':  # no initial model: the defaults of pretraining
        resolved = dataclasses.replace(resolved, model=with_own_defaults(resolved.model))
    _check_together(resolved)
    return resolved


def _without_defaults_of_bert(values: Any) -> Any:
    """Returns the values without the defaults of fields that only `Bert` has, if the model is of another family.

    `finetune` sets them, and a config file or the command line may choose another family afterwards.
    """
    model = values.get('model') if isinstance(values, dict) else None
    if not isinstance(model, dict):
        return values
    family = model.get('family')
    if not isinstance(family, str) or family not in MODELS:
        return values
    known = {field.name for field in dataclasses.fields(MODELS[family])}
    kept = {name: value for name, value in model.items() if name in known or value != getattr(Bert, name, None)}
    return values | {'model': kept}


def _check_together(resolved: FinetuneConfig) -> None:
    """Checks what concerns more than one field."""
    task, train, model = resolved.task, resolved.train, resolved.model
    for name in task.metrics:
        if name not in METRICS[task.kind]:
            raise BadInput('config.task.metrics', f'names {name!r}', f'of {task.kind}: {", ".join(METRICS[task.kind])}')
    if task.kind == 'embedding':
        check_embedding(resolved.embedding, train.global_batch_size, train.reduction)
    elif isinstance(task.train, tuple) or _is_corpus(task.train):
        raise BadInput('config.task.train', f'is {task.train!r}', f'{_SOURCE} with kind={task.kind}')
    elif any(map(_is_corpus, validation_sources(task))):
        raise BadInput('config.task.validation', f'is {task.validation!r}', f'{_SOURCE} with kind={task.kind}')
    if task.kind == 'ranking' and not task.text_pair:
        expected = 'the column of the passage, which is ranked for the query in task.text'
        raise BadInput('config.task.text_pair', 'is empty', expected, '--config.task.text_pair=COLUMN')
    if task.kind in (*SCORES, 'spans', 'embedding') and task.labels:
        raise BadInput('config.task.labels', 'is set', f'() with kind={task.kind}, which has no labels')
    room = task.sequence_length - FRAME[task.kind] - (task.max_question_tokens if task.kind == 'spans' else 0)
    if task.kind == 'spans' and room < task.stride:
        raise BadInput(
            'config.task.stride',
            f'is {task.stride}; a window of {task.sequence_length} positions holds as few as {room} tokens of the text',
            'at most as many, or tokens would be in no window',
            f'--config.task.stride={max(1, room // 2)}'
            if room > 0
            else f'--config.task.sequence_length={task.max_question_tokens + task.stride + 3}',
        )
    if not resolved.init:
        expected = 'a workdir, an export, a Hugging Face directory, or scratch'
        raise BadInput('config.init', 'is empty', expected, '--config.init=models/mine')
    if resolved.init == 'scratch':
        if not resolved.tokenizer.path:
            expected = 'a vocab.txt, tokenizer.json, .model file, or a directory that holds one'
            fix = '--config.tokenizer.path=models/mine'
            raise BadInput('config.tokenizer.path', 'is empty, and scratch brings no tokenizer', expected, fix)
        config.check_model(model)
        if task.sequence_length > model.max_positions:
            raise too_long(task.sequence_length, model.max_positions)
    if resolved.tokenizer.add_tokens:
        raise BadInput('config.tokenizer.add_tokens', 'is set', 'empty: a fine-tune adds no tokens')
    if train.global_batch_size % train.microbatches:
        found = f'is {train.microbatches}, which does not divide train.global_batch_size={train.global_batch_size}'
        raise BadInput('config.train.microbatches', found, f'a divisor of {train.global_batch_size}')
    config.check_exact(batch_of(train))
    config.check_probes(train.probe_every, resolved.probe)
    config.check_mesh(resolved.mesh)


def too_long(sequence_length: int, max_positions: int) -> BadInput:
    """Returns the error for sequences that are longer than the positions of a model."""
    return BadInput(
        'config.task.sequence_length',
        f'is {sequence_length}; the model has {max_positions} positions',
        f'at most {max_positions}',
        f'--config.task.sequence_length={max_positions}: longer texts are cut, or split into windows',
    )


def validation_sources(task: Task) -> tuple[str, ...]:
    """Returns the sources of `task.validation`."""
    return (task.validation,) if isinstance(task.validation, str) else task.validation


def num_outputs(kind: str, num_labels: int) -> int:
    """Returns the number of outputs of the head for a kind of task; num_labels: names of classes or tags."""
    return 1 if kind in SCORES else 2 if kind == 'spans' else num_labels


def num_steps(train: Train, num_rows: int) -> int:
    """Returns the number of steps of a run; the last epoch ends with its last full batch."""
    return max(1, int(train.epochs * num_rows / train.global_batch_size))


def batch_of(train: Train) -> config.Train:
    """Returns batch size and reduction of a fine-tune as settings of pretraining."""
    return config.Train(
        global_batch_size=train.global_batch_size,
        microbatches=train.microbatches,
        reduction=train.reduction,
        exact_shards=train.exact_shards,
    )


def optimizer_of(optimizer: Optimizer, steps: int) -> config.Optimizer:
    """Returns the optimizer settings of a run with this number of steps."""
    values = dataclasses.asdict(optimizer)
    warmup_steps = int(values.pop('warmup_fraction') * steps)
    return config.Optimizer(**values, warmup_steps=warmup_steps)
