"""Questions answered by a span of a text, in the format of SQuAD.

A text is read through windows, [CLS] question [SEP] tokens [SEP], that start `task.stride` tokens after one another
(Devlin et al. 2019; `run_squad.py`). An answer is learnt in every window that holds the whole of it; in the others, the
label is [CLS]. When answering, a token speaks only in the window in which it has most context on both sides.
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
    ranked_spans,
    token_span,
    with_probabilities,
)
from bert_jax.text.tokenizer import Tokenizer

_AT_ONCE = 256  # questions encoded together
_COLUMNS = ('id', 'question', 'context')


@dataclasses.dataclass(frozen=True)
class Question:
    """A question as its file has it; `answers` are (text, first character), none in a file without."""

    where: str
    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]


@dataclasses.dataclass(frozen=True)
class SpanSplit(Split):
    """Questions; `gold` are the texts of their answers, predictions are n-best lists of (text, probability)."""

    questions: list[Question]
    windows: list[Window]
    task: Task

    def predictions(self, outputs: np.ndarray) -> list[Any]:
        return [with_probabilities(spans) for spans, _ in self._ranked(outputs)]

    def _ranked(self, outputs: np.ndarray) -> Iterator[tuple[list[Span], float]]:
        """(the best spans, the score of 'no answer') of each question."""
        of_question: list[list[int]] = [[] for _ in self.questions]
        for row, example in enumerate(self.example):
            of_question[example].append(row)
        limits = {'n_best': self.task.n_best, 'max_tokens': self.task.max_answer_tokens}
        for question, rows in zip(self.questions, of_question, strict=True):
            of_windows = [outputs[row] for row in rows]
            spans = ranked_spans(question.context, [self.windows[row] for row in rows], of_windows, **limits)
            yield spans, null_score(of_windows)

    def metrics(self, names: Iterable[str], predictions: list[Any]) -> dict[str, float]:
        score = {'exact_match': answers.exact_match, 'f1': answers.f1}
        first = [found[0][0] if found else '' for found in predictions]
        return {
            name: float(np.mean([score[name](one, gold) for one, gold in zip(first, self.gold, strict=True)]))
            for name in names
        }

    def files(self, predictions: list[Any]) -> dict[str, str]:
        """The official scorer's {id: answer}, and all that was considered; answers are text, that is what they are."""
        ids = [question.id for question in self.questions]
        best = {name: found[0][0] if found else '' for name, found in zip(ids, predictions, strict=True)}
        nbest = {
            name: [{'text': text, 'probability': round(probability, 6)} for text, probability in found]
            for name, found in zip(ids, predictions, strict=True)
        }
        return {
            '.json': json.dumps(best, ensure_ascii=False, indent=1) + '\n',
            '-nbest.json': json.dumps(nbest, ensure_ascii=False, indent=1) + '\n',
        }


class Answered(NamedTuple):
    """The prediction for a question that may have no answer.

    best: the text of the best span.  candidates: (text, probability), best first; '' is no answer.
    null_odds: the score of no answer less that of the best span; above the threshold, no answer is given.
    """

    best: str
    candidates: list[tuple[str, float]]
    null_odds: float
    threshold: float = 0.0

    @property
    def text(self) -> str:
        """The answer; '' for none."""
        return '' if self.null_odds > self.threshold else self.best


@dataclasses.dataclass(frozen=True)
class NoAnswerSplit(SpanSplit):
    """Questions that may have no answer (Rajpurkar et al. 2018, SQuAD 2.0); predictions are `Answered`."""

    def predictions(self, outputs: np.ndarray) -> list[Any]:
        found = []
        for spans, null in self._ranked(outputs):
            candidates = sorted([*spans, Span('', null, None, None)], key=lambda span: -span.score)
            best, score = (spans[0].text, spans[0].score) if spans else ('', 0.0)
            found.append(Answered(best, with_probabilities(candidates), null - score))
        return found

    def metrics(self, names: Iterable[str], predictions: list[Any]) -> dict[str, float]:
        """All figures of the official scorer, those that are named first; thresholds are scores, not fractions."""
        texts, odds = [found.best for found in predictions], [found.null_odds for found in predictions]
        found = answers.scores_with_no_answer(texts, odds, self.gold)
        first = ['exact' if name == 'exact_match' else name for name in names]
        return {name: found[name] for name in dict.fromkeys([*first, *found])}

    def decided(self, predictions: list[Any], metrics: dict[str, float]) -> list[Any]:
        """No answer where the odds exceed the threshold of the best F1 on the first validation file."""
        return [found._replace(threshold=metrics['best_f1_thresh']) for found in predictions]

    def files(self, predictions: list[Any]) -> dict[str, str]:
        """As of `SpanSplit`, and the odds of no answer, by which the official scorer finds its thresholds."""
        files = super().files([found.candidates for found in predictions])
        ids = [question.id for question in self.questions]
        by_ending = {
            '.json': {name: found.text for name, found in zip(ids, predictions, strict=True)},
            '-null_odds.json': {name: found.null_odds for name, found in zip(ids, predictions, strict=True)},
        }
        return files | {
            ending: json.dumps(content, ensure_ascii=False, indent=1) + '\n' for ending, content in by_ending.items()
        }


