"""Initializes a model from a smaller one of its family: center tiling with wrap-around, in depth and width.

As ModernBERT-large was initialized from ModernBERT-base, and the larger Ettin models from smaller ones (Warner et al.
2024, section 2.2.2; `init_model_from_pretrained` in the repository AnswerDotAI/ModernBERT):

- Width: the smaller tensor is placed in the middle of the larger one and wraps around at its edges.
  Attention heads are tiled whole, as are groups of query heads that share a key and value head.
- Depth: layer i of N comes from layer round(i * n / N) of n, the scaling of Gopher (Rae et al. 2021, appendix G.3.3).
- Scale, unlike there: a kernel is divided by the growth of its inputs, and the norm before the decoder by that of the
  hidden size, so that sums over repeated inputs stay the same. A model that is twice as wide then computes what the
  smaller one computes; without this, its logits are several times too large.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from bert_jax.config import Model
from bert_jax.errors import BadInput
from bert_jax.model.family import family_of
from bert_jax.model.layers import LAYERS, axes_in_layer, logical_axes
from bert_jax.pretrained.load import Pretrained
from bert_jax.train.state import model_of

_SIZES = ('num_layers', 'hidden_size', 'num_heads', 'num_kv_heads', 'intermediate_size')
_SIZE_FIELDS = (*(name for name in _SIZES if name != 'num_kv_heads'), 'num_key_value_heads', 'layer_types')


def with_sizes(initial: Model, model: Model) -> Model:
    """Returns the architecture of an initial model with the sizes of another one of its family."""
    names = [name for name in _SIZE_FIELDS if hasattr(model, name)]
    return dataclasses.replace(initial, **{name: getattr(model, name) for name in names})


def check_is_larger(initial: Model, model: Model, init: str) -> None:
    """Checks that a model can be initialized from a smaller one.

    Raises:
      BadInput: if the families or the sizes of the heads differ, or no size is larger, or one is smaller.
    """
    where = f'config.init_larger with config.init={init}'
    if model.family != initial.family:
        fix = f'start from a config of that family, such as bert_jax.config.defaults({initial.family!r})'
        raise BadInput(where, f'is a {initial.family} model; config.model is {model.family}', 'the same family', fix)
    ours, theirs = ({name: getattr(each, name) for name in _SIZES} for each in (model, initial))
    if smaller := [name for name in _SIZES if ours[name] < theirs[name]]:
        found = ', '.join(f'{name}={theirs[name]}, and config.model has {ours[name]}' for name in smaller)
        raise BadInput(where, f'has {found}', 'sizes in config.model that are at least those of the initial model')
    if ours == theirs:
        expected = 'more layers or a larger hidden or intermediate size in config.model'
        raise BadInput(where, 'has the sizes of config.model', expected, '--config.init_larger=False')
    head_size, heads_of = (each.hidden_size // each.num_heads for each in (initial, model))
    if head_size != heads_of:
        num_heads = max(model.hidden_size // head_size, 1)
        raise BadInput(
            where,
            f'has heads of size {head_size}; those of config.model have {heads_of}',
            f'heads of size {head_size}, because heads are copied whole',
            f'--config.model.hidden_size={num_heads * head_size} --config.model.num_heads={num_heads}',
        )
    groups, groups_of = (each.num_heads // each.num_kv_heads for each in (initial, model))
    if groups_of < groups:
        found = f'has {groups} query heads for each key and value head; config.model has {groups_of}'
        raise BadInput(where, found, f'at least {groups}', f'--config.model.num_heads={groups * model.num_kv_heads}')


def enlarged(initial: Pretrained, model: Model) -> Pretrained:
    """Returns an initial model with the sizes of `model`, which `check_is_larger` accepts."""
    indices, decoder_norm = _indices(initial.config, model), family_of(model).decoder_norm
    hidden = model.hidden_size / initial.config.hidden_size
    growth = {'embed': hidden, 'heads': hidden, 'mlp': model.intermediate_size / initial.config.intermediate_size}

    def tile(path: tuple[Any, ...], variable: nnx.Variable) -> nnx.Variable:
        value, of_shared_heads = np.asarray(variable.get_value()), {'key', 'value'} & {*path}
        for axis, name in enumerate(logical_axes(variable)):
            name = 'kv_heads' if name == 'heads' and of_shared_heads else name
            value = value.take(indices[name], axis) if name in indices else value
        if path[-1] == 'kernel':
            value = value / growth[axes_in_layer(variable)[0]]
        elif path[:-1] == decoder_norm:
            value = value / growth['embed']
        return variable.replace(jnp.asarray(value, jnp.float32))

    params = nnx.to_flat_state(nnx.state(initial.model, nnx.Param))
    params = nnx.from_flat_state([(path, tile(path, variable)) for path, variable in params])
    config = with_sizes(initial.config, model)
    return dataclasses.replace(initial, model=model_of(params, config, initial.tokenizer.vocab_size), config=config)


def _indices(initial: Model, model: Model) -> dict[str, np.ndarray]:
    """Returns for each logical axis the indices of the smaller one that the larger one takes."""
    hidden = _tiled(initial.hidden_size, model.hidden_size)
    groups = _tiled(initial.num_kv_heads, model.num_kv_heads)
    in_group = initial.num_heads // initial.num_kv_heads
    members = _tiled(in_group, model.num_heads // model.num_kv_heads)
    head = np.arange(initial.hidden_size // initial.num_heads)
    heads = (groups[:, None] * in_group + members).ravel()
    kv_heads, query_heads = ((each[:, None] * len(head) + head).ravel() for each in (groups, heads))
    layers = np.rint(np.arange(model.num_layers) * initial.num_layers / model.num_layers).astype(int)
    return {
        LAYERS: np.minimum(layers, initial.num_layers - 1),
        'mlp': _tiled(initial.intermediate_size, model.intermediate_size),
        'heads': query_heads,
        'kv_heads': kv_heads,
        **dict.fromkeys(('embed', 'pooled', 'norm'), hidden),
    }


def _tiled(size: int, larger: int) -> np.ndarray:
    """Returns [larger] the indices of an axis of `size` in the middle of a larger one, repeated to both sides."""
    return (np.arange(larger) - (larger - size) // 2) % size
