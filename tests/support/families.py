"""Small models of every family, and the same models in `transformers` (float32, eager attention)."""

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from bert_jax import config
from bert_jax.config.families import FULL, SLIDING
from bert_jax.model.family import build_model
from bert_jax.model.inputs import Inputs
from bert_jax.pretrained.tensor_names import to_tensors

# Models without dropout for comparison with `transformers`.
MODELS = {
    'modernbert': config.ModernBert(
        num_layers=5, hidden_size=64, num_heads=2, intermediate_size=96, local_attention=16
    ),
    'modernbert_odd': config.ModernBert(
        num_layers=4,
        hidden_size=96,
        num_heads=3,
        intermediate_size=80,
        local_attention=10,
        layer_types=(SLIDING, FULL, FULL, SLIDING),
        attention_bias=True,
        mlp_bias=True,
        norm_bias=True,
        classifier_bias=True,
        decoder_bias=False,
    ),
    'eurobert': config.EuroBert(
        num_layers=3, hidden_size=64, num_heads=4, num_key_value_heads=2, intermediate_size=112
    ),
    'eurobert_tied': config.EuroBert(
        num_layers=2,
        hidden_size=96,
        num_heads=3,
        intermediate_size=64,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
    ),
}


def initial_params(model: config.Model, vocab_size: int) -> nnx.State:
    """Returns initial parameters, moved away from zeros and ones so that a swapped bias shows."""
    params = jax.jit(lambda: nnx.state(build_model(model, vocab_size, nnx.Rngs(0)), nnx.Param))()
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    return tree.unflatten([leaf + 0.03 * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves])


def reference_of(params: nnx.State, model: config.ModernBert | config.EuroBert, vocab_size: int) -> Any:
    """Returns the model of `transformers` with these parameters, in evaluation mode; token 0 is its padding."""
    torch = pytest.importorskip('torch')
    reference = _build_reference(model, vocab_size)
    weights = {name: torch.tensor(value) for name, value in to_tensors(params, model, vocab_size).items()}
    missing, unexpected = reference.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {'decoder.weight', 'lm_head.weight'}, (missing, unexpected)
    reference.tie_weights()
    return reference.eval()


def _build_reference(model: config.ModernBert | config.EuroBert, vocab_size: int) -> Any:
    transformers = pytest.importorskip('transformers')
    shared = {
        'vocab_size': vocab_size,
        'hidden_size': model.hidden_size,
        'num_hidden_layers': model.num_layers,
        'num_attention_heads': model.num_heads,
        'intermediate_size': model.intermediate_size,
        'attention_bias': model.attention_bias,
        'mlp_bias': model.mlp_bias,
        'pad_token_id': 0,
        'bos_token_id': 1,
        'eos_token_id': 2,
        'attn_implementation': 'eager',
    }
    if isinstance(model, config.EuroBert):
        settings = transformers.EuroBertConfig(
            **shared,
            num_key_value_heads=model.num_kv_heads,
            rope_parameters={'rope_type': 'default', 'rope_theta': model.rope_theta},
            rms_norm_eps=model.rms_norm_eps,
            tie_word_embeddings=model.tie_word_embeddings,
        )
        return transformers.EuroBertForMaskedLM(settings)
    thetas = {FULL: model.global_rope_theta, SLIDING: model.local_rope_theta}
    settings = transformers.ModernBertConfig(
        **shared,
        cls_token_id=1,
        sep_token_id=2,
        norm_eps=model.norm_eps,
        norm_bias=model.norm_bias,
        classifier_bias=model.classifier_bias,
        decoder_bias=model.decoder_bias,
        local_attention=model.local_attention,
        layer_types=list(model.kinds),
        rope_parameters={kind: {'rope_type': 'default', 'rope_theta': theta} for kind, theta in thetas.items()},
    )
    return transformers.ModernBertForMaskedLM(settings)


def rows_of(lengths: tuple[int, ...], length: int, vocab_size: int, seed: int) -> Inputs:
    """Returns rows of one random sequence each, of the given lengths, followed by padding up to `length`."""
    position = np.arange(length)
    present = (position < np.array(lengths)[:, None]).astype(np.int32)
    ids = np.random.default_rng(seed).integers(5, vocab_size, present.shape)
    ids = np.where(present, ids, 0).astype(np.int32)
    return Inputs(ids, np.zeros_like(ids), present, (position * present).astype(np.int32))
