"""Question answering by spans of a context, in the format of SQuAD.

A context is split into windows, [CLS] question [SEP] tokens [SEP], that start `task.stride` tokens apart (Devlin et al.
2019; `run_squad.py`). In training, a window that contains the whole answer is labelled with it; other windows are
labelled with [CLS]. In prediction, an answer may start at a token only in the window that gives it most context.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from bert_jax.config.finetuning import Task
from bert_jax.data.labelled import Record, RecordReader
from bert_jax.errors import BadInput
from bert_jax.finetune import answers
from bert_jax.finetune.rows import make_rows
from bert_jax.finetune.splits import Split
from bert_jax.finetune.windows import (
    Span,
    Window,
    cut_windows,
    null_score,
    rank_spans,
    token_span,
    with_probabilities,
)
from bert_jax.text.tokenizer import Tokenizer

_CHUNK_SIZE = 256  # questions encoded together
_COLUMNS = ('id', 'question', 'context')


@dataclasses.dataclass(frozen=True)
class Question:
    """A question as read from a file; answers: (text, first character), empty if the file has none."""

    where: str
    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]


@dataclasses.dataclass(frozen=True)
class SpanSplit(Split):
    """Questions; `gold` holds the texts of their answers, predictions are n-best lists of (text, probability)."""

    questions: list[Question]
    windows: list[Window]
    task: Task

    def predictions(self, outputs: np.ndarray) -> list[Any]:
        return [with_probabilities(spans) for spans, _ in self._rank_spans(outputs)]

    def _rank_spans(self, outputs: np.ndarray) -> Iterator[tuple[list[Span], float]]:
        """Yields (best spans, score of 'no answer') for each question."""
        rows_of_question: list[list[int]] = [[] for _ in self.questions]
        for row, example_index in enumerate(self.example_indices):
            rows_of_question[example_index].append(row)
        limits = {'n_best': self.task.n_best, 'max_tokens': self.task.max_answer_tokens}
        for question, rows in zip(self.questions, rows_of_question, strict=True):
            window_outputs = [outputs[row] for row in rows]
            spans = rank_spans(question.context, [self.windows[row] for row in rows], window_outputs, **limits)
            yield spans, null_score(window_outputs)

    def metrics(self, names: Iterable[str], predictions: list[Any]) -> dict[str, float]:
        score = {'exact_match': answers.exact_match, 'f1': answers.f1}
        best = [candidates[0][0] if candidates else '' for candidates in predictions]
        return {
            name: float(np.mean([score[name](answer, gold) for answer, gold in zip(best, self.gold, strict=True)]))
            for name in names
        }

    def files(self, predictions: list[Any]) -> dict[str, str]:
        """Returns {id: answer} for the official scorer, and the n-best lists. They contain text of the examples."""
        ids = [question.id for question in self.questions]
        best = {name: spans[0][0] if spans else '' for name, spans in zip(ids, predictions, strict=True)}
        nbest = {
            name: [{'text': text, 'probability': round(probability, 6)} for text, probability in spans]
            for name, spans in zip(ids, predictions, strict=True)
        }
        return {
            '.json': json.dumps(best, ensure_ascii=False, indent=1) + '\n',
            '-nbest.json': json.dumps(nbest, ensure_ascii=False, indent=1) + '\n',
        }


class AnswerPrediction(NamedTuple):
    """The prediction for a question that may have no answer.

    best_span: text of the best span.  candidates: (text, probability), best first; '' is 'no answer'.
    null_odds: the score of 'no answer' minus that of the best span; above the threshold, the answer is ''.
    """

    best_span: str
    candidates: list[tuple[str, float]]
    null_odds: float
    threshold: float = 0.0

    @property
    def answer(self) -> str:
        """The predicted answer; '' for 'no answer'."""
        return '' if self.null_odds > self.threshold else self.best_span


@dataclasses.dataclass(frozen=True)
class NoAnswerSplit(SpanSplit):
    """Questions that may have no answer (Rajpurkar et al. 2018, SQuAD 2.0); predictions are `AnswerPrediction`."""

    def predictions(self, outputs: np.ndarray) -> list[Any]:
        predictions = []
        for spans, null in self._rank_spans(outputs):
            candidates = sorted([*spans, Span('', null, None, None)], key=lambda span: -span.score)
            best, score = (spans[0].text, spans[0].score) if spans else ('', 0.0)
            predictions.append(AnswerPrediction(best, with_probabilities(candidates), null - score))
        return predictions

    def metrics(self, names: Iterable[str], predictions: list[Any]) -> dict[str, float]:
        """Returns all metrics of the official scorer, the named ones first; thresholds are scores, not fractions."""
        best, odds = [each.best_span for each in predictions], [each.null_odds for each in predictions]
        metrics = answers.score_with_no_answer(best, odds, self.gold)
        named = ['exact' if name == 'exact_match' else name for name in names]
        return {name: metrics[name] for name in dict.fromkeys([*named, *metrics])}

    def apply_threshold(self, predictions: list[Any], metrics: dict[str, float]) -> list[Any]:
        """Sets the threshold to the one with the best F1 on the first validation file."""
        return [prediction._replace(threshold=metrics['best_f1_thresh']) for prediction in predictions]

    def files(self, predictions: list[Any]) -> dict[str, str]:
        """Adds the odds of 'no answer', from which the official scorer computes its thresholds."""
        files = super().files([prediction.candidates for prediction in predictions])
        ids = [question.id for question in self.questions]
        by_suffix = {
            '.json': {name: prediction.answer for name, prediction in zip(ids, predictions, strict=True)},
            '-null_odds.json': {name: prediction.null_odds for name, prediction in zip(ids, predictions, strict=True)},
        }
        return files | {
            suffix: json.dumps(content, ensure_ascii=False, indent=1) + '\n' for suffix, content in by_suffix.items()
        }


def read_spans(
    source: str,
    task: Task,
    tokenizer: Tokenizer,
    *,
    is_labelled: bool = True,
    is_training: bool = False,
    learns_no_answer: bool | None = None,
) -> SpanSplit:
    """Reads and encodes a file of questions.

    Questions without an answer are dropped and counted, unless the model learns that a question may have none. Training
    also drops and counts questions whose answer is not at the stated position in the context. Evaluation only needs the
    texts of the answers.

    Args:
      learns_no_answer: whether the model learns that a question may have no answer. None, in training, follows
        `task.unanswerable`; 'auto' means yes if a record has `is_impossible`, as in SQuAD 2.0.

    Raises:
      BadInput: for a missing column, or if no question remains.
    """
    counts: Counter[str] = Counter()
    reader = RecordReader(source, task, (*_COLUMNS, *(['answers'] if is_labelled else [])))
    records: Iterable[Record] = reader
    if learns_no_answer is None:
        records = list(reader)
        is_squad_2 = task.unanswerable == 'auto' and any('is_impossible' in record.fields for record in records)
        learns_no_answer = is_squad_2 or task.unanswerable == 'learn'
    settings = {'is_labelled': is_labelled, 'is_training': is_training, 'learns_no_answer': learns_no_answer}
    questions = list(_select_questions(records, counts, **settings))
    counts.update(reader.counts)
    if not questions:
        dropped = '; '.join(f'{count:,} x {event}' for event, count in sorted(counts.items()) if count) or 'it is empty'
        raise BadInput(source, f'has no usable question ({dropped})', 'questions whose answers are in their contexts')
    rows = list(encode_questions(questions, task, tokenizer, counts, is_training=is_training))
    split_class = NoAnswerSplit if learns_no_answer else SpanSplit
    return split_class(
        rows=make_rows(
            [row.ids for row in rows],
            [row.window.text_start for row in rows],
            np.array([row.label for row in rows], np.int32),
        ),
        example_indices=np.array([row.question_index for row in rows]),
        counts=+counts,
        gold=[[text for text, _ in question.answers] for question in questions] if is_labelled else [],
        questions=questions,
        windows=[row.window for row in rows],
        task=task,
    )


def _select_questions(
    records: Iterable[Record], counts: Counter, *, is_labelled: bool, is_training: bool, learns_no_answer: bool
) -> Iterator[Question]:
    """Yields the questions to train on or score; in training, each has only its first answer found in the context."""
    for record in records:
        question = _parse_question(record, is_labelled)
        valid = [answer for answer in question.answers if _is_in_context(question.context, answer)]
        if is_labelled and not question.answers:
            if learns_no_answer:
                counts['question without an answer'] += 1
                yield question
            else:
                counts['question without an answer, dropped'] += 1
        elif is_training and not valid:
            counts['answer not in its text, dropped'] += 1
        else:
            counts['answer not in its text'] += is_labelled and not valid
            yield dataclasses.replace(question, answers=(valid[0],)) if is_training else question


class SpanRow(NamedTuple):
    """A row, [CLS] question [SEP] tokens [SEP]; label: first and last token of the answer in it."""

    question_index: int
    ids: list[int]
    label: list[int]
    window: Window


def encode_questions(
    questions: list[Question], task: Task, tokenizer: Tokenizer, counts: Counter, *, is_training: bool
) -> Iterator[SpanRow]:
    """Yields the windows of all questions, in order."""
    for start in range(0, len(questions), _CHUNK_SIZE):
        chunk = questions[start : start + _CHUNK_SIZE]
        encoded = zip(
            chunk,
            tokenizer.encode_batch([question.question for question in chunk]),
            tokenizer.encode_with_offsets([question.context for question in chunk]),
            strict=True,
        )
        for question_index, (question, question_ids, (tokens, offsets)) in enumerate(encoded, start):
            counts['question cut'] += len(question_ids) > task.max_question_tokens
            head = [tokenizer.cls_id, *question_ids[: task.max_question_tokens], tokenizer.sep_id]
            has_answer = is_training and bool(question.answers)
            span = token_span(offsets, *question.answers[0]) if has_answer else None
            num_with_answer = 0
            for window in cut_windows(np.array(offsets).reshape(-1, 2), len(head), task):
                stop = window.first_token + len(window.offsets)
                inside = span is not None and window.first_token <= span[0] and span[1] < stop
                num_with_answer += inside
                label = [index - window.first_token + window.text_start for index in span] if inside else [0, 0]
                yield SpanRow(
                    question_index, [*head, *tokens[window.first_token : stop], tokenizer.sep_id], label, window
                )
            counts['answer in no window as a whole'] += has_answer and not num_with_answer


def _is_in_context(context: str, answer: tuple[str, int]) -> bool:
    text, start = answer
    return bool(text) and start >= 0 and context[start : start + len(text)] == text


def _parse_question(record: Record, is_labelled: bool) -> Question:
    """Parses a record. SQuAD has lists of {text, answer_start}, TFDS and `datasets` a dict of two lists."""
    fields, pairs = record.fields, []
    if is_labelled:
        value = fields['answers']
        try:
            if isinstance(value, dict):
                pairs = list(zip(value['text'], value['answer_start'], strict=True))
            else:
                pairs = [(answer['text'], answer['answer_start']) for answer in value]
            pairs = [(str(text), int(start)) for text, start in pairs]
        except (KeyError, TypeError, ValueError):
            expected = 'a list of {text, answer_start}'
            raise BadInput(record.where, "has 'answers' in another format", expected) from None
    for column in _COLUMNS[1:]:
        if not isinstance(fields[column], str):
            raise BadInput(record.where, f'{column!r} is of type {type(fields[column]).__name__}', 'text')
    return Question(record.where, str(fields['id']), fields['question'], fields['context'], tuple(pairs))
