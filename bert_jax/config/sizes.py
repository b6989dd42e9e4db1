"""The published sizes of the families, each with its recipe, as configs to build on."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

from ml_collections import ConfigDict

from bert_jax.config.families import FAMILIES
from bert_jax.config.fields import config_dict_of, nearest
from bert_jax.config.pretraining import Config
from bert_jax.errors import BadInput

SizeT = TypeVar('SizeT')
# BERT (Devlin et al. 2019) and the miniatures of Turc et al. (2019): (layers, hidden size).
_NAMED_SIZES = {
    'tiny': (2, 128),
    'mini': (4, 256),
    'small': (4, 512),
    'medium': (8, 512),
    'base': (12, 768),
    'large': (24, 1024),
}
SIZES = dict(_NAMED_SIZES)
SIZES.update({f'L{n}_H{d}': (n, d) for n in (2, 4, 6, 8, 10, 12) for d in (128, 256, 512, 768)})


class _Published(NamedTuple):
    """A size of the ModernBERT architecture and its pretraining.

    Attributes:
      rows: of 1024 tokens, the batch after its own warm-up.
      tokens, warmup_tokens: of the whole pretraining at length 1024, and of the warm-up of the learning rate.
      decay: what a step takes off a weight at the peak learning rate ("fully decoupled" weight decay).
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    rows: int
    tokens: float
    warmup_tokens: float
    peak_learning_rate: float
    decay: float


MODERNBERT_SIZES = {  # Warner et al. 2024, arXiv 2412.13663
    'base': _Published(22, 768, 1152, 12, 4608, 1.719e12, 3e9, 8e-4, 1e-5),
    'large': _Published(28, 1024, 2624, 16, 4928, 1.719e12, 2e9, 5e-4, 1e-5),
}
ETTIN_SIZES = {  # Weller et al. 2025, arXiv 2507.11412
    '17m': _Published(7, 256, 384, 4, 4608, 1.7e12, 4e9, 3e-3, 3e-4),
    '32m': _Published(10, 384, 576, 6, 4608, 1.7e12, 4e9, 3e-3, 3e-4),
    '68m': _Published(19, 512, 768, 8, 4608, 1.7e12, 3e9, 3e-3, 3e-4),
    '150m': _Published(22, 768, 1152, 12, 4608, 1.7e12, 3e9, 8e-4, 1e-5),
    '400m': _Published(28, 1024, 2624, 16, 4608, 1.7e12, 2e9, 5e-4, 1e-5),
    '1b': _Published(28, 1792, 3840, 28, 4608, 1.7e12, 2e9, 5e-4, 5e-5),
}


def defaults(family: str) -> ConfigDict:
    """The default config of a family, to build on; without pairs of segments if the family has no head for them.

    Args:
      family: bert, modernbert or eurobert.

    Raises:
      BadInput: for another family.
    """
    if family not in FAMILIES:
        raise BadInput(f'family {family!r}', 'does not exist', ', '.join(FAMILIES), nearest(family, FAMILIES))
    model = FAMILIES[family]()
    config = editable(Config(model=model))
    if not model.LEARNS_PAIRS:
        config.data.pairing = 'none'
    return config


def editable(run: Config) -> ConfigDict:
    """Returns a config whose fields a config file or the command line may change; `resolve` checks and freezes it."""
    config = config_dict_of(run)
    # A source may be text or a tuple, which `resolve` checks.
    config.data = ConfigDict(config.data.to_dict(), type_safe=False)
    config.phases = tuple(dataclasses.asdict(phase) for phase in run.phases)
    config.lock()
    return config


def bert(size: str = 'base') -> ConfigDict:
    """Returns the config of a published size of BERT with the original recipe, to build on.

    Args:
      size: a name in `SIZES`: tiny, mini, small, medium, base, large, or LN_HD (L4_H512).

    Raises:
      BadInput: for a size that is not in the table.
    """
    config = defaults('bert')
    config.model.update(bert_sizes(size))
    return config


def bert_sizes(size: str) -> dict[str, int]:
    """Returns the fields of `config.model` that make up a size of BERT; arguments and errors as for `bert`."""
    num_layers, hidden_size = _published(size, SIZES)
    return {
        'num_layers': num_layers,
        'hidden_size': hidden_size,
        'num_heads': hidden_size // 64,
        'intermediate_size': 4 * hidden_size,
    }


def gated_sizes(num_layers: int, hidden_size: int) -> dict[str, int]:
    """Returns the fields of `config.model` of a size with gated feed-forward layers (GeGLU, SwiGLU).

    Such a layer has three matrices where BERT has two, so two thirds of BERT's width make as many parameters.
    """
    return {
        'num_layers': num_layers,
        'hidden_size': hidden_size,
        'num_heads': max(1, hidden_size // 64),
        'intermediate_size': 8 * round(hidden_size / 3),
    }


def modernbert(size: str = 'base') -> ConfigDict:
    """Returns the config of a published size of ModernBERT with the recipe of its first phase, to build on.

    Args:
      size: base or large.

    Raises:
      BadInput: for another size.
    """
    return _modernbert(_published(size, MODERNBERT_SIZES))


def ettin(size: str = '150m') -> ConfigDict:
    """Returns the config of a published size of Ettin's encoders with the recipe of their first phase, to build on.

    Args:
      size: 17m, 32m, 68m, 150m, 400m or 1b.

    Raises:
      BadInput: for another size.
    """
    config = _modernbert(_published(size, ETTIN_SIZES))
    config.model.update(local_rope_theta=160_000.0, max_positions=7999)
    return config


def _modernbert(size: _Published) -> ConfigDict:
    """A size of the ModernBERT architecture: one phase at length 1024, whose learning rate falls at the end."""
    config = defaults('modernbert')
    for name in ('num_layers', 'hidden_size', 'intermediate_size', 'num_heads'):
        config.model[name] = getattr(size, name)
    config.model.dtype = 'bfloat16'
    config.tokenizer.update(kind='bpe', vocab_size=50_368, num_unused=83)
    config.data.update(sequence_length=1024, packing=True, short_sequence_probability=0.0)
    config.data.masking.rate = 0.3
    tokens_per_step = size.rows * config.data.sequence_length
    config.train.update(
        steps=round(size.tokens / tokens_per_step),
        global_batch_size=size.rows,
        microbatches=-1,
        log_every=10,
        checkpoint_every=500,
        evaluate_every=2000,
    )
    config.optimizer.update(
        name='stableadamw',
        peak_learning_rate=size.peak_learning_rate,
        warmup_steps=round(size.warmup_tokens / tokens_per_step),
        schedule='wsd',
        # The optimizer multiplies its weight decay by the learning rate; the papers state their product at the peak.
        weight_decay=round(size.decay / size.peak_learning_rate, 9),
        b2=0.98,
        clip_norm=0.0,  # StableAdamW clips the updates instead
    )
    return config


def _published(size: str, sizes: Mapping[str, SizeT]) -> SizeT:
    if size not in sizes:
        raise BadInput(f'size {size!r}', 'is not a published size', ', '.join(sizes), nearest(size, sizes))
    return sizes[size]
