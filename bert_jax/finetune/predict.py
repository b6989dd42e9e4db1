"""Predicts classes, numbers, tags or answers with a fine-tuned model.

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

from bert_jax.config.finetuning import SCORES, Task
from bert_jax.data.labelled import Record
from bert_jax.errors import BadInput
from bert_jax.finetune.heads import TaskModel
from bert_jax.finetune.rows import TaskBatch
from bert_jax.finetune.spans import Question, encode_questions
from bert_jax.finetune.splits import sigmoid, softmax
from bert_jax.finetune.tags import encode_words, read_words, within_sentence
from bert_jax.finetune.texts import encode_texts
from bert_jax.finetune.windows import Span, Window, null_score, rank_spans
from bert_jax.pretrained.load import Pretrained, batches_by_length
from bert_jax.text.sources.lines import batched

EXAMPLES_AT_ONCE = 256  # examples encoded and run together


class _Row(NamedTuple):
    """A row of an example.

    example_index: in its chunk.  ids: [CLS] … [SEP].  second_start: where the second text begins.
    layout: first tokens of words (tagging) or a `Window` (spans), to interpret the outputs.
    """

    example_index: int
    ids: list[int]
    second_start: int
    layout: Any = None


@dataclasses.dataclass(frozen=True)
class FineTuned(Pretrained):
    """A fine-tuned model in float32, without dropout. `encode` returns its encoder's vectors; it cannot fill masks.

    Attributes:
      labels: names of its outputs; empty for scores and spans.
      task: its kind, column names and length limits.
      takes_pairs: whether it takes pairs of texts; None if unknown, for a third-party model.
      null_threshold: predict 'no answer' when its score exceeds that of the best span by more than this; None for a
        model that always answers.
    """

    model: TaskModel  # ty: ignore[incompatible-attribute-override]  a Pretrained uses only its encoder
    labels: tuple[str, ...] = ()
    task: Task = Task()
    takes_pairs: bool | None = None
    null_threshold: float | None = None

    def predict(self, examples: list[Any]) -> list[dict[str, Any]]:
        """Predicts each example.

        Args:
          examples: texts; (text, text) pairs; texts or lists of words to tag; or (question, context) pairs.

        Returns:
          {label, score, scores: {label: probability}}; {score}; {tags: [{word, tag, score}]}; or
          {answer, score, start, end}, where the answer is characters [start, end) of the context. A model trained on
          questions without an answer adds {null_odds}, and may return the answer '' with start and end None.

        Raises:
          BadInput: names the index of an example of another form.
        """
        if isinstance(examples, str):
            raise BadInput('examples', 'is one string', 'a list of examples')
        columns = columns_of(self).names
        records = [_as_record(index, example, columns) for index, example in enumerate(examples)]
        return [result for _, result in predict_stream(self, records, Counter())]

    def predict_records(self, records: list[Record], counts: Counter) -> list[dict[str, Any]]:
        """Predicts each record, like `predict`; rows of similar length run together.

        Args:
          records: with the fields that `columns_of` names.  counts: {event: count}; updated for texts cut or split.

        Raises:
          BadInput: names a record that lacks a column or has a value of the wrong type in it.
        """
        rows = self._checked_rows(records, counts)
        outputs = self._outputs(rows)
        rows_of_example: list[list[int]] = [[] for _ in records]
        for row_index, row in enumerate(rows):
            rows_of_example[row.example_index].append(row_index)
        return [
            self._result(record, [rows[i] for i in indices], [outputs[i] for i in indices])
            for record, indices in zip(records, rows_of_example, strict=True)
        ]

    def logits(self, records: list[Record], counts: Counter) -> np.ndarray:
        """Returns float32 [N], the logits of a model whose output is one number; see `predict_records`."""
        rows = self._checked_rows(records, counts)
        found = np.zeros(len(records), np.float32)
        for row, output in zip(rows, self._outputs(rows), strict=True):
            found[row.example_index] = output[0]
        return found

    def _checked_rows(self, records: list[Record], counts: Counter) -> list[_Row]:
        _check_columns(records, columns_of(self))
        return list(self._rows(records, counts))

    def _outputs(self, rows: list[_Row]) -> list[np.ndarray]:
        """Runs rows of similar length together; returns the outputs of each."""
        outputs: list[np.ndarray] = [np.zeros(0)] * len(rows)
        graph, params = self._parts
        lengths = [len(row.ids) for row in rows]
        for batch, num_rows, length in batches_by_length(lengths, self.config.max_positions):
            ids = np.full((num_rows, length), self.tokenizer.pad_id, np.int32)
            types, present = np.zeros_like(ids), np.zeros_like(ids)
            for slot, row_index in enumerate(batch):
                row = rows[row_index]
                ids[slot, : len(row.ids)], present[slot, : len(row.ids)] = row.ids, 1
                types[slot, row.second_start : len(row.ids)] = 1
            batch_outputs = np.asarray(forward(graph, params, ids, types, present), np.float32)
            for slot, row_index in enumerate(batch):
                outputs[row_index] = batch_outputs[slot]
        return outputs

    def _rows(self, records: list[Record], counts: Counter) -> Iterator[_Row]:
        task, tokenizer = self.task, self.tokenizer
        if task.kind == 'tagging':
            for index, record in enumerate(records):
                texts = within_sentence(read_words(record, task), tokenizer)
                words = [ids or [tokenizer.unk_id] for ids in tokenizer.encode_batch(texts)]
                for ids, word_starts in encode_words(words, task, tokenizer, counts):
                    yield _Row(index, ids, len(ids), word_starts)
        elif task.kind == 'spans':
            questions = [
                Question(record.where, '', record.fields['question'], record.fields['context'], ())
                for record in records
            ]
            for row in encode_questions(questions, task, tokenizer, counts, is_training=False):
                yield _Row(row.question_index, row.ids, row.window.text_start, row.window)
        else:
            second = ''.join(columns_of(self).names[1:])
            is_pair = [bool(second) and record.fields.get(second) is not None for record in records]
            for text_pair in {second, ''}:  # single texts and pairs may alternate
                indices = [index for index, has_second in enumerate(is_pair) if has_second == bool(text_pair)]
                group, group_task = [records[i] for i in indices], dataclasses.replace(task, text_pair=text_pair)
                encoded = encode_texts(group, group_task, tokenizer, counts)
                for index, (ids, second_start) in zip(indices, encoded, strict=True):
                    yield _Row(index, ids, second_start)

    def _result(self, record: Record, rows: list[_Row], outputs: list[np.ndarray]) -> dict[str, Any]:
        kind = self.task.kind
        if kind in SCORES:
            return {'score': _rounded(sigmoid(outputs[0][0]) if kind == 'ranking' else outputs[0][0])}
        if kind == 'classification':
            probabilities = softmax(outputs[0])
            scores = {label: _rounded(value) for label, value in zip(self.labels, probabilities, strict=True)}
            best = self.labels[int(probabilities.argmax())]
            return {'label': best, 'score': scores[best], 'scores': scores}
        if kind == 'tagging':
            word_logits = [logits[row.layout] for row, logits in zip(rows, outputs, strict=True)]
            probabilities = softmax(np.concatenate(word_logits)) if word_logits else np.zeros((0, len(self.labels)))
            tags = [
                {'word': word, 'tag': self.labels[int(each.argmax())], 'score': _rounded(each.max())}
                for word, each in zip(read_words(record, self.task), probabilities, strict=True)
            ]
            return {'tags': tags}
        return self._answer(record.fields['context'], [row.layout for row in rows], outputs)

    def _answer(self, context: str, windows: list[Window], outputs: list[np.ndarray]) -> dict[str, Any]:
        limits = {'n_best': self.task.n_best, 'max_tokens': self.task.max_answer_tokens}
        spans = rank_spans(context, windows, outputs, **limits)
        no_answer = Span('', null_score(outputs), None, None)
        if self.null_threshold is None:
            candidates = spans or [no_answer]
            return _as_json(candidates, candidates[0])
        odds = no_answer.score - spans[0].score if spans else no_answer.score
        answer = no_answer if not spans or odds > self.null_threshold else spans[0]
        return _as_json([*spans, no_answer], answer) | {'null_odds': _rounded(odds)}


class Columns(NamedTuple):
    """Column names of an example, of which the first `num_needed` are required."""

    names: tuple[str, ...]
    num_needed: int


_QUESTION_COLUMNS = ('question', 'context')


def columns_of(trained: FineTuned) -> Columns:
    """Returns the columns of the examples that a model takes."""
    task = trained.task
    if task.kind == 'spans':
        return Columns(_QUESTION_COLUMNS, 2)
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
                fix = '' if needed == _QUESTION_COLUMNS else '--text=COLUMN and --text_pair=COLUMN'
                found, expected = f'has no {name!r}; it has {present or "nothing"}', ' and '.join(map(repr, needed))
                raise BadInput(record.where, found, expected, fix)
            if name in _QUESTION_COLUMNS and columns.names == _QUESTION_COLUMNS and not isinstance(value, str):
                raise BadInput(record.where, f'{name!r} is of type {type(value).__name__}', 'text')


def _as_record(index: int, example: Any, columns: tuple[str, ...]) -> Record:
    where = f'example {index}'
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
    """Yields (record, prediction) in order; at most `EXAMPLES_AT_ONCE` records are in memory at once."""
    for chunk in batched(records, EXAMPLES_AT_ONCE):
        yield from zip(chunk, trained.predict_records(chunk, counts), strict=True)


def _as_json(candidates: list[Span], answer: Span) -> dict[str, Any]:
    probability = softmax(np.array([span.score for span in candidates]))[candidates.index(answer)]
    return {'answer': answer.text, 'score': _rounded(probability), 'start': answer.start, 'end': answer.end}


def _rounded(value: Any) -> float:
    return round(float(value), 6)


@functools.partial(jax.jit, static_argnums=0)
def forward(graph: nnx.GraphDef, params: nnx.State, ids: jax.Array, types: jax.Array, present: jax.Array) -> jax.Array:
    """Runs the model on [B, L] ids, token types and mask (1 for tokens); returns [B, C] (pooled) or [B, L, C]."""
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    cls_positions, unused = jnp.zeros((len(ids), 1), jnp.int32), jnp.zeros(len(ids))
    batch = TaskBatch(ids, types, present, positions, cls_positions, unused, unused)
    model = nnx.merge(graph, params)
    return model(batch)[:, 0] if model.is_pooled else model(batch)
