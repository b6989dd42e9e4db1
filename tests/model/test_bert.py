"""The model is the original BERT: outputs, sizes, initial weights and dropout."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bert_jax import config
from bert_jax.model.bert import BertForPreTraining
from bert_jax.model.dropout import DropoutKey, dropout, dropout_base
from bert_jax.model.family import num_parameters
from bert_jax.model.inputs import Inputs
from bert_jax.model.layers import truncated_normal
from bert_jax.pretrained import hugging_face, tensor_names
from bert_jax.pretrained.safetensors_files import read_tensors
from bert_jax.train.state import model_of
from tests.support.models import Vocabulary

MODEL = config.Bert(num_layers=3, hidden_size=64, num_heads=4, intermediate_size=128, max_positions=40, dtype='float32')
VOCAB = 211


def _params(seed: int = 0) -> nnx.State:
    """Returns parameters that differ from their initial zeros and ones, so that a swapped bias changes the output."""
    params = nnx.state(BertForPreTraining(MODEL, VOCAB, nnx.Rngs(seed)), nnx.Param)
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [leaf + 0.05 * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves])


@pytest.mark.compiles
def test_logits_equal_the_reference_with_padding(tmp_path) -> None:
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    params = _params()
    hugging_face.write_model(tmp_path, params, MODEL, Vocabulary(VOCAB))
    reference = transformers.BertForPreTraining.from_pretrained(tmp_path).eval()
    rng = np.random.default_rng(1)
    ids = rng.integers(5, VOCAB, (3, 24)).astype(np.int32)
    types = np.tile((np.arange(24) > 10).astype(np.int32), (3, 1))
    present = (np.arange(24) < np.array([[24], [13], [20]])).astype(np.int32)
    everywhere = jnp.broadcast_to(jnp.arange(24), ids.shape)
    model = model_of(params, MODEL, VOCAB)
    hidden = model.encode(Inputs(ids, types, present, everywhere))
    mlm, nsp = model.mlm_logits(hidden, everywhere), model.nsp_logits(hidden, jnp.zeros((3, 1), jnp.int32))
    with torch.no_grad():
        out = reference(
            input_ids=torch.tensor(ids).long(),
            token_type_ids=torch.tensor(types).long(),
            attention_mask=torch.tensor(present).long(),
        )
    real = present.astype(bool)
    scale = float(out.prediction_logits.abs().max())
    assert np.abs(np.asarray(mlm)[..., :VOCAB] - out.prediction_logits.numpy())[real].max() < 1e-5 * scale
    np.testing.assert_allclose(np.asarray(nsp)[:, 0], out.seq_relationship_logits.numpy(), atol=1e-5)
    assert np.all(np.asarray(mlm)[..., VOCAB:] == -np.inf)


def test_written_and_read_weights_are_bit_identical(tmp_path) -> None:
    params = _params()
    hugging_face.write_model(tmp_path, params, MODEL, Vocabulary(VOCAB))
    model = hugging_face.read_model_json(tmp_path)
    assert model == dataclasses.replace(MODEL, vocab_size=VOCAB)
    file, tensors = read_tensors(tmp_path)
    again = tensor_names.from_tensors(tensors, model, VOCAB, str(file))
    first, second = (tensor_names.to_tensors(state, MODEL, VOCAB) for state in (params, again))
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


@pytest.mark.parametrize('size, published', [('base', 110_106_428), ('large', 336_226_108), ('tiny', 4_433_468)])
def test_parameter_counts_equal_the_published_ones(size: str, published: int) -> None:
    resolved = config.resolve(config.bert(size))
    assert num_parameters(resolved.model, 30522) == published


@pytest.mark.compiles
def test_sizes_have_as_many_parameters_as_the_reference() -> None:
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    for size in ('mini', 'small', 'medium', 'large', 'L2_H768', 'L12_H128'):
        num_layers, hidden_size = config.SIZES[size]
        theirs = transformers.BertConfig(
            num_hidden_layers=num_layers,
            hidden_size=hidden_size,
            num_attention_heads=hidden_size // 64,
            intermediate_size=4 * hidden_size,
        )
        with torch.device('meta'):
            reference = transformers.BertForPreTraining(theirs)
        assert num_parameters(config.resolve(config.bert(size)).model, 30522) == reference.num_parameters(), size


def test_initial_weights_are_truncated_normal_as_in_the_original() -> None:
    draws = np.asarray(truncated_normal(0.02)(jax.random.key(0), (1000, 1000)))
    assert np.abs(draws).max() <= 0.04
    # The standard deviation of a unit normal cut at +-2 is 0.87962566.
    assert abs(draws.std() / (0.02 * 0.87962566) - 1) < 3e-3
    assert abs(draws.mean()) < 1e-4


def test_dropout_keeps_the_expected_share_independently_everywhere() -> None:
    rate, rows, shape = 0.1, 64, (64, 32, 64)
    kept = []
    for step in range(8):
        key = DropoutKey(dropout_base(0, jnp.int32(step)), jnp.arange(rows, dtype=jnp.uint32), 2)
        kept.append(np.asarray(dropout(jnp.ones(shape), rate, key, site=1)) > 0)
    kept = np.stack(kept)
    total = kept.size
    assert abs(kept.mean() - 0.9) < 5 * np.sqrt(0.09 / total)
    for axes in [(0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3)]:
        share = kept.mean(axis=axes)
        spread = np.sqrt(0.09 / (total / share.size))
        assert np.abs(share - 0.9).max() < 5.5 * spread
    centred = kept - 0.9
    for axis in range(4):  # neighbours along every axis are uncorrelated
        a, b = np.moveaxis(centred, axis, 0)[:-1], np.moveaxis(centred, axis, 0)[1:]
        assert abs((a * b).mean() / 0.09) < 5 / np.sqrt(a.size)


def test_dropout_of_a_row_depends_only_on_its_global_index() -> None:
    x = jnp.ones((8, 4, 6))
    key = DropoutKey(jnp.uint32(5), jnp.arange(8, dtype=jnp.uint32), 1)
    whole = dropout(x, 0.5, key, site=2)
    part = dropout(x[2:5], 0.5, DropoutKey(key.base, key.rows[2:5], 1), site=2)
    np.testing.assert_array_equal(whole[2:5], part)
