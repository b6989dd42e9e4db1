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
from bert_jax.data.labelled import Reading, Record
from bert_jax.errors import BadInput
from bert_jax.finetune import answers
from bert_jax.finetune.rows import make_rows
from bert_jax.finetune.splits import Split
from bert_jax.text.tokenizer import Tokenizer

_AT_ONCE = 256  # questions encoded together
_COLUMNS = ('id', 'question', 'context')


class Window(NamedTuple):
    """Where the tokens of a row lie in the text.

    first: the text's token that the window starts with.  place: where in the row it stands.
    offsets: [W, 2] int64, the characters of the text that its W tokens come from.
    has_most_context: [W] bool.
    """

    first: int
    place: int
    offsets: np.ndarray
    has_most_context: np.ndarray


class Span(NamedTuple):
    """An answer: its text, its score, and its characters [start, end) of the text; none of them for no answer."""

    text: str
    score: float
    start: int | None
    end: int | None


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
        of_question: list[list[int]] = [[] for _ in self.questions]
        for row, example in enumerate(self.example):
            of_question[example].append(row)
        return [
            best_answers(
                question.context,
                [self.windows[row] for row in rows],
                [outputs[row] for row in rows],
                n_best=self.task.n_best,
                max_tokens=self.task.max_answer_tokens,
            )
            for question, rows in zip(self.questions, of_question, strict=True)
        ]

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


def open_spans(
    source: str, task: Task, tokenizer: Tokenizer, *, is_labelled: bool = True, is_training: bool = False
) -> SpanSplit:
    """Reads and encodes a file of questions.

    In training, a question without an answer is dropped, and one whose answer does not stand in the text where it says
    it does; both are counted. In evaluation the scorer needs the texts of the answers only.

    Raises:
      BadInput: for a missing column, or when no question is left.
    """
    counts: Counter[str] = Counter()
    questions = list(_read_questions(source, task, counts, is_labelled=is_labelled, is_training=is_training))
    if not questions:
        raise BadInput(source, f'holds no question to learn or to score ({dict(counts)})', 'answers in their texts')
    rows = list(encode_questions(questions, task, tokenizer, counts, is_training=is_training))
    return SpanSplit(
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


def _read_questions(
    source: str, task: Task, counts: Counter, *, is_labelled: bool, is_training: bool
) -> Iterator[Question]:
    """The questions that are learnt or scored; of those to learn from, with the first answer that is in the text."""
    reading = Reading(source, task, (*_COLUMNS, *(['answers'] if is_labelled else [])))
    for record in reading:
        question = _question(record, is_labelled)
        found = [answer for answer in question.answers if _stands_in(question.context, answer)]
        if is_labelled and not question.answers:
            counts['question without an answer, dropped'] += 1
        elif is_training and not found:
            counts['answer not in its text, dropped'] += 1
        else:
            counts['answer not in its text'] += is_labelled and not found
            yield dataclasses.replace(question, answers=(found[0],)) if is_training else question
    counts.update(reading.counts)


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
            span = token_span(offsets, *question.answers[0]) if is_training else None
            num_with_answer = 0
            for window in cut_windows(np.array(offsets).reshape(-1, 2), len(head), task):
                stop = window.first + len(window.offsets)
                inside = span is not None and window.first <= span[0] and span[1] < stop
                num_with_answer += inside
                label = [place - window.first + window.place for place in span] if inside else [0, 0]
                yield SpanRow(number, [*head, *tokens[window.first : stop], tokenizer.sep_id], label, window)
            counts['answer in no window as a whole'] += is_training and not num_with_answer


def cut_windows(offsets: np.ndarray, head: int, task: Task) -> list[Window]:
    """The windows over a text of T tokens ([T, 2] offsets), behind a head of so many tokens."""
    room = task.sequence_length - head - 1
    num_tokens = len(offsets)
    starts = [0]
    while starts[-1] + room < num_tokens:
        starts.append(starts[-1] + task.stride)
    context = np.full((len(starts), num_tokens), -1.0)
    for number, first in enumerate(starts):
        stop = min(first + room, num_tokens)
        place = np.arange(first, stop)
        # As in the original: the lesser of both sides, and a little for the length, to settle ties.
        context[number, first:stop] = np.minimum(place - first, stop - 1 - place) + 0.01 * (stop - first)
    most = context.argmax(axis=0) if num_tokens else np.zeros(0, np.int64)
    return [
        Window(first, head, offsets[first : first + room], most[first : first + room] == number)
        for number, first in enumerate(starts)
    ]


def token_span(offsets: list[tuple[int, int]], answer: str, start: int) -> tuple[int, int] | None:
    """(first, last) of the tokens that an answer's characters touch; None when it touches none."""
    touched = [n for n, (low, high) in enumerate(offsets) if low < start + len(answer) and high > start and high > low]
    return (touched[0], touched[-1]) if touched else None


def best_answers(
    context: str, windows: list[Window], outputs: list[np.ndarray], *, n_best: int, max_tokens: int
) -> list[tuple[str, float]]:
    """(text, probability) of the `ranked_spans` of a text."""
    return with_probabilities(ranked_spans(context, windows, outputs, n_best=n_best, max_tokens=max_tokens))


def with_probabilities(spans: list[Span]) -> list[tuple[str, float]]:
    """(text, probability) of some spans; the probabilities add up to 1."""
    scores = np.array([span.score for span in spans])
    weights = np.exp(scores - scores.max(initial=-np.inf))
    return list(zip([span.text for span in spans], (weights / weights.sum()).tolist(), strict=True))


def null_score(outputs: list[np.ndarray]) -> float:
    """The score of 'no answer' over all windows of a text: the least of those at their [CLS], as in `run_squad.py`."""
    return min(float(logits[0].sum()) for logits in outputs)


def ranked_spans(
    context: str, windows: list[Window], outputs: list[np.ndarray], *, n_best: int, max_tokens: int
) -> list[Span]:
    """The best spans over all windows of a text, each text once, best first.

    Args:
      outputs: of each window, [L, 2] logits of first and last token.
      n_best: firsts and lasts looked at in a window, and answers kept.  max_tokens: of an answer.
    """
    found: list[tuple[float, int, int]] = []
    for window, logits in zip(windows, outputs, strict=True):
        inside = logits[window.place : window.place + len(window.offsets)]
        firsts = np.argsort(-np.where(window.has_most_context, inside[:, 0], -np.inf), kind='stable')[:n_best]
        lasts = np.argsort(-inside[:, 1], kind='stable')[:n_best]
        for first in firsts[window.has_most_context[firsts]]:
            for last in lasts[(lasts >= first) & (lasts < first + max_tokens)]:
                score = float(inside[first, 0] + inside[last, 1])
                found.append((score, int(window.offsets[first, 0]), int(window.offsets[last, 1])))
    found.sort(key=lambda candidate: (-candidate[0], candidate[1:]))
    spans: dict[str, Span] = {}
    for score, low, high in found:
        text = context[low:high].strip()
        if text and text not in spans:
            start = low + context[low:high].index(text)
            spans[text] = Span(text, score, start, start + len(text))
            if len(spans) == n_best:
                break
    return list(spans.values())


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
