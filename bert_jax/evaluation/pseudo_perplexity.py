"""Pseudo-perplexity (Salazar et al. 2020, "Masked Language Model Scoring"): every token guessed from all others."""

import math

import numpy as np

from bert_jax.activity import counted
from bert_jax.evaluation.sample import Window
from bert_jax.pretrained.load import Pretrained

_WINDOWS_AT_ONCE = 32


def measure(pretrained: Pretrained, windows: list[Window]) -> float | None:
    """exp of the mean -log p over all tokens of the windows, each masked alone; None without any.

    [CLS] and [SEP] are not guessed. A window of more tokens than the model was trained on loses its end.
    """
    tokenizer, room = pretrained.tokenizer, pretrained.max_length - 2
    total, num_tokens = 0.0, 0
    starts = range(0, len(windows), _WINDOWS_AT_ONCE)
    for start in counted(starts, len(starts), 'windows', 'parts'):
        texts = [window.text for window in windows[start : start + _WINDOWS_AT_ONCE]]
        framed = [[tokenizer.cls_id, *ids[:room], tokenizer.sep_id] for ids in tokenizer.encode_batch(texts)]
        rows = [(ids, [place]) for ids in framed for place in range(1, len(ids) - 1)]
        losses = pretrained.masked_losses([ids for ids, _ in rows], [place for _, place in rows])
        total += float(np.sum(losses, dtype=np.float64))
        num_tokens += len(rows)
    return math.exp(total / num_tokens) if num_tokens else None
