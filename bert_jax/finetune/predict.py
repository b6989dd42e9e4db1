"""A fine-tuned model at work: from texts, pairs, sentences of words or questions to classes, numbers, tags or answers.

`B` rows, `L` positions, `C` outputs.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bert_jax.config.finetuning import Task
from bert_jax.data.labelled import Record
from bert_jax.errors import BadInput
from bert_jax.finetune.evaluator import model_outputs
from bert_jax.finetune.heads import BertForTask
from bert_jax.finetune.rows import TaskBatch
from bert_jax.finetune.spans import Question, encode_questions
from bert_jax.finetune.splits import softmax
from bert_jax.finetune.tags import encode_words, words_of
from bert_jax.finetune.texts import encode_texts
from bert_jax.finetune.windows import Span, Window, null_score, ranked_spans
from bert_jax.pretrained.load import Pretrained, batches_by_length
from bert_jax.text.lines import batched

EXAMPLES_AT_ONCE = 256  # encoded and run together


class _Row(NamedTuple):
    """A row of an example: ids [CLS] … [SEP], where the second text begins, and what is needed to read the outputs."""

    example: int
    ids: list[int]
    second: int
    about: Any = None


@dataclasses.dataclass(frozen=True)
class FineTuned(Pretrained):
    """A fine-tuned model, float32, no dropout; `encode` gives the vectors of its encoder, and it fills no masks.

    Attributes:
      labels: the names of its outputs; none for numbers and spans.
      task: its kind, the names of its columns, and how texts are cut.
      takes_pairs: whether its texts are pairs; None for a model from elsewhere, which does not say.
      null_threshold: a question has no answer where the score of none exceeds that of the best span by more; None for a
        model that always answers.
    """

    model: BertForTask  # ty: ignore[incompatible-attribute-override]  as a Pretrained it is used for its encoder alone
    labels: tuple[str, ...] = ()
    task: Task = Task()
    takes_pairs: bool | None = None
    null_threshold: float | None = None

    def predict(self, examples: list[Any]) -> list[dict[str, Any]]:
        """What the model says of each example.

        Args:
          examples: texts; (text, text) for pairs; texts or lists of words to tag; (question, text) for answers.

        Returns:
          {label, score, scores: {label: probability}}; {score}; {tags: [{word, tag, score}]}; or
          {answer, score, start, end}, with characters [start, end) of the text, and for a model that has learned that a
          question may have no answer {null_odds}: then the answer may be '', without start and end.

        Raises:
          BadInput: naming the number of an example that is something else.
        """
        if isinstance(examples, str):
            raise BadInput('examples', 'is one string', 'a list of examples')
        columns = columns_of(self).names
        records = [_as_record(number, example, columns) for number, example in enumerate(examples)]
        return [result for _, result in predict_stream(self, records, Counter())]

    def predict_records(self, records: list[Record], counts: Counter) -> list[dict[str, Any]]:
        """What the model says of each of some records, as `predict` returns it; rows of similar length run together.

        Args:
          records: their fields are named by `columns_of`.  counts: {what: how often} texts were cut or split.

        Raises:
          BadInput: naming a record without a column, or with something else in it.
        """
        _check_columns(records, columns_of(self))
        rows = list(self._rows(records, counts))
        outputs: list[np.ndarray] = [np.zeros(0)] * len(rows)
        graph, params = self._parts
        lengths = [len(row.ids) for row in rows]
        for some, num_rows, length in batches_by_length(lengths, self.config.max_positions):
            ids = np.full((num_rows, length), self.tokenizer.pad_id, np.int32)
            types, present = np.zeros_like(ids), np.zeros_like(ids)
            for slot, number in enumerate(some):
                row = rows[number]
                ids[slot, : len(row.ids)], present[slot, : len(row.ids)] = row.ids, 1
                types[slot, row.second : len(row.ids)] = 1
            found = np.asarray(forward(graph, params, ids, types, present), np.float32)
            for slot, number in enumerate(some):
                outputs[number] = found[slot]
        of_example: list[list[int]] = [[] for _ in records]
        for number, row in enumerate(rows):
            of_example[row.example].append(number)
        return [
            self._result(record, [rows[n] for n in numbers], [outputs[n] for n in numbers])
            for record, numbers in zip(records, of_example, strict=True)
        ]

    def _rows(self, records: list[Record], counts: Counter) -> Iterator[_Row]:
        task, tokenizer = self.task, self.tokenizer
        if task.kind == 'tagging':
            for number, record in enumerate(records):
                words = words_of(record, task)
                pieces = [ids or [tokenizer.unk_id] for ids in tokenizer.encode_batch(words)]
                for ids, places in encode_words(pieces, task, tokenizer, counts):
                    yield _Row(number, ids, len(ids), places)
        elif task.kind == 'spans':
            questions = [
                Question(record.where, '', record.fields['question'], record.fields['context'], ())
                for record in records
            ]
            for row in encode_questions(questions, task, tokenizer, counts, is_training=False):
                yield _Row(row.question, row.ids, row.window.place, row.window)
        else:
            second = ''.join(columns_of(self).names[1:])
            is_pair = [bool(second) and record.fields.get(second) is not None for record in records]
            for text_pair in {second, ''}:  # singles and pairs may alternate
                numbers = [number for number, has_second in enumerate(is_pair) if has_second == bool(text_pair)]
                some, alike = [records[number] for number in numbers], dataclasses.replace(task, text_pair=text_pair)
                for number, (ids, boundary) in zip(numbers, encode_texts(some, alike, tokenizer, counts), strict=True):
                    yield _Row(number, ids, boundary)

    def _result(self, record: Record, rows: list[_Row], outputs: list[np.ndarray]) -> dict[str, Any]:
        kind = self.task.kind
        if kind == 'regression':
            return {'score': round(float(outputs[0][0]), 6)}
        if kind == 'classification':
            probabilities = softmax(outputs[0])
            scores = {label: _rounded(value) for label, value in zip(self.labels, probabilities, strict=True)}
            best = self.labels[int(probabilities.argmax())]
            return {'label': best, 'score': scores[best], 'scores': scores}
        if kind == 'tagging':
            logits = [logits[row.about] for row, logits in zip(rows, outputs, strict=True)]
            probabilities = softmax(np.concatenate(logits)) if logits else np.zeros((0, len(self.labels)))
            tags = [
                {'word': word, 'tag': self.labels[int(each.argmax())], 'score': _rounded(each.max())}
                for word, each in zip(words_of(record, self.task), probabilities, strict=True)
            ]
            return {'tags': tags}
        return self._answer(record.fields['context'], [row.about for row in rows], outputs)

    def _answer(self, context: str, windows: list[Window], outputs: list[np.ndarray]) -> dict[str, Any]:
        limits = {'n_best': self.task.n_best, 'max_tokens': self.task.max_answer_tokens}
        spans = ranked_spans(context, windows, outputs, **limits)
        nothing = Span('', null_score(outputs), None, None)
        if self.null_threshold is None:
            candidates = spans or [nothing]
            return _as_json(candidates, candidates[0])
        odds = nothing.score - spans[0].score if spans else nothing.score
        chosen = nothing if not spans or odds > self.null_threshold else spans[0]
        return _as_json([*spans, nothing], chosen) | {'null_odds': _rounded(odds)}


class Columns(NamedTuple):
    """The names of the columns of an example; it must have the first `num_needed` of them."""

    names: tuple[str, ...]
    num_needed: int


_OF_A_QUESTION = ('question', 'context')


def columns_of(trained: FineTuned) -> Columns:
    """The columns of the examples that a model takes."""
    task = trained.task
    if task.kind == 'spans':
        return Columns(_OF_A_QUESTION, 2)
    if task.kind == 'tagging' or trained.takes_pairs is False:
        return Columns((task.text,), 1)
    return Columns((task.text, task.text_pair or 'text_pair'), 1 if trained.takes_pairs is None else 2)


def _check_columns(records: Iterable[Record], columns: Columns) -> None:
    needed = columns.names[: columns.num_needed]
    for record in records:
        for name in needed:
            value = record.fields.get(name)
            if value is None:
                present = ', '.join(repr(key) for key, value in record.fields.items() if value is not None)
                fix = '' if needed == _OF_A_QUESTION else '--text=COLUMN and --text_pair=COLUMN'
                found, expected = f'has no {name!r}; it has {present or "nothing"}', ' and '.join(map(repr, needed))
                raise BadInput(record.where, found, expected, fix)
            if name in _OF_A_QUESTION and columns.names == _OF_A_QUESTION and not isinstance(value, str):
                raise BadInput(record.where, f'{name!r} is of type {type(value).__name__}', 'text')


def _as_record(number: int, example: Any, columns: tuple[str, ...]) -> Record:
    where = f'example {number}'
    if isinstance(example, str) or (len(columns) == 1 and isinstance(example, list)):
        return Record(where, {columns[0]: example})
    if isinstance(example, list | tuple) and len(example) == len(columns):
        return Record(where, dict(zip(columns, example, strict=True)))
    if isinstance(example, dict):
        return Record(where, example)
    found = f'has {len(example)} texts' if isinstance(example, tuple) else f'is of type {type(example).__name__}'
    raise BadInput(where, found, f'text, or a pair of texts: {" and ".join(columns)}')


def predict_stream(
    trained: FineTuned, records: Iterable[Record], counts: Counter
) -> Iterator[tuple[Record, dict[str, Any]]]:
    """(record, what the model says of it) of any number of records, in their order; some hundreds are held at once."""
    for some in batched(records, EXAMPLES_AT_ONCE):
        yield from zip(some, trained.predict_records(some, counts), strict=True)


def _as_json(candidates: list[Span], chosen: Span) -> dict[str, Any]:
    probability = softmax(np.array([span.score for span in candidates]))[candidates.index(chosen)]
    return {'answer': chosen.text, 'score': _rounded(probability), 'start': chosen.start, 'end': chosen.end}


def _rounded(value: Any) -> float:
    return round(float(value), 6)


@functools.partial(jax.jit, static_argnums=0)
def forward(graph: nnx.GraphDef, params: nnx.State, ids: jax.Array, types: jax.Array, present: jax.Array) -> jax.Array:
    """[B, L] ids, token types, and 1 where there is a token -> [B, C] (pooled) or [B, L, C]."""
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    first, nothing = jnp.zeros((len(ids), 1), jnp.int32), jnp.zeros(len(ids))
    batch = TaskBatch(ids, types, present, positions, first, nothing, nothing)
    return model_outputs(nnx.merge(graph, params), batch, None)
