"""Checkpoints of the original release: their names and, if TensorFlow is installed, their files."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from bert_jax.__main__ import main
from bert_jax.config import Bert
from bert_jax.pretrained import google, tensor_names
from bert_jax.pretrained.bert import HUB
from bert_jax.pretrained.convert import read_source
from bert_jax.text.tokenizer import SPECIAL_TOKENS

TOKENS = [*SPECIAL_TOKENS, *'abcdefgh', *(f'##{c}' for c in 'abcdefgh'), 'Bad']
D, F, N = 16, 24, 20  # hidden, intermediate, positions


def original_tensors() -> dict[str, np.ndarray]:
    """Returns a model of two layers with the names and shapes of the original's modeling.py and run_pretraining.py."""
    rng = np.random.default_rng(0)
    shapes = {
        'bert/embeddings/word_embeddings': (len(TOKENS), D),
        'bert/embeddings/position_embeddings': (N, D),
        'bert/embeddings/token_type_embeddings': (2, D),
        'bert/pooler/dense/kernel': (D, D),
        'cls/predictions/transform/dense/kernel': (D, D),
        'cls/predictions/output_bias': (len(TOKENS),),
        'cls/seq_relationship/output_weights': (2, D),
        'cls/seq_relationship/output_bias': (2,),
    }
    for layer in (0, 1):
        name = f'bert/encoder/layer_{layer}'
        shapes |= {f'{name}/attention/self/{part}/kernel': (D, D) for part in ('query', 'key', 'value')}
        shapes[f'{name}/attention/output/dense/kernel'] = (D, D)
        shapes[f'{name}/intermediate/dense/kernel'] = (D, F)
        shapes[f'{name}/output/dense/kernel'] = (F, D)
        for norm in (f'{name}/attention/output/LayerNorm', f'{name}/output/LayerNorm'):
            shapes |= {f'{norm}/gamma': (D,), f'{norm}/beta': (D,)}
    for norm in ('bert/embeddings/LayerNorm', 'cls/predictions/transform/LayerNorm'):
        shapes |= {f'{norm}/gamma': (D,), f'{norm}/beta': (D,)}
    shapes |= {n.replace('kernel', 'bias'): shape[-1:] for n, shape in shapes.items() if n.endswith('kernel')}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def write_directory(directory: Path) -> Path:
    """Writes the directory of an original checkpoint without its tensors."""
    content = {
        'attention_probs_dropout_prob': 0.1,
        'hidden_act': 'gelu',
        'hidden_dropout_prob': 0.1,
        'hidden_size': D,
        'initializer_range': 0.02,
        'intermediate_size': F,
        'max_position_embeddings': N,
        'num_attention_heads': 2,
        'num_hidden_layers': 2,
        'type_vocab_size': 2,
        'vocab_size': len(TOKENS),
    }
    directory.mkdir()
    (directory / 'bert_config.json').write_text(json.dumps(content))
    (directory / 'vocab.txt').write_text(''.join(f'{token}\n' for token in TOKENS))
    return directory


def test_every_original_name_maps_to_a_parameter() -> None:
    stored = original_tensors()
    model = Bert(num_layers=2, hidden_size=D, num_heads=2, intermediate_size=F, max_positions=N)
    params = tensor_names.from_tensors(google.to_hugging_face(stored), model, len(TOKENS), 'original')
    layers = params['bert']['encoder']['layers']
    np.testing.assert_array_equal(  # kernels are [in, out], as ours
        layers['output']['kernel'][1], stored['bert/encoder/layer_1/output/dense/kernel']
    )
    np.testing.assert_array_equal(params['nsp']['kernel'][...].T, stored['cls/seq_relationship/output_weights'])
    np.testing.assert_array_equal(params['mlm_norm']['scale'], stored['cls/predictions/transform/LayerNorm/gamma'])
    assert sum(value.size for value in stored.values()) == sum(
        value.size for value in tensor_names.to_tensors(params, model, len(TOKENS)).values()
    )


@pytest.mark.skipif(importlib.util.find_spec('tensorflow') is not None, reason='TensorFlow is installed')
def test_without_tensorflow_the_message_names_the_extra(tmp_path: Path, capsys) -> None:
    directory = write_directory(tmp_path / 'google')
    (directory / 'bert_model.ckpt.index').write_bytes(b'')
    assert main(['bert_jax', 'import', f'--from={directory}', f'--workdir={tmp_path}/workdir']) == 2
    assert "pip install -e '.[google]'" in capsys.readouterr().err
    assert not (tmp_path / 'workdir').exists()


def test_directory_without_a_checkpoint_is_rejected(tmp_path: Path, capsys) -> None:
    directory = write_directory(tmp_path / 'google')
    assert main(['bert_jax', 'import', f'--from={directory}', f'--workdir={tmp_path}/workdir']) == 2
    assert 'no *.index file' in capsys.readouterr().err


def test_checkpoint_is_read_exactly_without_its_optimizer_state(tmp_path: Path, capsys) -> None:
    tensorflow = pytest.importorskip('tensorflow')
    directory, stored = write_directory(tmp_path / 'google'), original_tensors()
    moments = {f'{name}/adam_{which}': np.zeros_like(value) for name, value in stored.items() for which in 'mv'}
    saved = stored | moments | {'global_step': np.int64(7)}
    tensorflow.raw_ops.SaveV2(
        prefix=str(directory / 'bert_model.ckpt'),
        tensor_names=list(saved),
        shape_and_slices=[''] * len(saved),
        tensors=[tensorflow.constant(value) for value in saved.values()],
    )
    read = read_source(str(directory))
    found = tensor_names.to_tensors(nnx.state(read.model, nnx.Param), read.config, len(TOKENS))
    by_our_names, problems = tensor_names._with_current_names(google.to_hugging_face(stored), HUB, read.config)
    assert not problems and found.keys() == by_our_names.keys()
    for name, value in by_our_names.items():
        np.testing.assert_array_equal(found[name], value)
    assert not read.tokenizer.lowercase  # 'Bad' has a capital letter
    data = directory / 'bert_model.ckpt.data-00000-of-00001'
    data.write_bytes(data.read_bytes()[:500])
    capsys.readouterr()
    assert main(['bert_jax', 'import', f'--from={directory}', f'--workdir={tmp_path}/workdir']) == 2
    assert 'bert_model.ckpt.*: cannot be read' in capsys.readouterr().err
    assert not (tmp_path / 'workdir').exists()