def open_spans(
    source: str,
    task: Task,
    tokenizer: Tokenizer,
    *,
    is_labelled: bool = True,
    is_training: bool = False,
    learns_no_answer: bool | None = None,
) -> SpanSplit:
    """Reads and encodes a file of questions.

    A question without an answer is dropped, unless the model learns that there may be none. In training, one whose
    answer is not in its text where the file says is dropped too. Both are counted. In evaluation the scorer needs the
    texts of the answers only.

    Args:
      learns_no_answer: whether the model learns that a question may have no answer; None, in training, decides by
        `task.unanswerable`: 'auto' does where a record says `is_impossible`, as those of SQuAD 2.0 do.

    Raises:
      BadInput: for a missing column, or when no question is left.
    """
    counts: Counter[str] = Counter()
    reading = RecordReader(source, task, (*_COLUMNS, *(['answers'] if is_labelled else [])))
    records: Iterable[Record] = reading
    if learns_no_answer is None:
        records = list(reading)
        says = task.unanswerable == 'auto' and any('is_impossible' in record.fields for record in records)
        learns_no_answer = says or task.unanswerable == 'learn'
    choice = {'is_labelled': is_labelled, 'is_training': is_training, 'learns_no_answer': learns_no_answer}
    questions = list(_chosen_questions(records, counts, **choice))
    counts.update(reading.counts)
    if not questions:
        raise BadInput(source, f'holds no question to learn or to score ({dict(counts)})', 'answers in their texts')
    rows = list(encode_questions(questions, task, tokenizer, counts, is_training=is_training))
    kind = NoAnswerSplit if learns_no_answer else SpanSplit
    return kind(
        rows=make_rows(
            [row.ids for row in rows],
            [row.window.place for row in rows],
            np.array([row.label for row in rows], np.int32),
        ),
        example=np.array([row.question for row in rows]),
        counts=+counts,
        gold=[[text for text, _ in question.answers] for question in questions] if is_labelled else [],
        questions=questions,
        windows=[row.window for row in rows],
        task=task,
    )


def _chosen_questions(
    records: Iterable[Record], counts: Counter, *, is_labelled: bool, is_training: bool, learns_no_answer: bool
) -> Iterator[Question]:
    """The questions that are learned or scored; of those to learn from, with the first answer that is in the text."""
    for record in records:
        question = _question(record, is_labelled)
        found = [answer for answer in question.answers if _stands_in(question.context, answer)]
        if is_labelled and not question.answers:
            if learns_no_answer:
                counts['question without an answer'] += 1
                yield question
            else:
                counts['question without an answer, dropped'] += 1
        elif is_training and not found:
            counts['answer not in its text, dropped'] += 1
        else:
            counts['answer not in its text'] += is_labelled and not found
            yield dataclasses.replace(question, answers=(found[0],)) if is_training else question


class SpanRow(NamedTuple):
    """A window of a question (its number): [CLS] question [SEP] tokens [SEP], and first and last token in it."""

    question: int
    ids: list[int]
    label: list[int]
    window: Window


def encode_questions(
    questions: list[Question], task: Task, tokenizer: Tokenizer, counts: Counter, *, is_training: bool
) -> Iterator[SpanRow]:
    """The windows of all questions, in their order."""
    for start in range(0, len(questions), _AT_ONCE):
        some = questions[start : start + _AT_ONCE]
        encoded = zip(
            some,
            tokenizer.encode_batch([question.question for question in some]),
            tokenizer.encode_with_offsets([question.context for question in some]),
            strict=True,
        )
        for number, (question, asked, (tokens, offsets)) in enumerate(encoded, start):
            counts['question cut'] += len(asked) > task.max_question_tokens
            head = [tokenizer.cls_id, *asked[: task.max_question_tokens], tokenizer.sep_id]
            has_answer = is_training and bool(question.answers)
            span = token_span(offsets, *question.answers[0]) if has_answer else None
            num_with_answer = 0
            for window in cut_windows(np.array(offsets).reshape(-1, 2), len(head), task):
                stop = window.first + len(window.offsets)
                inside = span is not None and window.first <= span[0] and span[1] < stop
                num_with_answer += inside
                label = [place - window.first + window.place for place in span] if inside else [0, 0]
                yield SpanRow(number, [*head, *tokens[window.first : stop], tokenizer.sep_id], label, window)
            counts['answer in no window as a whole'] += has_answer and not num_with_answer


def _stands_in(context: str, answer: tuple[str, int]) -> bool:
    text, start = answer
    return bool(text) and start >= 0 and context[start : start + len(text)] == text


def _question(record: Record, is_labelled: bool) -> Question:
    """SQuAD's own answers are a list of {text, answer_start}; those of TFDS and `datasets` a dict of two lists."""
    fields, given = record.fields, []
    if is_labelled:
        found = fields['answers']
        try:
            if isinstance(found, dict):
                given = list(zip(found['text'], found['answer_start'], strict=True))
            else:
                given = [(answer['text'], answer['answer_start']) for answer in found]
            given = [(str(text), int(start)) for text, start in given]
        except (KeyError, TypeError, ValueError):
            expected = 'a list of {text, answer_start}'
            raise BadInput(record.where, 'has answers of another form', expected) from None
    for column in _COLUMNS[1:]:
        if not isinstance(fields[column], str):
            raise BadInput(record.where, f'{column!r} is of type {type(fields[column]).__name__}', 'text')
    return Question(record.where, str(fields['id']), fields['question'], fields['context'], tuple(given))
