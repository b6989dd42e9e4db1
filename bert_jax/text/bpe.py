"""Trains byte-level BPE (Sennrich et al. 2016; bytes: Radford et al. 2019) with the `tokenizers` library.

The pipeline is ModernBERT's: NFC, GPT-2's pre-tokenizer, no blank put before a text. Every text can be represented, so
nothing is [UNK].
"""

from typing import Any

from bert_jax import config
from bert_jax.text.pipeline import Pipeline
from bert_jax.text.special_tokens import SPECIAL_TOKENS

_MULTIPLE = 64  # of the vocabulary size; unused tokens fill it up


def train_bpe(settings: config.Tokenizer, sample: list[str]) -> Pipeline:
    """Trains a vocabulary, deterministically.

    Its size is a multiple of 64. The last tokens are named [unused0], [unused1], …: `num_unused`, and those that fill
    up the size. Token ids fit the size of hardware tiles, and tokens can be put to use later without new embeddings.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    settings = settings.for_training()
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = _normalizer(bool(settings.lowercase), bool(settings.strip_accents))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    # The mask token takes the place of a word and the blank before it, as in RoBERTa and ModernBERT.
    special = [
        tokenizers.AddedToken(token, special=True, normalized=False, lstrip=token == SPECIAL_TOKENS.mask)
        for token in SPECIAL_TOKENS
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=_round_up(settings.vocab_size) - settings.num_unused,
        min_frequency=2,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(sample, trainer)
    num_trained = backend.get_vocab_size()
    num_unused = _round_up(num_trained + settings.num_unused) - num_trained
    backend.add_special_tokens([f'[unused{index}]' for index in range(num_unused)])
    return Pipeline(backend, SPECIAL_TOKENS)


def _normalizer(lowercase: bool, strip_accents: bool) -> Any:
    from tokenizers import normalizers

    steps: list[Any] = [normalizers.NFD(), normalizers.StripAccents()] if strip_accents else []
    steps += [normalizers.Lowercase()] if lowercase else []
    return normalizers.Sequence([*steps, normalizers.NFC()])


def _round_up(size: int) -> int:
    return -(-size // _MULTIPLE) * _MULTIPLE
