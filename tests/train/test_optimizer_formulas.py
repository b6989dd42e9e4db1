"""Optimizers equal their papers' formulas in float64 NumPy, on recorded gradients of a model of every family."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bert_jax import config
from bert_jax.runtime.mesh import make_mesh
from bert_jax.train.objectives.masked import MASKED_TOKENS
from bert_jax.train.optimizer import make_optimizer
from bert_jax.train.sharding import parameter_specs
from bert_jax.train.state import model_graph
from tests.support.families import initial_params
from tests.support.steps import FAMILIES, MODELS, VOCAB, open_stream

pytestmark = pytest.mark.compiles

# b2 is not 0.999, because 1 - 0.999 in float32 is already off by 1e-5.
SHARED = {
    'peak_learning_rate': 0.01,
    'warmup_steps': 0,
    'schedule': 'constant',
    'b1': 0.9,
    'b2': 0.98,
    'eps': 1e-6,
    'weight_decay': 0.1,
}
SETTINGS = {
    'adamw': config.Optimizer(name='adamw', clip_norm=0.5, **SHARED),
    'stableadamw': config.Optimizer(name='stableadamw', clip_norm=0.0, **SHARED),
    'lamb': config.Optimizer(name='lamb', clip_norm=0.5, **SHARED),
    'muon': config.Optimizer(name='muon', clip_norm=0.5, **SHARED),
}
GROWTH = (1.0, 3.0, 0.5, 10.0)  # of the recorded gradients, so that some updates are clipped


class Recorded(NamedTuple):
    """The parameters of a model, and the gradients of some batches at these parameters."""

    params: nnx.State
    gradients: list[nnx.State]


@pytest.fixture(scope='module', params=FAMILIES)
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    model = MODELS[request.param]
    stream, graph = open_stream(str(tmp_path_factory.mktemp('windows')), model), model_graph(model, VOCAB)

    @jax.jit
    def gradient(params: nnx.State, batch: object) -> nnx.State:
        weights = MASKED_TOKENS.weights(batch)
        return jax.grad(lambda p: MASKED_TOKENS.loss(MASKED_TOKENS.sums(nnx.merge(graph, p), batch, None), weights))(
            params
        )

    params = initial_params(model, VOCAB)
    batches = [jax.tree.map(jnp.asarray, stream.batch(step)) for step in range(len(GROWTH))]
    gradients = [
        jax.tree.map(functools.partial(jnp.multiply, factor), gradient(params, batch))
        for factor, batch in zip(GROWTH, batches, strict=True)
    ]
    return Recorded(params, gradients)


def _updated(settings: config.Optimizer, recorded: Recorded) -> nnx.State:
    optimizer = make_optimizer(settings, len(GROWTH))
    params, opt_state, update = recorded.params, optimizer.init(recorded.params), jax.jit(optimizer.update)
    for grads in recorded.gradients:
        updates, opt_state = update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
    return params


def _arrays(params: nnx.State) -> dict[str, np.ndarray]:
    """Returns the tensors by name, in float64; those of a stack by layer."""
    found = {}
    for path, leaf in jax.tree.leaves_with_path(params):
        name, value = jax.tree_util.keystr(path, simple=True, separator='.'), np.asarray(leaf, np.float64)
        layers = range(len(value)) if '.layers.' in name else [...]
        found |= {f'{name}{layer}': value[layer] for layer in layers}
    return found


# --- The formulas, for one tensor of one layer. ---


def _is_vector(name: str) -> bool:
    return 'bias' in name or 'norm' in name


def _is_hidden_matrix(name: str) -> bool:
    """Returns whether Muon updates a tensor: no embedding, decoder, bias, norm or classifier of pairs."""
    return '.kernel' in name and 'nsp' not in name


def _adam(grads: list[np.ndarray], s: config.Optimizer, nesterov: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Returns (update, corrected second moment) after the last gradient; nesterov: Dozat 2016."""
    mean, square, count = np.zeros(()), np.zeros(()), len(grads)
    for g in grads:
        mean, square = s.b1 * mean + (1 - s.b1) * g, s.b2 * square + (1 - s.b2) * g**2
    corrected, eps = mean / (1 - s.b1**count), s.eps
    if nesterov:
        corrected = s.b1 * mean / (1 - s.b1 ** (count + 1)) + (1 - s.b1) * grads[-1] / (1 - s.b1**count)
        eps = 1e-8
    second = square / (1 - s.b2**count)
    return corrected / (np.sqrt(second) + eps), second


def _adamw(name: str, x: np.ndarray, grads: list[np.ndarray], s: config.Optimizer) -> np.ndarray:
    """Loshchilov and Hutter 2019, algorithm 2."""
    return _adam(grads, s)[0] + s.weight_decay * x * (not _is_vector(name))


