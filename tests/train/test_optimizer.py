"""Optimizers and schedules match the formulas of their papers in NumPy, or another implementation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bert_jax import config
from bert_jax.model.bert import BertForPreTraining
from bert_jax.runtime.mesh import make_mesh
from bert_jax.train.optimizer import decayed, make_optimizer, make_schedule
from bert_jax.train.state import state_shardings

pytestmark = pytest.mark.compiles

VOCAB = 300
MODEL = config.Bert(num_layers=2, hidden_size=32, num_heads=4, intermediate_size=64, max_positions=32)


@pytest.mark.parametrize(
    'schedule, at_10_60_90_100_110',
    [
        ('linear', [1.0, 0.5, 0.2, 0.1, 0.0]),
        ('cosine', [1.0] + [0.5 + 0.5 * np.cos(np.pi * (step - 10) / 100) for step in (60, 90, 100, 110)]),
        ('constant', [1.0] * 5),
        ('wsd', [1.0, 1.0, 1.0 - 2 / 22, 1.0 - 12 / 22, 0.0]),
        ('inverse_sqrt', [np.sqrt(10 / step) for step in (10, 60, 90, 100, 110)]),
    ],
)
def test_schedules_follow_their_formulas(schedule: str, at_10_60_90_100_110: list[float]) -> None:
    settings = config.Optimizer(peak_learning_rate=1.0, warmup_steps=10, schedule=schedule, decay_fraction=0.2)
    values = [float(make_schedule(settings, 110)(step)) for step in (0, 5, 10, 60, 90, 100, 110)]
    np.testing.assert_allclose(values, [1 / 11, (1 + 5) / 11, *at_10_60_90_100_110], atol=1e-6)


def _closed_form(settings: config.Optimizer, num_steps: int) -> np.ndarray:
    """The learning rate of each step in float64, from the formulas of the documentation."""
    peak, warmup, final = settings.peak_learning_rate, settings.warmup_steps, settings.final_fraction
    curves = {
        'linear': lambda t: final + (1 - final) * (1 - t),
        'cosine': lambda t: final + (1 - final) * (1 + np.cos(np.pi * t)) / 2,
        '1-sqrt': lambda t: final + (1 - final) * (1 - np.sqrt(t)),  # `OneMinusSqrtScheduler` of ModernBERT
        'inverse_sqrt': lambda t: 1 / np.sqrt(1 + t * (1 / final**2 - 1)),
    }
    curve, begin = settings.schedule, warmup
    if settings.schedule == 'wsd':
        curve = settings.decay
        begin = num_steps - (settings.decay_steps or round(settings.decay_fraction * num_steps))
    rates = []
    for step in range(num_steps):
        if step < warmup:
            rates.append(peak * (1 / (warmup + 1) + (1 - 1 / (warmup + 1)) * step / warmup))
        elif step < begin:
            rates.append(peak)
        else:
            rates.append(peak * curves[curve]((step - begin) / (num_steps - begin)))
    return np.array(rates)


@pytest.mark.parametrize('final', [0.0, 0.04, 0.5])
@pytest.mark.parametrize(
    'fields',
    [
        *({'schedule': name} for name in ('linear', 'cosine', '1-sqrt')),
        *({'schedule': 'wsd', 'decay': name, 'decay_steps': 700} for name in ('linear', 'cosine', '1-sqrt')),
        {'schedule': 'wsd', 'decay': 'inverse_sqrt', 'decay_steps': 700},
        {'schedule': 'wsd', 'decay': '1-sqrt', 'decay_fraction': 0.25},
    ],
)
def test_schedule_equals_its_closed_form_at_every_step(fields: dict, final: float) -> None:
    if fields.get('decay') == 'inverse_sqrt' and not final:
        pytest.skip('never reaches 0, which the config rejects')
    settings = config.Optimizer(peak_learning_rate=1.0, warmup_steps=100, final_fraction=final, **fields)
    found = jax.vmap(make_schedule(settings, 2000))(jnp.arange(2000))
    np.testing.assert_allclose(found, _closed_form(settings, 2000), rtol=0, atol=1e-6)


def test_decay_of_a_phase_starts_where_the_phase_before_ended() -> None:
    """Stable, then anneal: two phases have the rates of one run with the schedule wsd."""
    settings = config.Optimizer(peak_learning_rate=8e-4, warmup_steps=10, schedule='constant', final_fraction=0.02)
    run = config.resolve(
        {
            'optimizer': dataclasses.asdict(settings),
            'phases': [{'steps': 60}, {'steps': 40, 'warmup_steps': 0, 'schedule': '1-sqrt'}],
        }
    )
    in_phases = make_schedule(settings, 100, run.phases)
    whole = dataclasses.replace(settings, schedule='wsd', decay='1-sqrt', decay_steps=40)
    rates = [[float(schedule(step)) for step in range(100)] for schedule in (in_phases, make_schedule(whole, 100))]
    assert rates[0] == rates[1] and rates[0][59] == rates[0][60] == pytest.approx(8e-4)


@pytest.mark.parametrize('name', ['adamw', 'lamb', 'adafactor', 'muon'])
def test_weight_decay_of_phases_changes_the_state_only_if_it_differs(name: str) -> None:
    params = nnx.state(BertForPreTraining(MODEL, VOCAB, nnx.Rngs(0)), nnx.Param)
    settings = config.Optimizer(name=name, weight_decay=0.1)

    def structure(*phases: config.Phase) -> object:
        return jax.tree.structure(make_optimizer(settings, 4, phases).init(params))

    phase = config.Phase(steps=2, warmup_steps=0)
    same, differs = dataclasses.replace(phase, weight_decay=0.1), dataclasses.replace(phase, weight_decay=0.3)
    assert structure() == structure(phase, same) != structure(phase, differs)


def test_each_phase_decays_weights_by_its_own_rate() -> None:
    settings = config.Optimizer(peak_learning_rate=0.1, warmup_steps=0, schedule='constant', weight_decay=0.5)
    phases = tuple(
        config.Phase(steps=2, peak_learning_rate=0.1, warmup_steps=0, weight_decay=decay) for decay in (None, 0.0, 0.2)
    )
    params = nnx.State({'kernel': nnx.Param(jnp.array([[1.0, -2.0]]), logical_axes=('embed', 'mlp'))})
    optimizer = make_optimizer(settings, 6, phases)
    opt_state, grads = optimizer.init(params), jax.tree.map(jnp.zeros_like, params)
    found = []
    for _ in range(6):
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        found.append(float(params['kernel'].get_value()[0, 0]))
    np.testing.assert_allclose(found, np.cumprod([0.95, 0.95, 1, 1, 0.98, 0.98]), rtol=1e-6)


def test_weight_decay_excludes_biases_and_norms() -> None:
    params = nnx.state(BertForPreTraining(MODEL, VOCAB, nnx.Rngs(0)), nnx.Param)
    mask = jax.tree.leaves_with_path(decayed(params))
    for path, is_decayed in mask:
        name = jax.tree_util.keystr(path)
        assert is_decayed == ('bias' not in name and 'norm' not in name), name


@pytest.mark.slow
def test_muon_orthogonalizes_matrices_and_uses_adamw_elsewhere() -> None:
    settings = {'peak_learning_rate': 0.01, 'warmup_steps': 0, 'schedule': 'constant', 'weight_decay': 0.0}
    params = nnx.state(BertForPreTraining(MODEL, 256, nnx.Rngs(0)), nnx.Param)
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32), params)
    updates = {}
    muon = make_optimizer(config.Optimizer(name='muon', **settings), 10)
    adamw = optax.chain(optax.clip_by_global_norm(1.0), optax.nadamw(0.01, weight_decay=0.0))
    for name, optimizer in {'muon': muon, 'adamw': adamw}.items():
        updates[name], _ = optimizer.update(grads, optimizer.init(params), params)
    kernel = updates['muon']['bert']['encoder']['layers']['intermediate']['kernel'].get_value()
    for layer in np.asarray(kernel):  # [32, 64], with RMS 0.2 x learning rate
        singular = np.linalg.svd(layer, compute_uv=False)
        assert singular.max() / singular.min() < 2.5
        assert 0.5 < np.sqrt((layer**2).mean()) / (0.2 * 0.01) < 1.5
    for path in (('bert', 'embeddings', 'word'), ('mlm_bias',), ('bert', 'pooler', 'bias'), ('nsp', 'kernel')):
        ours, theirs = (functools.reduce(lambda tree, key: tree[key], path, updates[name]) for name in updates)
        np.testing.assert_allclose(ours.get_value(), theirs.get_value(), rtol=1e-5)


def _params_and_grads(model: config.Model, steps: int) -> tuple[nnx.State, list[nnx.State]]:
    params = nnx.state(BertForPreTraining(model, VOCAB, nnx.Rngs(0)), nnx.Param)
    rng = np.random.default_rng(0)
    return params, [
        jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32), params)
        for _ in range(steps)
    ]


def _run(settings: config.Optimizer, params: nnx.State, grads: list[nnx.State]) -> nnx.State:
    optimizer = make_optimizer(settings, 10)
    opt_state, update = optimizer.init(params), jax.jit(optimizer.update)
    for one in grads:
        updates, opt_state = update(one, opt_state, params)
        params = optax.apply_updates(params, updates)
    return params


def _leaves(params: nnx.State) -> dict[str, np.ndarray]:
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(params)}


@pytest.mark.slow
def test_adafactor_equals_another_implementation_layer_by_layer() -> None:
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    model = config.Bert(num_layers=2, hidden_size=128, num_heads=2, intermediate_size=256, max_positions=16)
    settings = config.Optimizer(
        name='adafactor', peak_learning_rate=0.01, warmup_steps=0, schedule='constant', clip_norm=1e9, weight_decay=0.0
    )
    before, grads = _params_and_grads(model, 3)
    found, start = _leaves(_run(settings, before, grads)), _leaves(before)
    steps = [_leaves(one) for one in grads]
    for name in (
        "['bert']['encoder']['layers']['intermediate']['kernel'].value",
        "['bert']['encoder']['layers']['output']['bias'].value",
        "['bert']['embeddings']['word'].value",
    ):
        [name] = [full for full in start if full.startswith(name.removesuffix('.value'))]
        for layer in range(2) if "['layers']" in name else [slice(None)]:
            x = torch.nn.Parameter(torch.tensor(start[name][layer]))
            reference = transformers.optimization.Adafactor(
                [x], lr=0.01, scale_parameter=True, relative_step=False, warmup_init=False
            )
            for step in steps:
                x.grad = torch.tensor(step[name][layer])
                reference.step()
            np.testing.assert_allclose(found[name][layer], x.detach().numpy(), rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize('name', ['adamw', 'stableadamw', 'lamb', 'adafactor', 'muon'])
def test_moments_are_sharded_like_their_parameters(name: str) -> None:
    mesh = make_mesh(config.Mesh(data=2, fsdp=2, tensor=2), MODEL, config.Train(global_batch_size=8), jax.devices()[:8])
    optimizer = make_optimizer(config.Optimizer(name=name), 10)
    shapes, shardings = state_shardings(MODEL, VOCAB, optimizer, mesh)
    by_shape = {}
    for leaf, sharding in zip(jax.tree.leaves(shapes.params), jax.tree.leaves(shardings.params), strict=True):
        by_shape.setdefault(leaf.shape, set()).add(sharding.spec)
    whole = [
        (leaf, sharding)
        for leaf, sharding in zip(jax.tree.leaves(shapes.opt_state), jax.tree.leaves(shardings.opt_state), strict=True)
        if leaf.ndim >= 2 and leaf.shape in by_shape and name != 'adafactor'
    ]
    assert name == 'adafactor' or whole
    assert all(sharding.spec in by_shape[leaf.shape] for leaf, sharding in whole)
