"""A run can start from a smaller model of its family: its weights are tiled from the middle, in depth and width."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.model.family import build_model
from bert_jax.model.inputs import Inputs
from bert_jax.model.layers import logical_axes
from bert_jax.pretrain import pretrain
from bert_jax.pretrained.initialize import pretraining_start
from bert_jax.pretrained.load import Pretrained
from bert_jax.pretrained.tiling import enlarged
from bert_jax.text.prepare import prepare
from tests.support.configs import TINY, as_config, tiny_run
from tests.support.families import initial_params
from tests.support.models import Vocabulary
from tests.support.runs import metric_lines, metrics
from tests.support.texts import WORDS

pytestmark = [pytest.mark.compiles, pytest.mark.usefixtures('one_device')]

VOCAB_SIZE = 50
BEFORE_DECODER = {'bert': 'mlm_norm', 'modernbert': 'head/norm', 'eurobert': 'encoder/final_norm'}
SMALL = {'num_layers': 3, 'hidden_size': 32, 'num_heads': 4, 'intermediate_size': 40, 'max_positions': 24}
LARGE = {'num_layers': 5, 'hidden_size': 56, 'num_heads': 7, 'intermediate_size': 72, 'max_positions': 24}
GROUPED = {'num_key_value_heads': 2}, {'num_heads': 9, 'hidden_size': 72, 'num_key_value_heads': 3}
SIZES = [
    (config.Bert(**SMALL), config.Bert(**LARGE)),
    (config.Bert(**SMALL), config.Bert(**SMALL | {'num_layers': 12})),
    (config.ModernBert(**SMALL), config.ModernBert(**LARGE)),
    (config.ModernBert(**SMALL, norm_bias=True), config.ModernBert(**SMALL | {'intermediate_size': 100})),
    (config.EuroBert(**SMALL, tie_word_embeddings=True), config.EuroBert(**LARGE)),
    (config.EuroBert(**SMALL, **GROUPED[0]), config.EuroBert(**LARGE | GROUPED[1])),
    (config.EuroBert(**SMALL), config.EuroBert(**SMALL | {'num_heads': 8, 'hidden_size': 64}, num_key_value_heads=4)),
]


def _pad(array: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Continues an axis to both sides with its own values, as NumPy wraps around."""
    missing = size - array.shape[axis]
    widths = [(0, 0)] * array.ndim
    widths[axis] = (missing // 2, missing - missing // 2)
    return np.pad(array, widths, mode='wrap')


def _tile(array: np.ndarray, path: str, axes: tuple[str, ...], small: Any, large: Any) -> np.ndarray:
    """States the rule for one parameter: whole layers, whole heads in whole groups, and single features."""
    is_shared = '/key/' in path or '/value/' in path
    for axis, name in enumerate(axes):
        if name == 'layers':
            sources = [min(round(i * small.num_layers / large.num_layers), small.num_layers - 1) for i in range(99)]
            array = array[sources[: large.num_layers]]
        elif name in ('embed', 'pooled', 'norm'):
            array = _pad(array, axis, large.hidden_size)
        elif name == 'mlp':
            array = _pad(array, axis, large.intermediate_size)
        elif name == 'heads':
            head_size = small.hidden_size // small.num_heads
            members, grown = (1 if is_shared else each.num_heads // each.num_kv_heads for each in (small, large))
            before, after = array.shape[:axis], array.shape[axis + 1 :]
            array = array.reshape(*before, small.num_kv_heads, members, head_size, *after)
            array = _pad(_pad(array, axis, large.num_kv_heads), axis + 1, grown).reshape(*before, -1, *after)
    return array


def _model_of(params: nnx.State, model: config.Model) -> Any:
    return nnx.merge(nnx.split(nnx.eval_shape(lambda: build_model(model, VOCAB_SIZE, nnx.Rngs(0))))[0], params)


@pytest.mark.parametrize('small, large', SIZES, ids=lambda model: model.family)
def test_weights_are_tiled_from_the_middle(small: config.Model, large: config.Model) -> None:
    params = initial_params(small, VOCAB_SIZE)
    tiled = enlarged(Pretrained(_model_of(params, small), Vocabulary(VOCAB_SIZE), small, 0), large)
    for name in ('num_layers', 'hidden_size', 'num_heads', 'num_kv_heads', 'intermediate_size'):
        assert getattr(tiled.config, name) == getattr(large, name)
    expected = nnx.state(nnx.eval_shape(lambda: build_model(tiled.config, VOCAB_SIZE, nnx.Rngs(0))), nnx.Param)
    found, theirs = nnx.to_flat_state(nnx.state(tiled.model, nnx.Param)), dict(nnx.to_flat_state(params))
    assert jax.tree.map(np.shape, dict(found)) == jax.tree.map(np.shape, dict(nnx.to_flat_state(expected)))
    for path, variable in found:
        name, axes = '/'.join(map(str, path)), logical_axes(variable)
        value = _tile(np.asarray(theirs[path][...]), name, axes, small, large)
        if name.endswith('kernel'):
            num_in = small.intermediate_size if 'mlp' in axes[-2] else small.hidden_size
            value = value * np.float32(num_in / value.shape[-2])
        elif name.startswith(BEFORE_DECODER[small.family]):
            value = value * np.float32(small.hidden_size / large.hidden_size)
        np.testing.assert_allclose(variable[...], value, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize('small', [config.Bert(**SMALL), config.ModernBert(**SMALL), config.EuroBert(**SMALL)])
def test_model_of_twice_the_width_computes_the_same(small: config.Model) -> None:
    large = dataclasses.replace(small, hidden_size=64, num_heads=8, intermediate_size=80)
    model = _model_of(initial_params(small, VOCAB_SIZE), small)
    tiled = enlarged(Pretrained(model, Vocabulary(VOCAB_SIZE), small, 0), large).model
    ids = np.random.default_rng(0).integers(0, VOCAB_SIZE, (3, 20))
    positions = np.broadcast_to(np.arange(20), ids.shape)
    inputs = Inputs(ids, np.zeros_like(ids), np.ones_like(ids), positions)
    logits = [each.mlm_logits(each.encode(inputs), positions)[..., :VOCAB_SIZE] for each in (model, tiled)]
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-4)


def test_numpy_wraps_as_the_published_example() -> None:
    """The test of tile_weights_from_middle in AnswerDotAI/ModernBERT, a vector of 3 to 8 and rows of 2 to 4."""
    assert _pad(np.array([1, 2, 3]), 0, 8).tolist() == [2, 3, 1, 2, 3, 1, 2, 3]
    assert _pad(np.array([[1, 2], [3, 4]]), 1, 4).tolist() == [[2, 1, 2, 1], [4, 3, 4, 3]]


def _write_predictable_text(path: Path) -> None:
    """Writes documents in which few words are frequent, and one word mostly follows another."""
    rng = np.random.default_rng(0)
    chances = 1 / np.arange(1, 41) ** 1.5
    following = rng.permutation(40)
    words, word = [], 0
    for _ in range(9600):
        word = following[word] if rng.random() < 0.5 else rng.choice(40, p=chances / chances.sum())
        words.append(WORDS[word])
    lines = [' '.join(words[start : start + 8]) + '.' for start in range(0, len(words), 8)]
    path.write_text('\n\n'.join('\n'.join(lines[start : start + 10]) for start in range(0, len(lines), 10)) + '\n')


@pytest.fixture(scope='module', params=['bert', 'modernbert', 'eurobert'])
def trained(request: pytest.FixtureRequest, one_device: None, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Returns the fields of a run of a small model that has learned something; its workdir is `init`."""
    directory = tmp_path_factory.mktemp('small')
    _write_predictable_text(directory / 'text.txt')
    fields = tiny_run(
        directory,
        model__family=request.param,
        data__pairing='none',
        data__packing=True,
        train__steps=100,
        train__global_batch_size=32,
        train__examples=(),
        optimizer__peak_learning_rate=1e-2,
    )
    prepare(as_config(fields).data, as_config(fields).tokenizer, progress=False)
    assert pretrain(as_config(fields), str(directory / 'run')).finished
    return fields | {'init': str(directory / 'run')}


LARGER = {
    'model.num_layers': 2,
    'model.hidden_size': 24,
    'model.num_heads': 3,
    'model.intermediate_size': 48,
    'train.steps': 2,
    'optimizer.warmup_steps': 1,
    'init_larger': True,
}


def test_larger_run_starts_well_below_random_weights_and_logs_it(trained: dict, tmp_path: Path, capsys) -> None:
    resolved = as_config(trained | LARGER)
    assert pretrain(resolved, str(tmp_path / 'larger')).finished
    printed = capsys.readouterr().err
    assert 'Initialized from a smaller model: 1 layers of 16 to 2 of 24' in printed and 'step 0: held-out' in printed
    first = metric_lines(tmp_path / 'larger')[0]
    assert first['step'] == 0
    random = as_config(trained | LARGER | {'init': '', 'init_larger': False, 'train.evaluate_every': 1})
    random = dataclasses.replace(random, optimizer=dataclasses.replace(random.optimizer, peak_learning_rate=1e-9))
    assert pretrain(random, str(tmp_path / 'random')).finished
    loss = metrics(tmp_path / 'random')[1]['validation/mlm_loss']
    assert first['validation/mlm_loss'] < loss - 0.3
    recorded = json.loads((tmp_path / 'larger' / 'config.json').read_text())
    assert recorded['config']['model']['hidden_size'] == 24 and recorded['fingerprint']['init_larger']


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'model.hidden_size': 8, 'model.num_heads': 1}, 'has hidden_size=16, and config.model has 8'),
        ({name: TINY[name] for name in LARGER if name in TINY and name.startswith('model.')}, 'has the sizes'),
        ({'model.hidden_size': 24, 'model.num_heads': 2}, 'heads of size 8; those of config.model have 12'),
        ({'init': ''}, 'config.init names no model'),
        ({'init_optimizer': True}, 'moments of other shapes'),
    ],
)
def test_unsuitable_sizes_are_rejected_before_anything_is_written(
    trained: dict, tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        pretrain(as_config(trained | LARGER | changes), str(tmp_path / 'larger'))
    assert not (tmp_path / 'larger').exists()


def test_other_family_is_rejected(trained: dict, tmp_path: Path) -> None:
    other = 'bert' if trained['model.family'] != 'bert' else 'eurobert'
    with pytest.raises(BadInput, match='the same family'):
        pretraining_start(as_config(trained | LARGER | {'model.family': other}), str(tmp_path / 'larger'))


def test_sizes_of_a_run_are_those_of_its_initial_model_by_default(trained: dict, tmp_path: Path) -> None:
    start = pretraining_start(as_config(trained | LARGER | {'init_larger': False}), str(tmp_path / 'same'))
    assert start.config.model.hidden_size == 16 and start.config.model.num_layers == 1


def test_run_that_starts_over_logs_its_initial_loss_once(trained: dict, tmp_path: Path) -> None:
    resolved = as_config(trained | LARGER)
    assert pretrain(resolved, str(tmp_path / 'larger')).finished
    lines = metric_lines(tmp_path / 'larger')
    for checkpoint in (tmp_path / 'larger' / 'checkpoints').iterdir():  # as if it was killed before its first save
        shutil.rmtree(checkpoint)
    assert pretrain(resolved, str(tmp_path / 'larger')).resumed_from is None
    assert metric_lines(tmp_path / 'larger') == lines and [line['step'] for line in lines].count(0) == 1
