"""Windows over a context, and the ranking of its spans as answers."""

from typing import NamedTuple

import numpy as np

from bert_jax.config.finetuning import Task
from bert_jax.finetune.splits import softmax


class Window(NamedTuple):
    """The part of a context that a row holds.

    first_token: index in the context of the window's first token.  text_start: its position in the row.
    offsets: [W, 2] int64, character range in the context of each of the W tokens.
    has_most_context: [W] bool, whether this window gives the token more context than any other.
    """

    first_token: int
    text_start: int
    offsets: np.ndarray
    has_most_context: np.ndarray


class Span(NamedTuple):
    """An answer: text, score, and its characters [start, end) in the context; None for 'no answer'."""

    text: str
    score: float
    start: int | None
    end: int | None


def cut_windows(offsets: np.ndarray, head: int, task: Task) -> list[Window]:
    """Cuts a context into windows; offsets: [T, 2] of its T tokens; head: number of tokens before it in a row."""
    room = task.sequence_length - head - 1
    num_tokens = len(offsets)
    starts = [0]
    while starts[-1] + room < num_tokens:
        starts.append(starts[-1] + task.stride)
    context = np.full((len(starts), num_tokens), -1.0)
    for index, first in enumerate(starts):
        stop = min(first + room, num_tokens)
        token = np.arange(first, stop)
        # As in the original: the shorter side, plus a little for the window's length to break ties.
        context[index, first:stop] = np.minimum(token - first, stop - 1 - token) + 0.01 * (stop - first)
    best_window = context.argmax(axis=0) if num_tokens else np.zeros(0, np.int64)
    return [
        Window(first, head, offsets[first : first + room], best_window[first : first + room] == index)
        for index, first in enumerate(starts)
    ]


def token_span(offsets: list[tuple[int, int]], answer: str, start: int) -> tuple[int, int] | None:
    """Returns (first, last) of the tokens that overlap an answer's characters; None if none do."""
    touched = [i for i, (low, high) in enumerate(offsets) if low < start + len(answer) and high > start and high > low]
    return (touched[0], touched[-1]) if touched else None


def with_probabilities(spans: list[Span]) -> list[tuple[str, float]]:
    """Returns the (text, probability) of each span; probabilities are a softmax of their scores."""
    probabilities = softmax(np.array([span.score for span in spans]))
    return list(zip([span.text for span in spans], probabilities.tolist(), strict=True))


def null_score(outputs: list[np.ndarray]) -> float:
    """Returns the score of 'no answer': the lowest [CLS] score of all windows, as in `run_squad.py`."""
    return min(float(logits[0].sum()) for logits in outputs)


def rank_spans(
    context: str, windows: list[Window], outputs: list[np.ndarray], *, n_best: int, max_tokens: int
) -> list[Span]:
    """Returns the best spans over all windows of a context, best first, without duplicate texts.

    Args:
      outputs: for each window, [L, 2] logits of first and last token.
      n_best: number of first and last tokens to try per window, and of spans to return.
      max_tokens: longest answer.
    """
    candidates: list[tuple[float, int, int]] = []
    for window, logits in zip(windows, outputs, strict=True):
        inside = logits[window.text_start : window.text_start + len(window.offsets)]
        firsts = np.argsort(-np.where(window.has_most_context, inside[:, 0], -np.inf), kind='stable')[:n_best]
        lasts = np.argsort(-inside[:, 1], kind='stable')[:n_best]
        for first in firsts[window.has_most_context[firsts]]:
            for last in lasts[(lasts >= first) & (lasts < first + max_tokens)]:
                score = float(inside[first, 0] + inside[last, 1])
                candidates.append((score, int(window.offsets[first, 0]), int(window.offsets[last, 1])))
    candidates.sort(key=lambda candidate: (-candidate[0], candidate[1:]))
    spans: dict[str, Span] = {}
    for score, low, high in candidates:
        text = context[low:high].strip()
        if text and text not in spans:
            start = low + context[low:high].index(text)
            spans[text] = Span(text, score, start, start + len(text))
            if len(spans) == n_best:
                break
    return list(spans.values())
