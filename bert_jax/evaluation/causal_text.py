"""Raw text read causally, in nats per character: what a model with causal rows has learned, whatever its tokenizer.

It is not comparable with `masked_words`, which sees both sides of a word.
"""

import math
from collections import Counter

import numpy as np

from bert_jax.evaluation.masked_words import characters
from bert_jax.evaluation.sample import Window
from bert_jax.pretrained.load import Pretrained


def measure(pretrained: Pretrained, windows: list[Window]) -> dict[str, float | int | None]:
    """Measures how well every token of the windows is predicted from the tokens before it.

    A window with more tokens than the model was trained on is cut into rows, each of which starts with [CLS]. [SEP] is
    not counted. A token that became [UNK] is charged as in `masked_words`.

    Returns:
      causal_nats_per_character: without white space; None without characters.
      unigram_nats_per_character: its baseline, which knows only the frequency of each character.
      causal_characters: number of characters.
      windows: number of windows.
    """
    tokenizer, max_tokens = pretrained.tokenizer, pretrained.max_length - 2  # without [CLS] and [SEP]
    rows, num_unknown = [], 0
    for window, (ids, offsets) in zip(windows, tokenizer.encode_with_offsets([w.text for w in windows]), strict=True):
        for token_id, (start, stop) in zip(ids, offsets, strict=True):
            num_unknown += len([*characters(window.text[start:stop], tokenizer)]) * (token_id == tokenizer.unk_id)
        for start in range(0, len(ids), max_tokens):
            rows.append([tokenizer.cls_id, *ids[start : start + max_tokens], tokenizer.sep_id])
    counts = Counter(character for window in windows for character in characters(window.text, tokenizer))
    total = counts.total()
    nats = sum(float(losses[:-1].sum(dtype=np.float64)) for losses in pretrained.next_token_losses(rows))
    nats += num_unknown * math.log(max(len(counts), 1))
    unigram_nats = sum(count * math.log(total / count) for count in counts.values())
    return {
        'causal_nats_per_character': nats / total if total else None,
        'unigram_nats_per_character': unigram_nats / total if total else None,
        'causal_characters': total,
        'windows': len(windows),
    }
