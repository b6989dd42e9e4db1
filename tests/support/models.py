"""Writes small models as Hugging Face directories; their vocabulary has letters and the words of `tasks`."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from flax import nnx

from bert_jax import config
from bert_jax.model.family import build_model
from bert_jax.pretrained import hugging_face
from bert_jax.text.tokenizer import SPECIAL_TOKENS, Tokenizer, load_tokenizer
from tests.support.tasks import BAD, GOOD, NAMES, OTHER

MODEL = config.Bert(num_layers=1, hidden_size=32, num_heads=2, intermediate_size=48, max_positions=32, dtype='float32')
TOKENS = [
    *SPECIAL_TOKENS,
    *'.,?\'"()',
    *'abcdefghijklmnopqrstuvwxyz0123456789',
    *(f'##{c}' for c in 'abcdefghijklmnopqrstuvwxyz0123456789'),
    *GOOD,
    *BAD,
    *OTHER,
    *NAMES,
    *('the', 'who', 'is', 'in', 'town'),
]


class Vocabulary(NamedTuple):
    """What config.json holds of a tokenizer, for models without one."""

    vocab_size: int
    pad_id: int = 0
    cls_id: int = 2
    sep_id: int = 3
    mask_id: int = 4


def write_model(directory: Path, model: config.Model = MODEL) -> Path:
    """Writes a random model of any family with its vocabulary as a Hugging Face directory."""
    directory.mkdir(parents=True)
    (directory / 'vocab.txt').write_text(''.join(f'{token}\n' for token in TOKENS))
    rng = np.random.default_rng(0)
    shapes = nnx.state(nnx.eval_shape(lambda: build_model(model, len(TOKENS), nnx.Rngs(0))), nnx.Param)
    flat = {
        path: leaf.replace(
            np.float32(path[-1] == 'scale') + 0.1 * rng.standard_normal(leaf.get_value().shape, np.float32)
        )
        for path, leaf in nnx.to_flat_state(shapes)
    }
    params = nnx.from_flat_state(flat)
    hugging_face.write_model(directory, params, model, Vocabulary(len(TOKENS)))
    return directory


def read_tokenizer(directory: Path) -> Tokenizer:
    """Writes a vocab.txt of `TOKENS`; returns its tokenizer."""
    path = directory / 'vocab.txt'
    path.write_text(''.join(f'{token}\n' for token in TOKENS))
    return load_tokenizer(path, lowercase=True, strip_accents=False)
