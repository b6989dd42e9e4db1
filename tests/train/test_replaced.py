"""Replaced-token detection computes what ELECTRA of `transformers` computes; its draws are those of the generator."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.model.dropout import DropoutKey, uniform
from bert_jax.model.family import num_parameters
from bert_jax.model.replaced_tokens import build_of, builder, generator_model, to_family
from bert_jax.plan.analytic import estimate
from bert_jax.pretrained import electra
from bert_jax.pretrained.tensor_names import to_tensors
from bert_jax.pretrained.tensors import dense, norm, same, vocabulary
from bert_jax.train.objectives import objective_of
from bert_jax.train.objectives.replaced import corrupt
from tests.support.configs import planned_run
from tests.support.steps import MODELS, VOCAB

MODEL = config.Bert(
    num_layers=2,
    hidden_size=48,
    num_heads=3,
    intermediate_size=96,
    max_positions=32,
    dropout_rate=0.0,
    attention_dropout_rate=0.0,
)
SHARING = {name: config.Objective(name='rtd', share_embeddings=name) for name in ('full', 'gdes')}
_TABLES = ('word', 'position', 'token_type')


def _initial(settings: config.Objective, model: config.Model = MODEL) -> tuple[nnx.GraphDef, nnx.State]:
    """Returns a model whose parameters are away from zeros and ones."""
    graph, params = nnx.split(builder(settings)(model, VOCAB, nnx.Rngs(0)), nnx.Param)
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    return graph, tree.unflatten([leaf + 0.03 * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves])


@pytest.fixture(scope='module')
def batch(stream_of: Callable) -> Any:
    """Returns rows of one sequence each."""
    return stream_of('bert').batch(0)


def _generator_table(narrow: config.Model) -> list:
    layer, theirs = 'encoder/encoder/layers', 'electra.encoder.layer.#'
    return [
        *dense('encoder/embeddings/project', 'electra.embeddings_project'),
        *dense(f'{layer}/attention/query', f'{theirs}.attention.self.query'),
        *dense(f'{layer}/attention/key', f'{theirs}.attention.self.key'),
        *dense(f'{layer}/attention/value', f'{theirs}.attention.self.value'),
        *dense(f'{layer}/attention/output', f'{theirs}.attention.output.dense'),
        *norm(f'{layer}/attention_norm', f'{theirs}.attention.output.LayerNorm'),
        *dense(f'{layer}/intermediate', f'{theirs}.intermediate.dense'),
        *dense(f'{layer}/output', f'{theirs}.output.dense'),
        *norm(f'{layer}/output_norm', f'{theirs}.output.LayerNorm'),
        *dense('transform', 'generator_predictions.dense'),
        *norm('norm', 'generator_predictions.LayerNorm'),
        *vocabulary('bias', 'generator_lm_head.bias'),
        *vocabulary('encoder/embeddings/embeddings/word', 'electra.embeddings.word_embeddings.weight'),
        *same('encoder/embeddings/embeddings/position', 'electra.embeddings.position_embeddings.weight'),
        *same('encoder/embeddings/embeddings/token_type', 'electra.embeddings.token_type_embeddings.weight'),
        *norm('encoder/embeddings/embeddings/norm', 'electra.embeddings.LayerNorm'),
    ]


def _generator_tensors(tree: Any) -> dict[str, np.ndarray]:
    narrow = generator_model(MODEL, 1 / 3)
    return to_tensors(nnx.state(tree.generator, nnx.Param), narrow, VOCAB, _generator_table(narrow))


def _discriminator_tensors(tree: Any) -> dict[str, np.ndarray]:
    flat = dict(nnx.to_flat_state(nnx.state(tree.discriminator, nnx.Param)))
    flat |= {('detector', *path): leaf for path, leaf in nnx.to_flat_state(nnx.state(tree.detector, nnx.Param))}
    return to_tensors(nnx.from_flat_state(flat), MODEL, VOCAB, electra.TABLE)


def _reference(name: str, tensors: dict[str, np.ndarray]) -> Any:
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    sizes = generator_model(MODEL, 1 / 3) if name == 'ElectraForMaskedLM' else MODEL
    settings = transformers.ElectraConfig(
        vocab_size=VOCAB,
        embedding_size=MODEL.hidden_size,
        hidden_size=sizes.hidden_size,
        num_hidden_layers=2,
        num_attention_heads=sizes.num_heads,
        intermediate_size=sizes.intermediate_size,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = getattr(transformers, name)(settings)
    missing, unexpected = model.load_state_dict({k: torch.tensor(v) for k, v in tensors.items()}, strict=False)
    assert not unexpected and set(missing) <= {'generator_lm_head.weight', 'electra.embeddings.position_ids'}, missing
    model.tie_weights()
    return model.eval()


@pytest.mark.compiles
def test_losses_and_gradients_equal_those_of_transformers(batch: Any) -> None:
    torch = pytest.importorskip('torch')
    settings = SHARING['full']
    graph, params = _initial(settings)
    objective = objective_of(settings)
    key = DropoutKey(jnp.uint32(3), jnp.arange(len(batch.input_ids), dtype=jnp.uint32))

    @jax.jit
    def ours(params: nnx.State) -> tuple:
        def loss(params: nnx.State) -> tuple[jax.Array, Any]:
            model = nnx.merge(graph, params)
            sums = objective.sums(model, batch, key)
            hidden = model.generator.encode(batch.inputs)
            drawn = model.generator.sample(hidden, batch.masked_lm_positions, key.of_rows(15))
            return objective.loss(sums, objective.weights(batch)), (sums, corrupt(batch, drawn))

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, (sums, (corrupted, is_replaced))), grads = ours(params)
    assert 0 < sums.replaced <= sums.generator_weight
    model, gradient = nnx.merge(graph, params), nnx.merge(graph, grads)
    generator = _reference('ElectraForMaskedLM', _generator_tensors(model))
    discriminator = _reference('ElectraForPreTraining', _discriminator_tensors(model))
    discriminator.electra.embeddings = generator.electra.embeddings  # shared in full
    labels = np.full(batch.input_ids.shape, -100)
    rows = np.arange(len(labels))[:, None]
    labels[rows, batch.masked_lm_positions] = np.where(batch.masked_lm_weights > 0, batch.masked_lm_ids, -100)
    common = {
        'attention_mask': torch.tensor(batch.sequence_ids > 0).long(),
        'token_type_ids': torch.tensor(batch.token_type_ids).long(),
    }
    of_generator = generator(torch.tensor(batch.input_ids).long(), labels=torch.tensor(labels), **common).loss
    of_discriminator = discriminator(
        torch.tensor(np.asarray(corrupted)).long(), labels=torch.tensor(np.asarray(is_replaced)).float(), **common
    ).loss
    theirs = of_generator + 50 * of_discriminator
    theirs.backward()
    assert float(loss) == pytest.approx(theirs.detach().item(), rel=1e-5)
    for tensors, reference in (
        (_generator_tensors(gradient), generator),
        (_discriminator_tensors(gradient), discriminator),
    ):
        parameters = dict(reference.named_parameters())
        for name, value in tensors.items():
            expected = parameters[name].grad.numpy()
            assert np.abs(value - expected).max() <= 1e-5 * max(np.abs(expected).max(), 1.0), name


@pytest.mark.compiles
@pytest.mark.parametrize('family', ['bert', 'modernbert'])
def test_disentangled_embeddings_get_the_gradient_of_their_own_loss(batch: Any, family: str) -> None:
    model = dataclasses.replace(MODELS[family], dtype='float32')
    graph, params = _initial(SHARING['gdes'], model)
    objective = objective_of(SHARING['gdes'])

    @jax.jit
    def gradients(params: nnx.State) -> list[nnx.State]:
        def part(params: nnx.State, name: str) -> jax.Array:
            return getattr(objective.sums(nnx.merge(graph, params), batch, None), f'{name}_sum')

        return [jax.grad(part)(params, name) for name in ('generator', 'rtd')]

    own = ('bert', 'embeddings') if family == 'bert' else ('encoder', 'embeddings')
    tables = [name for name in _TABLES if family == 'bert' or name == 'word']
    for name, grads in zip(('generator', 'rtd'), gradients(params), strict=True):
        flat = {path: np.abs(np.asarray(leaf.get_value())).max() for path, leaf in nnx.to_flat_state(grads)}
        for table in tables:
            of_generator = flat['generator', 'encoder', 'embeddings', 'embeddings', table]
            of_difference = flat['discriminator', *own, table]
            assert (of_generator > 0, of_difference > 0) == (name == 'generator', name == 'rtd')


def test_whole_discriminator_has_the_sum_and_is_a_model_of_its_family(batch: Any) -> None:
    graph, params = _initial(SHARING['gdes'])
    model = nnx.merge(graph, params)
    word = model.discriminator.bert.embeddings.word[...] + model.generator.embeddings.word[...]
    exported = to_family(params, SHARING['gdes'], MODEL, VOCAB)
    np.testing.assert_array_equal(exported['bert']['embeddings']['word'].get_value(), word)
    layers = exported['bert']['encoder']['layers']['output']['kernel'].get_value()
    np.testing.assert_array_equal(layers, model.discriminator.bert.encoder.layers.output.kernel[...])
    assert {'mlm_transform', 'nsp'} <= exported.keys()  # new heads


def test_new_difference_is_zero() -> None:
    model = builder(SHARING['gdes'])(MODEL, VOCAB, nnx.Rngs(0))
    assert not any(np.asarray(getattr(model.discriminator.bert.embeddings, table)[...]).any() for table in _TABLES)
    assert np.asarray(model.generator.embeddings.word[...]).any()
    shared = builder(SHARING['full'])(MODEL, VOCAB, nnx.Rngs(0))
    assert shared.generator.embeddings is shared.discriminator.bert.embeddings


def test_draws_follow_the_distribution_and_belong_to_the_row() -> None:
    graph, params = _initial(SHARING['full'])
    generator, rows = nnx.merge(graph, params).generator, 4000
    hidden = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (1, 2, 16)), (rows, 2, 16)) * 10
    positions = jnp.broadcast_to(jnp.arange(2), (rows, 2))
    keys = DropoutKey(jnp.uint32(5), jnp.arange(rows, dtype=jnp.uint32)).of_rows(15)
    drawn = np.asarray(jax.jit(generator.sample)(hidden, positions, keys))
    probabilities = np.asarray(jax.nn.softmax(generator.mlm_logits(hidden[:1], positions[:1])))[0]
    for slot in range(2):
        likely = np.argsort(-probabilities[slot])[:20]
        expected = probabilities[slot][likely]
        found = np.array([(drawn[:, slot] == token).mean() for token in likely])
        assert (np.abs(found - expected) < 5 * np.sqrt(expected * (1 - expected) / rows)).all()
    np.testing.assert_array_equal(drawn[10:13], generator.sample(hidden[10:13], positions[10:13], keys[10:13]))
    assert drawn.max() < VOCAB


def test_hashed_noise_is_uniform_and_never_zero_or_one() -> None:
    values = np.asarray(uniform(jnp.arange(1 << 20, dtype=jnp.uint32), jnp.uint32(17)))
    assert 0 < values.min() and values.max() < 1
    assert abs(values.mean() - 0.5) < 5 * np.sqrt(1 / 12 / len(values))
    assert values.var() == pytest.approx(1 / 12, rel=0.01)


def test_drawn_tokens_replace_only_masked_ones_and_equal_ones_do_not_count(batch: Any) -> None:
    drawn = np.array(batch.masked_lm_ids)
    drawn[:, 0] = (drawn[:, 0] + 1) % VOCAB
    corrupted, is_replaced = map(np.asarray, corrupt(batch, jnp.asarray(drawn)))
    expected = np.array(batch.input_ids)
    real = batch.masked_lm_weights > 0
    rows = np.broadcast_to(np.arange(len(expected))[:, None], real.shape)
    expected[rows[real], batch.masked_lm_positions[real]] = drawn[real]
    np.testing.assert_array_equal(corrupted, expected)
    assert [*is_replaced.sum(axis=1)] == [*real[:, 0]]


@pytest.mark.parametrize('width, heads', [(1 / 3, 4), (0.25, 3), (0.01, 1), (1.0, 12)])
def test_generator_is_narrower_by_whole_heads(width: float, heads: int) -> None:
    narrow = generator_model(config.Bert(), width)
    assert (narrow.num_heads, narrow.hidden_size, narrow.intermediate_size) == (heads, 64 * heads, 256 * heads)
    assert narrow.num_layers == 12


def test_plan_counts_the_generator() -> None:
    changes = {'data.pairing': 'none', 'objective.generator_width': 0.5}
    runs = [planned_run('bert', **changes, **{'objective.name': name}) for name in ('mlm', 'rtd')]
    axes = {'data': 1, 'fsdp': 1, 'tensor': 1}
    plain, both = (estimate(run, axes) for run in runs)
    model, objective = runs[1].model, runs[1].objective
    assert both.parameters == num_parameters(model, 1000, build_of(objective)) > plain.parameters
    d, D, F, layers = 32, 64, 128, 3
    encoder = layers * (4 * d * d + 2 * d * F) + D * d
    tokens, predictions = 16 * 32, 16 * 5
    attention = 2 * layers * d * 32
    heads = predictions * (d * D + D * 1000) + tokens * (D * D + D)
    of_mlm = predictions * (D * D + D * 1000) + 16 * (D * D + 2 * D)
    expected = plain.flops_per_step + 6 * (tokens * (encoder + attention) + heads - of_mlm)
    assert both.flops_per_step == pytest.approx(expected)
    assert both.activation_bytes > 1.4 * plain.activation_bytes and both.optimizer_bytes == 2 * both.parameter_bytes + 8


def test_settings_that_do_not_fit_are_refused() -> None:
    values: dict[str, Any] = {'objective': {'name': 'rtd'}, 'data': {'pairing': 'none'}}
    phases = ({'steps': 1, 'warmup_steps': 0}, {'steps': 1, 'warmup_steps': 0, 'objective': 'mlm'})
    with pytest.raises(BadInput, match=r"config.phases\[1\].objective: is 'mlm', and other phases have 'rtd'"):
        config.resolve(values | {'phases': phases})
    with pytest.raises(BadInput, match='which family eurobert does not support'):
        config.resolve(values | {'model': {'family': 'eurobert'}})
    with pytest.raises(BadInput, match="config.init: is runs/x, and a run with objective 'rtd'"):
        config.resolve(values | {'init': 'runs/x'})
    with pytest.raises(BadInput, match='config.mesh.tensor: is 2, which does not divide the 1 heads of the generator'):
        objective_of(SHARING['full']).check(MODEL, 2)
