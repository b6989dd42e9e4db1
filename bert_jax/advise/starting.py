"""Decides between a new model and continuing an existing one."""

import dataclasses

from bert_jax.advise.sample import TextSample
from bert_jax.console import short

# Characters of text; docs/guides/advise.md has the sources.
LITTLE = 100e6  # the least that useful models were pretrained on from scratch
PLENTY = 4e9  # enough for models from scratch as good as those of far more text
_ENOUGH_TOKENS = 2.2e9  # 20 per parameter of a base model (Hoffmann et al. 2022, arXiv 2203.15556)
_FEW_TOKENS = 20e6  # less than this adapts no base model
_LETTERS = 0.6  # share of the characters; below, the text is not prose


@dataclasses.dataclass(frozen=True)
class Start:
    """How to start.

    Attributes:
      kind: 'continue' or 'scratch'.
      reasons: sentences.
      model: the kind of model to continue, in words, and an example on the hub.
    """

    kind: str
    reasons: tuple[str, ...]
    model: str
    example: str


def choose_start(text: TextSample, base_tokens: float, own_tokens: float) -> Start:
    """Returns how to start.

    Args:
      base_tokens: tokens that a base model could be trained on with the devices and hours.
      own_tokens: tokens that the recommended model would be trained on from scratch.
    """
    model, example = _existing_model(text, base_tokens)
    if text.letters < _LETTERS:
        reason = (
            f'Only {text.letters:.0%} of the characters are letters, so this is not prose (logs, code, tables, '
            'sequences): the vocabulary and the knowledge of published models fit badly.'
        )
        return Start('scratch', (reason,), model, example)
    size = f'{short(text.characters)} characters'
    if text.characters >= PLENTY and own_tokens >= _ENOUGH_TOKENS:
        reasons = (
            f'{size} are enough to pretrain from scratch, with a vocabulary of your own: models from scratch on 4 GB '
            'and more match those of far more general text.',
        )
        return Start('scratch', reasons, model, example)
    if text.characters < LITTLE:
        reasons = (
            f'{size} are little text: an existing model has seen far more, and continuing it keeps what it knows.',
        )
    elif text.characters < PLENTY:
        reasons = (
            f'{size} would train a small model from scratch, but continuing an existing one is better for the same '
            'time unless its vocabulary splits your words badly (compare tokens per word below).',
        )
    else:
        reasons = (
            f'The text would do for a model from scratch, but the hours would not: {short(own_tokens)} tokens of the '
            f'{short(_ENOUGH_TOKENS)} that a base model needs.',
        )
    if base_tokens < _FEW_TOKENS:
        reasons += (
            f'These devices train a base model on only {short(base_tokens)} tokens in that time, so continue a small '
            'one.',
        )
    return Start('continue', reasons, model, example)


def _existing_model(text: TextSample, base_tokens: float) -> tuple[str, str]:
    """Returns (a kind of model in words, an example on the hub)."""
    is_small = base_tokens < _FEW_TOKENS
    if text.is_english:
        return (
            ('a small English encoder', 'google/bert_uncased_L-4_H-256_A-4')
            if is_small
            else ('an English encoder of base size', 'answerdotai/ModernBERT-base')
        )
    script = max(text.scripts, key=lambda name: text.scripts[name], default='unknown')
    language = f'the language of your text ({script} script, not English)'
    example = 'jhu-clsp/mmBERT-small' if is_small else 'jhu-clsp/mmBERT-base'
    return f'an encoder for {language}, or a multilingual one', example