def _rms(grads: list[np.ndarray], s: config.Optimizer) -> float:
    return float(np.sqrt((grads[-1] ** 2 / np.maximum(_adam(grads, s)[1], s.eps**2)).mean()))


def _stableadamw(name: str, x: np.ndarray, grads: list[np.ndarray], s: config.Optimizer) -> np.ndarray:
    """Wortsman et al. 2023, algorithm 2."""
    return _adamw(name, x, grads, s) / max(1, _rms(grads, s))


def _lamb(name: str, x: np.ndarray, grads: list[np.ndarray], s: config.Optimizer) -> np.ndarray:
    """You et al. 2020, algorithm 2."""
    update = _adamw(name, x, grads, s)
    return update if _is_vector(name) else update * np.linalg.norm(x) / np.linalg.norm(update)


def _muon(name: str, x: np.ndarray, grads: list[np.ndarray], s: config.Optimizer) -> np.ndarray:
    """Jordan et al. 2024, with the scale of Liu et al. 2025, section 2.2; NAdamW for what is no hidden matrix."""
    decay, momentum, count = s.weight_decay * x * (not _is_vector(name)), np.zeros(()), len(grads)
    if not _is_hidden_matrix(name):
        return _adam(grads, s, nesterov=True)[0] + decay
    for g in grads:
        momentum = 0.95 * momentum + 0.05 * g
    y = 0.95 * momentum / (1 - 0.95 ** (count + 1)) + 0.05 * grads[-1] / (1 - 0.95**count)
    y = y / (np.linalg.norm(y) + 1e-8)
    for _ in range(5):
        a = y @ y.T if len(y) <= y.shape[1] else y.T @ y
        polynomial = 3.4445 * np.eye(len(a)) - 4.7750 * a + 2.0315 * a @ a
        y = polynomial @ y if len(y) <= y.shape[1] else y @ polynomial
    return 0.2 * np.sqrt(max(y.shape)) * y + decay


FORMULAS = {'adamw': _adamw, 'stableadamw': _stableadamw, 'lamb': _lamb, 'muon': _muon}


def _expected(name: str, recorded: Recorded) -> dict[str, np.ndarray]:
    settings, tensors = SETTINGS[name], _arrays(recorded.params)
    history = [_arrays(grads) for grads in recorded.gradients]
    for grads in history if settings.clip_norm else ():
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        grads.update({key: g * min(1, settings.clip_norm / norm) for key, g in grads.items()})
    for count in range(1, len(history) + 1):
        for key, x in tensors.items():
            update = FORMULAS[name](key, x, [grads[key] for grads in history[:count]], settings)
            tensors[key] = x - settings.peak_learning_rate * update
    return tensors


def _assert_close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float) -> None:
    """Compares tensors relative to their largest values."""
    for key, value in expected.items():
        assert np.abs(found[key] - value).max() <= tolerance * np.abs(value).max(), key


@pytest.mark.parametrize('name', ['adamw', 'stableadamw', 'lamb'])
def test_optimizer_equals_its_formula_within_a_millionth(recorded: Recorded, name: str) -> None:
    _assert_close(_arrays(_updated(SETTINGS[name], recorded)), _expected(name, recorded), 1e-6)


def test_muon_equals_its_formula_within_a_millionth_in_float64(recorded: Recorded) -> None:
    """In float32 the iteration multiplies rounding errors by up to 3.4445**5 = 485."""
    expected = _expected('muon', recorded)
    _assert_close(_arrays(_updated(SETTINGS['muon'], recorded)), expected, 1e-5)
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), recorded)
        _assert_close(_arrays(_updated(SETTINGS['muon'], exact)), expected, 1e-6)


def test_recorded_gradients_clip_some_stableadamw_updates_and_not_all(recorded: Recorded) -> None:
    history = [_arrays(grads) for grads in recorded.gradients]
    found = [_rms([grads[key] for grads in history], SETTINGS['stableadamw']) for key in history[0]]
    assert min(found) < 0.9 and max(found) > 1.5


def test_stableadamw_gives_the_same_parameters_on_any_mesh(recorded: Recorded) -> None:
    model = config.Bert(num_heads=4, hidden_size=32)
    mesh = make_mesh(config.Mesh(data=2, fsdp=2, tensor=2), model, config.Train(global_batch_size=8), jax.devices()[:8])
    place = functools.partial(jax.device_put, device=parameter_specs(recorded.params, mesh))
    placed = Recorded(place(recorded.params), [place(grads) for grads in recorded.gradients])
    settings = SETTINGS['stableadamw']
    _assert_close(_arrays(_updated(settings, placed)), _arrays(_updated(settings, recorded)), 2e-6)
