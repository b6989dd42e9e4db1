"""A task's files -> its splits, checked and encoded."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

from bert_jax.config.finetuning import METRICS, Task, Train
from bert_jax.console import say
from bert_jax.errors import BadInput
from bert_jax.files import json_digest
from bert_jax.finetune.rows import Rows
from bert_jax.finetune.spans import NoAnswerSplit, open_spans
from bert_jax.finetune.splits import Split, choose
from bert_jax.finetune.tags import open_tags
from bert_jax.finetune.texts import open_texts
from bert_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class TaskData:
    """What a fine-tune learns from and is judged by.

    Attributes:
      labels: names of the outputs by id; empty for numbers and spans.  num_outputs: C.
      validation: by name; the first decides.  predict: without labels, if there is such a file.
      metrics: names of the figures; the first is the main one.
      learns_no_answer: whether questions without an answer are learned.
      content_hash: equal hashes give equal rows and equal judgements; nothing in it tells a path.
    """

    labels: tuple[str, ...]
    num_outputs: int
    train: Rows
    validation: dict[str, Split]
    predict: Split | None
    metrics: tuple[str, ...]
    content_hash: str
    learns_no_answer: bool = False


def open_task(task: Task, train: Train, tokenizer: Tokenizer) -> TaskData:
    """Reads all files of a task.

    Raises:
      BadInput: see the readers; nothing has been written then.
    """
    if task.kind == 'spans':
        learnt = open_spans(task.train, task, tokenizer, is_training=True)
        labels: tuple[str, ...] = ()
        chosen = {'task': task, 'tokenizer': tokenizer, 'learns_no_answer': isinstance(learnt, NoAnswerSplit)}
        open_split: Callable[..., Split] = functools.partial(open_spans, **chosen)
    else:
        open_kind = open_tags if task.kind == 'tagging' else open_texts
        learnt = open_kind(task.train, task, tokenizer, None)
        labels = getattr(learnt, 'labels', ())
        open_split = functools.partial(open_kind, task=task, tokenizer=tokenizer, labels=labels)
    sources = (task.validation,) if isinstance(task.validation, str) else task.validation
    if len({*map(split_name, sources)}) < len(sources):
        raise BadInput('config.task.validation', f'is {sources!r}', 'files of different names, which tell them apart')
    if task.kind == 'classification' and len(labels) < 2:
        raise BadInput(task.train, f'has the label {", ".join(labels)} alone', 'two labels at least')
    if 'f1' in task.metrics and task.kind == 'classification' and len(labels) != 2:
        raise BadInput('config.task.metrics', f'names f1, and there are {len(labels)} labels', 'two, or macro_f1')
    validation: dict[str, Split] = {split_name(source): open_split(source) for source in sources}
    predict = open_split(task.predict, is_labelled=False) if task.predict else None
    _tell('training', learnt)
    for name, split in validation.items():
        _tell(name, split)
    if predict:
        _tell(split_name(task.predict), predict)
    rows = choose(learnt.rows, learnt.example, train.max_examples)
    contents = [rows.content_hash(), labels, *(split.content() for split in validation.values())]
    num_outputs = {'regression': 1, 'spans': 2}.get(task.kind, len(labels))
    metrics = task.metrics or METRICS[task.kind][:1]
    learns_no_answer = isinstance(learnt, NoAnswerSplit)
    return TaskData(labels, num_outputs, rows, validation, predict, metrics, json_digest(contents), learns_no_answer)


def split_name(source: str) -> str:
    """`dev_matched` of `tsv:data/dev_matched.tsv.gz`; of TFDS, the split."""
    kind, _, rest = source.partition(':')
    return rest.rpartition(':')[2].replace('/', '-') if kind == 'tfds' else Path(rest).name.partition('.')[0]


def _tell(name: str, split: Split) -> None:
    told = [f'{count:,} x {what}' for what, count in sorted(split.counts.items()) if count]
    rows = f' in {len(split.rows):,} windows' if len(split.rows) != split.num_examples else ''
    say(f'{name}: {split.num_examples:,} examples{rows}' + (f'; {"; ".join(told)}' if told else ''))
