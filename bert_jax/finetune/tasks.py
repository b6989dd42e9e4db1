"""Reads, checks and encodes the files of a task."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

from bert_jax.config.finetuning import METRICS, FinetuneConfig, Task, Train, num_outputs, validation_sources
from bert_jax.console import say
from bert_jax.errors import BadInput
from bert_jax.files import json_digest
from bert_jax.finetune.embedding_task import PairSplit, TrainingPairs, metric_names, read_held_out, read_training
from bert_jax.finetune.ranking import read_ranking
from bert_jax.finetune.rows import Rows
from bert_jax.finetune.spans import NoAnswerSplit, read_spans
from bert_jax.finetune.splits import Split, sample_examples
from bert_jax.finetune.tags import read_tags
from bert_jax.finetune.texts import read_texts
from bert_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class TaskData:
    """The data of a fine-tune, for training and evaluation.

    Attributes:
      labels: names of the outputs by id; empty for scores, spans and embeddings.
      num_outputs: C; for embeddings the size of a vector.
      validation: splits by name; the first tunes thresholds.  predict: the unlabelled split, if any.
      metrics: names of metrics; the first is the main one.
      learns_no_answer: whether the model learns that a question may have no answer.
      content_hash: hash of all rows, labels and targets; independent of paths.
    """

    labels: tuple[str, ...]
    num_outputs: int
    train: Rows | TrainingPairs
    validation: dict[str, Split]
    predict: Split | None
    metrics: tuple[str, ...]
    content_hash: str
    learns_no_answer: bool = False


def read_data(config: FinetuneConfig, tokenizer: Tokenizer) -> TaskData:
    """Reads all files of a fine-tune, whose config has the architecture of the initial model.

    Raises:
      BadInput: see the readers. Nothing has been written then.
    """
    task = config.task
    if task.kind != 'embedding':
        return read_task(task, config.train, tokenizer)
    if task.predict:
        fix = 'bert-jax embed --model=WORKDIR --input=FILE'
        raise BadInput('config.task.predict', f'is {task.predict!r}', "'' with kind=embedding", fix)
    training = read_training(config, tokenizer)
    validation: dict[str, Split] = {
        split_name(source): read_held_out(source, config, tokenizer) for source in _validation_sources(task)
    }
    for name, split in validation.items():
        _report(name, split)
    contents = [training.content_hash(), *(split.content() for split in validation.values())]
    names, size = metric_names(task), config.model.hidden_size
    return TaskData((), size, training, validation, None, names, json_digest(contents))


def _validation_sources(task: Task) -> tuple[str, ...]:
    sources = validation_sources(task)
    if len({*map(split_name, sources)}) < len(sources):
        raise BadInput(
            'config.task.validation',
            f'is {sources!r}',
            'files with different names, which become the names of the splits',
        )
    return sources


def read_task(task: Task, train: Train, tokenizer: Tokenizer) -> TaskData:
    """Reads all files of a task.

    Raises:
      BadInput: see the readers. Nothing has been written then.
    """
    assert isinstance(task.train, str)  # see `config.finetuning.resolve`
    if task.kind == 'spans':
        training = read_spans(task.train, task, tokenizer, is_training=True)
        labels: tuple[str, ...] = ()
        settings = {'task': task, 'tokenizer': tokenizer, 'learns_no_answer': isinstance(training, NoAnswerSplit)}
        read_split: Callable[..., Split] = functools.partial(read_spans, **settings)
    else:
        read_kind = {'tagging': read_tags, 'ranking': read_ranking}.get(task.kind, read_texts)
        training = read_kind(task.train, task, tokenizer, None)
        labels = getattr(training, 'labels', ())
        read_split = functools.partial(read_kind, task=task, tokenizer=tokenizer, labels=labels)
    sources = _validation_sources(task)
    if task.kind == 'classification' and len(labels) < 2:
        raise BadInput(task.train, f'has only the label {", ".join(labels)}', 'at least two labels')
    if 'f1' in task.metrics and task.kind == 'classification' and len(labels) != 2:
        raise BadInput(
            'config.task.metrics', f'names f1, but there are {len(labels)} labels', 'two labels, or macro_f1'
        )
    validation: dict[str, Split] = {split_name(source): read_split(source) for source in sources}
    predict = read_split(task.predict, is_labelled=False) if task.predict else None
    _report('training', training)
    for name, split in validation.items():
        _report(name, split)
    if predict:
        _report(split_name(task.predict), predict)
    rows = sample_examples(training.rows, training.example_indices, train.max_examples)
    contents = [rows.content_hash(), labels, *(split.content() for split in validation.values())]
    metrics = task.metrics or METRICS[task.kind][:1]
    learns_no_answer = isinstance(training, NoAnswerSplit)
    outputs, digest = num_outputs(task.kind, len(labels)), json_digest(contents)
    return TaskData(labels, outputs, rows, validation, predict, metrics, digest, learns_no_answer)


def split_name(source: str) -> str:
    """Returns `dev_matched` for `tsv:data/dev_matched.tsv.gz`; for TFDS, the name of the split."""
    format_name, _, path = source.partition(':')
    if format_name == 'tfds':
        return path.rpartition(':')[2].replace('/', '-')
    return Path(path).name.partition('.')[0] or format_name  # the corpus in `task.directory` itself is `corpus:.`


def _report(name: str, split: Split) -> None:
    events = [f'{count:,} x {what}' for what, count in sorted(split.counts.items()) if count]
    is_split = len(split.rows) != split.num_examples and not isinstance(split, PairSplit)
    windows = f' in {len(split.rows):,} windows' if is_split else ''
    say(f'{name}: {split.num_examples:,} examples{windows}' + (f'; {"; ".join(events)}' if events else ''))
