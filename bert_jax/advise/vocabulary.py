"""Compares vocabulary sizes on a sample of the text, and chooses one."""

import dataclasses
from typing import NamedTuple

from bert_jax import config
from bert_jax.activity import counted
from bert_jax.console import say
from bert_jax.errors import BadInput
from bert_jax.text.tokenizer import Tokenizer, load_configured_tokenizer, train_tokenizer

SIZES = (4096, 8192, 16_384, 32_768, 65_536)
_WORTH = 0.04  # a vocabulary twice as large should save at least this share of the tokens
_MEASURED_EVERY = 10  # the interval of documents that are encoded, and that no vocabulary is trained on
_FULL = 0.9  # of a size that a trained vocabulary has to reach


class Measured(NamedTuple):
    """A vocabulary, measured on documents that it was not trained on.

    Attributes:
      requested, trained: its number of tokens; fewer were trained if the sample yields no more.
      unknown_rate: share of the tokens that are [UNK].
    """

    requested: int
    trained: int
    tokens_per_word: float
    characters_per_token: float
    unknown_rate: float

    @property
    def is_full(self) -> bool:
        """Whether the sample yields about as many tokens as requested."""
        return self.trained >= _FULL * self.requested

    @property
    def size(self) -> int:
        """The number of tokens to request."""
        return self.requested if self.is_full else self.trained


def measure_sizes(settings: config.Tokenizer, documents: tuple[str, ...]) -> list[Measured]:
    """Trains a vocabulary of each size on the sample and measures it; stops at the first that the text does not fill.

    A vocabulary of the user (`tokenizer.path`) is measured alone.
    """
    held_out = list(documents[::_MEASURED_EVERY])
    training = [text for index, text in enumerate(documents) if index % _MEASURED_EVERY] or held_out
    if settings.path:
        return [_measure(load_configured_tokenizer(settings), 0, held_out)]
    found = []
    for size in counted(SIZES, len(SIZES), 'vocabularies', 'sizes'):
        of_size = dataclasses.replace(settings, vocab_size=size)
        try:
            tokenizer = train_tokenizer(of_size, (line for text in training for line in text.split('\n')))
        except BadInput as error:  # too few or too many characters for a size
            say(f'no vocabulary of {size:,}: {error.found}')
            continue
        found.append(_measure(tokenizer, size, held_out))
        if not found[-1].is_full:
            break
    if not found:
        raise BadInput('config.tokenizer', 'yields no vocabulary from this text', 'more text, or another kind')
    return found


def _measure(tokenizer: Tokenizer, requested: int, documents: list[str]) -> Measured:
    ids = tokenizer.encode_batch([line for text in documents for line in text.split('\n')])
    num_tokens = max(sum(map(len, ids)), 1)
    num_words = max(sum(len(text.split()) for text in documents), 1)
    num_characters = sum(len(text) for text in documents)
    num_unknown = sum(row.count(tokenizer.unk_id) for row in map(list, ids)) if tokenizer.unk_id is not None else 0
    size = tokenizer.vocab_size
    return Measured(
        requested or size, size, num_tokens / num_words, num_characters / num_tokens, num_unknown / num_tokens
    )


def choose_size(measured: list[Measured], hidden_size: int, encoder_parameters: int) -> Measured:
    """Returns the smallest vocabulary after which doubling saves few tokens, unless its embeddings outweigh the layers.

    Args:
      hidden_size, encoder_parameters: of the model.
    """
    chosen = measured[0]
    for larger in measured[1:]:
        saves = 1 - larger.tokens_per_word / chosen.tokens_per_word
        if saves < _WORTH or not larger.is_full:
            break
        if larger.requested * hidden_size > max(encoder_parameters, SIZES[1] * hidden_size):
            break
        chosen = larger
    return chosen
