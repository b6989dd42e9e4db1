"""Reads checkpoints of the original release: `bert_config.json`, `vocab.txt`, `bert_model.ckpt.*`.

The tensors get Hugging Face's names; the table in bert.py does the rest. Reading the files requires TensorFlow, an
optional extra.
"""

import os
import re
from pathlib import Path

import numpy as np

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.json_files import read_given_json
from bert_jax.pretrained.hugging_face import parse_model_json

# What run_pretraining.py saves besides the model: the moments of the optimizer and the step.
_TRAINING_STATE = re.compile(r'/adam_[mv]$|^global_step$|AdamWeightDecayOptimizer')
_RENAMES = [  # in this order; Hugging Face's old names also have 'gamma' and 'beta'
    (r'layer_(\d+)', r'layer.\1'),
    (r'/', '.'),
    (r'(word|position|token_type)_embeddings$', r'\1_embeddings.weight'),
    (r'\.kernel$', '.weight'),
    (r'predictions\.output_bias$', 'predictions.bias'),
    (r'seq_relationship\.output_weights$', 'seq_relationship.weight'),
    (r'seq_relationship\.output_bias$', 'seq_relationship.bias'),
]


def is_checkpoint(directory: Path) -> bool:
    """Returns whether a directory holds a model of the original release."""
    return (directory / 'bert_config.json').is_file()


def read_checkpoint(directory: Path) -> tuple[Path, dict[str, np.ndarray], config.Model]:
    """Returns (index file, tensors by Hugging Face's names, model) of an original checkpoint.

    Raises:
      BadInput: if a file is missing or damaged, the BERT is of an unsupported kind, or TensorFlow is not installed.
    """
    path = directory / 'bert_config.json'
    model = parse_model_json(read_given_json(path, 'the config of an original checkpoint'), path)
    index_files = sorted(directory.glob('*.index'))
    if len(index_files) != 1:
        listed = ', '.join(file.name for file in index_files) or 'no *.index file'
        raise BadInput(str(directory), f'holds {listed}', 'one checkpoint: bert_model.ckpt.index and its .data-… file')
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # no greeting on standard error
    try:
        import tensorflow
    except ImportError as error:
        raise BadInput(
            str(index_files[0]),
            'is a TensorFlow checkpoint, and TensorFlow is not installed',
            "the extra 'google' of this package",
            "pip install -e '.[google]'",
        ) from error
    try:
        reader = tensorflow.train.load_checkpoint(str(index_files[0].with_suffix('')))
        stored = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if _is_weight(name)}
    except Exception as error:  # the reader maps C++ status codes to many exception types
        where = str(index_files[0].with_suffix('.*'))
        raise BadInput(where, f'cannot be read ({error})', 'a whole checkpoint', 'copy or download it again') from error
    return index_files[0], to_hugging_face(stored), model


def to_hugging_face(stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames tensors of the original release, and transposes its kernels from [in, out] to [out, in]."""
    tensors = {}
    for original, value in stored.items():
        name = original
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        tensors[name] = value.T if original.endswith('/kernel') else value
    return tensors


def _is_weight(name: str) -> bool:
    return not _TRAINING_STATE.search(name)
