"""Windows over a text, and the spans of the text that answer a question best."""

from typing import NamedTuple

import numpy as np

from bert_jax.config.finetuning import Task
from bert_jax.finetune.splits import softmax


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


def cut_windows(offsets: np.ndarray, head: int, task: Task) -> list[Window]:
    """The windows over a text of T tokens ([T, 2] offsets); head: number of tokens before the text in a row."""
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


def with_probabilities(spans: list[Span]) -> list[tuple[str, float]]:
    """(text, probability) of some spans; the probabilities add up to 1."""
    probabilities = softmax(np.array([span.score for span in spans]))
    return list(zip([span.text for span in spans], probabilities.tolist(), strict=True))


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
