"""Pseudo-perplexity (Salazar et al. 2020, "Masked Language Model Scoring"): each token is predicted from all others."""

import math

import numpy as np

from bert_jax.activity import counted
from bert_jax.evaluation.sample import Window
from bert_jax.pretrained.load import Pretrained

_WINDOWS_PER_CALL = 32


def measure(pretrained: Pretrained, windows: list[Window]) -> float | None:
    """Returns exp of the mean -log p over all tokens of the windows, masking one token at a time; None without tokens.

    [CLS] and [SEP] are not predicted. A window with more tokens than the model was trained on is truncated.
    """
    tokenizer, max_tokens = pretrained.tokenizer, pretrained.max_length - 2  # without [CLS] and [SEP]
    total, num_tokens = 0.0, 0
    starts = range(0, len(windows), _WINDOWS_PER_CALL)
    for start in counted(starts, len(starts), 'windows'):
        texts = [window.text for window in windows[start : start + _WINDOWS_PER_CALL]]
        sequences = [[tokenizer.cls_id, *ids[:max_tokens], tokenizer.sep_id] for ids in tokenizer.encode_batch(texts)]
        rows = [(ids, [position]) for ids in sequences for position in range(1, len(ids) - 1)]
        losses = pretrained.masked_losses([ids for ids, _ in rows], [positions for _, positions in rows])
        total += float(np.sum(losses, dtype=np.float64))
        num_tokens += len(rows)
    return math.exp(total / num_tokens) if num_tokens else None
