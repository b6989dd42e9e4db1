"""The published sizes: those of Devlin et al. (2019), and the miniatures of Turc et al. (2019)."""

from ml_collections import ConfigDict

from bert_jax.config.fields import config_dict_of, nearest
from bert_jax.config.pretraining import Config
from bert_jax.errors import BadInput

_NAMED_SIZES = {
    'tiny': (2, 128),
    'mini': (4, 256),
    'small': (4, 512),
    'medium': (8, 512),
    'base': (12, 768),
    'large': (24, 1024),
}
# Up to this many layers compile quickly one by one, and run faster than a loop over stacked weights.
FEW_LAYERS = 4
SIZES = dict(_NAMED_SIZES)
SIZES.update({f'L{n}_H{d}': (n, d) for n in (2, 4, 6, 8, 10, 12) for d in (128, 256, 512, 768)})


def bert(size: str = 'base') -> ConfigDict:
    """The config of a published size with the original recipe, to build on.

    Args:
      size: a name in `SIZES`: tiny, mini, small, medium, base, large, or LN_HD (L4_H512).

    Raises:
      BadInput: for a size that is not in the table.
    """
    if size not in SIZES:
        raise BadInput(f'size {size!r}', 'is not a published size', ', '.join(SIZES), nearest(size, SIZES))
    num_layers, hidden_size = SIZES[size]
    config = config_dict_of(Config())
    # A source may be text or a tuple, which `resolve` checks.
    config.data = ConfigDict(config.data.to_dict(), type_safe=False)
    config.model.update(
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_heads=hidden_size // 64,
        intermediate_size=4 * hidden_size,
        scan_layers=num_layers > FEW_LAYERS,
    )
    config.lock()
    return config
