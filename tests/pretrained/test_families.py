"""ModernBERT and EuroBERT directories of `transformers` are imported, used, exported and fine-tuned."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

import bert_jax
from bert_jax import config
from bert_jax.__main__ import main
from bert_jax.config.families import FULL, SLIDING
from bert_jax.errors import BadInput
from bert_jax.finetune import heads
from bert_jax.finetune.predict import forward
from bert_jax.pretrained import hugging_face
from bert_jax.pretrained.families import HUB_FAMILIES, hub_of
from bert_jax.pretrained.hub import TASK_CLASSES
from bert_jax.text.tokenizer import train_tokenizer
from bert_jax.text.vocabulary import encode_with_masks
from bert_jax.train.state import model_of
from tests.support.commands import run
from tests.support.documents import run_snippet
from tests.support.models import TOKENS, Vocabulary, read_tokenizer
from tests.support.processes import ROOT

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
pytestmark = pytest.mark.compiles

SPARE_ROWS = 6
SIZES = {
    'vocab_size': len(TOKENS) + SPARE_ROWS,
    'hidden_size': 32,
    'intermediate_size': 40,
    'num_hidden_layers': 3,
    'num_attention_heads': 4,
    'max_position_embeddings': 48,
    'pad_token_id': 0,
    'bos_token_id': 2,
    'eos_token_id': 3,
}
MODELS = {  # class, settings
    'modernbert': ('ModernBertForMaskedLM', {'cls_token_id': 2, 'sep_token_id': 3, 'local_attention': 8}),
    'modernbert encoder': ('ModernBertModel', {'cls_token_id': 2, 'sep_token_id': 3, 'local_attention': 8}),
    'modernbert with biases': (
        'ModernBertForMaskedLM',
        {'norm_bias': True, 'attention_bias': True, 'mlp_bias': True, 'classifier_bias': True, 'decoder_bias': False},
    ),
    'eurobert': ('EuroBertForMaskedLM', {'num_key_value_heads': 2, 'mask_token_id': 4}),
    'eurobert encoder': ('EuroBertModel', {'num_key_value_heads': 4, 'mask_token_id': 4}),
    'eurobert tied': ('EuroBertForMaskedLM', {'tie_word_embeddings': True, 'mlp_bias': True, 'mask_token_id': 4}),
}


def save_model(directory: Path, name: str, dtype: Any = None) -> Any:
    """Writes a random model of `transformers` with a tokenizer, and returns it."""
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    kind, settings = MODELS[name]
    prefix = 'ModernBert' if kind.startswith('Modern') else 'EuroBert'
    model = getattr(transformers, kind)(getattr(transformers, f'{prefix}Config')(**SIZES, **settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # a swapped tensor changes the output
            parameter.add_(0.1 * torch.randn_like(parameter))
    if dtype is not None:
        model = model.to(dtype)
    model.save_pretrained(directory)
    read_tokenizer(directory)
    return model


def _files(directory: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    tensors = load_file(directory / 'model.safetensors')
    return {name: (str(value.dtype), value.shape, value.tobytes()) for name, value in tensors.items()}


@pytest.mark.parametrize('name', MODELS)
def test_import_then_export_returns_every_tensor_byte_for_byte(name: str, tmp_path: Path, capsys) -> None:
    dtype = torch.bfloat16 if name == 'modernbert' else None
    save_model(tmp_path / 'model', name, dtype)
    workdir, export = tmp_path / 'workdir', tmp_path / 'export'
    assert main(['bert_jax', 'import', f'--from={tmp_path}/model', f'--workdir={workdir}', '--json']) == 0
    assert json.loads(capsys.readouterr().out)['unused_rows'] == SPARE_ROWS
    assert main(['bert_jax', 'export', f'--workdir={workdir}', f'--output={export}', '--json']) == 0
    proof = json.loads(capsys.readouterr().out)
    assert proof['compared_with'] == f'transformers {MODELS[name][0]}'
    found = _files(export)
    prefix = '' if MODELS[name][0].endswith('LM') else 'model.'
    assert found == {prefix + tensor: content for tensor, content in _files(tmp_path / 'model').items()}
    settings = json.loads((export / 'config.json').read_text())
    assert settings['vocab_size'] == len(TOKENS) + SPARE_ROWS and settings['pad_token_id'] == 0
    run_snippet(export)


def test_exported_byte_level_bpe_gives_ids_and_no_token_types(tmp_path: Path) -> None:
    directory, text = tmp_path / 'model', 'the \u4e16\u754c film [MASK]'
    tokenizer = train_tokenizer(config.Tokenizer(kind='bpe', vocab_size=320), iter(['the film in the town'] * 9))
    settings = MODELS['modernbert'][1] | SIZES | {'vocab_size': 384}
    transformers.ModernBertForMaskedLM(transformers.ModernBertConfig(**settings)).save_pretrained(directory)
    tokenizer.save(directory)
    assert run(['import', f'--from={directory}', '--workdir=run'], tmp_path) == 0
    assert run(['export', '--workdir=run', '--output=export'], tmp_path) == 0
    encoded = transformers.AutoTokenizer.from_pretrained(tmp_path / 'export')(text)
    assert encoded.keys() == {'input_ids', 'attention_mask'}
    assert encoded['input_ids'] == encode_with_masks(tokenizer, text).tolist()
    assert len(bert_jax.load_pretrained(str(tmp_path / 'export')).fill_mask(text)[0]) == 5


@pytest.mark.parametrize('name', ['modernbert', 'eurobert'])
def test_loaded_model_fills_masks_and_embeds_as_transformers_does(name: str, tmp_path: Path) -> None:
    reference = save_model(tmp_path, name)
    ours = bert_jax.load_pretrained(str(tmp_path))
    text = ' '.join(['film', 'the', 'town'] * 5)  # longer than the local window
    encoded = ours.encode([text])
    ids = torch.tensor(encoded.input_ids)
    with torch.no_grad():
        theirs = reference(input_ids=ids, output_hidden_states=True)
        logits = reference(input_ids=torch.where(ids == ids[0, 1], 4, ids)).logits[0]
    expected = theirs.hidden_states[-1][0].numpy()
    np.testing.assert_allclose(encoded.token_vectors[0], expected, atol=1e-5 * np.abs(expected).max())
    fillers = ours.fill_mask(text.replace('film', '[MASK]'), top_k=len(TOKENS))
    masked = [place for place in range(ids.shape[1]) if ids[0, place] == ids[0, 1]]
    for found, place in zip(fillers, masked, strict=True):
        probabilities = logits[place].softmax(-1).numpy()
        scores = {ours.tokenizer.tokens.index(filler.token): filler.score for filler in found}
        np.testing.assert_allclose([scores[i] for i in range(len(TOKENS))], probabilities[: len(TOKENS)], atol=1e-5)


# --- Fine-tuned models. ---

OUTPUTS = {'classification': 3, 'regression': 1, 'ranking': 1, 'tagging': 4, 'spans': 2}
TASKS = [
    (model, kind)
    for model in (
        config.ModernBert(classifier_pooling='cls', classifier_bias=True, local_attention=8),
        config.ModernBert(classifier_pooling='mean', local_attention=8),
        *(config.EuroBert(num_key_value_heads=2, classifier_pooling=pooling) for pooling in ('bos', 'mean', 'late')),
    )
    for kind in OUTPUTS
    if kind in HUB_FAMILIES[model.family].tasks and (kind in heads.POOLED or model.family == 'modernbert')
]


@pytest.mark.parametrize('model, kind', TASKS)
def test_outputs_of_fine_tuned_models_equal_transformers(model: config.Model, kind: str, tmp_path: Path) -> None:
    sizes = {'num_layers': 2, 'hidden_size': 32, 'num_heads': 4, 'intermediate_size': 40, 'max_positions': 48}
    model = dataclasses.replace(model, **sizes)
    build, rng = heads.builder(kind, OUTPUTS[kind]), np.random.default_rng(0)
    shapes = nnx.state(nnx.eval_shape(lambda: build(model, 60, nnx.Rngs(0))), nnx.Param)
    params = nnx.from_flat_state(
        {
            path: leaf.replace(jnp.asarray(0.3 * rng.standard_normal(leaf.get_value().shape), jnp.float32))
            for path, leaf in nnx.to_flat_state(shapes)
        }
    )
    architecture = hub_of(model).task_class(kind)
    more = {'num_labels': OUTPUTS[kind]} | ({'problem_type': 'regression'} if kind == 'regression' else {})
    hugging_face.write_model(tmp_path, params, model, Vocabulary(60), architecture, more)
    reference = getattr(transformers, architecture).from_pretrained(tmp_path, attn_implementation='eager').eval()
    ids = rng.integers(5, 60, (2, 20)).astype(np.int32)
    present = (np.arange(20) < [[20], [13]]).astype(np.int32)
    with torch.no_grad():
        out = reference(input_ids=torch.tensor(ids).long(), attention_mask=torch.tensor(present).long())
    expected = np.stack([out.start_logits, out.end_logits], -1) if kind == 'spans' else out.logits.numpy()
    found = np.asarray(forward(*nnx.split(model_of(params, model, 60, build)), ids, np.zeros_like(ids), present))
    where = slice(None) if kind in heads.POOLED else present.astype(bool)
    np.testing.assert_allclose(found[where], expected[where], atol=1e-5 * np.abs(expected).max())


# --- config.json. ---


def test_both_spellings_of_config_keys_are_written_and_read(tmp_path: Path) -> None:
    model = config.ModernBert(
        num_layers=4, vocab_size=60, global_rope_theta=5e4, layer_types=(FULL, SLIDING) * 2, dtype='float32'
    )
    content = hugging_face.model_json(model, Vocabulary(60))
    assert hugging_face.parse_model_json(content, tmp_path) == model
    new = {key: value for key, value in content.items() if 'global' not in key and 'local_rope' not in key}
    assert hugging_face.parse_model_json(new, tmp_path) == model
    old = {key: value for key, value in content.items() if key not in ('rope_parameters', 'layer_types')}
    assert hugging_face.parse_model_json(old, tmp_path) == dataclasses.replace(model, layer_types=())
    same = old | {'local_rope_theta': None}
    assert hugging_face.parse_model_json(same, tmp_path).local_rope_theta == 5e4
    euro = config.EuroBert(vocab_size=60, rope_theta=5e4, num_key_value_heads=4, dtype='float32')
    content = hugging_face.model_json(euro, Vocabulary(60))
    for absent in ('rope_theta', 'rope_parameters'):
        left = {key: value for key, value in content.items() if key != absent}
        assert hugging_face.parse_model_json(left, tmp_path) == euro


def _set(**changes: object) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda content: content | changes


@pytest.mark.parametrize(
    'name, change, words',
    [
        ('modernbert', _set(layer_types=[FULL]), r'layer_types has 1 layer types.*one for each of the 3 layers'),
        ('modernbert', _set(layer_types=['chunked'] * 3), r"layer_types is \('chunked'"),
        ('modernbert', _set(rope_parameters={FULL: {'rope_type': 'yarn'}}), "rope_type is 'yarn'.*'default'"),
        ('modernbert', _set(rope_parameters=[1]), 'rope_parameters is'),
        ('modernbert', _set(hidden_activation='relu'), "hidden_activation is 'relu'"),
        ('modernbert', _set(num_attention_heads=5), 'num_heads is 5, which does not divide'),
        ('modernbert', _set(model_type='nomic_bert'), "model_type is 'nomic_bert'.*bert, modernbert, eurobert"),
        ('modernbert', _set(model_type=['bert']), "model_type is .'bert'"),
        ('modernbert', _set(local_attention='wide'), "local_attention is 'wide'"),
        ('eurobert', _set(rope_scaling={'type': 'linear'}), 'rope_scaling is'),
        ('modernbert', _set(rope_scaling={'type': 'linear'}), 'rope_scaling is'),
        ('modernbert', _set(rope_parameters={FULL: {'type': 'linear'}}), "rope_type is 'linear'"),
        ('eurobert', _set(rope_parameters={'rope_type': 'llama3'}), "rope_type is 'llama3'"),
        ('eurobert', _set(head_dim=16), 'head_dim is 16.*8'),
        ('eurobert', _set(num_key_value_heads=3), 'num_key_value_heads is 3, which does not divide'),
        ('eurobert', _set(classifier_pooling='max'), "classifier_pooling is 'max'"),
    ],
)
def test_unsupported_config_is_rejected_by_its_key(name: str, change: Callable, words: str, tmp_path: Path) -> None:
    save_model(tmp_path, name)
    path = tmp_path / 'config.json'
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(BadInput) as raised:
        hugging_face.read_model_json(tmp_path)
    assert re.search(words, str(raised.value), re.DOTALL), str(raised.value)
    assert str(path) in str(raised.value)


def test_weights_of_another_family_are_rejected_and_nothing_written(tmp_path: Path, capsys) -> None:
    save_model(tmp_path / 'model', 'eurobert')
    save_model(tmp_path / 'other', 'modernbert')
    (tmp_path / 'other' / 'config.json').rename(tmp_path / 'model' / 'config.json')
    assert main(['bert_jax', 'import', f'--from={tmp_path}/model', f'--workdir={tmp_path}/workdir']) == 2
    error = capsys.readouterr().err
    assert 'model.embeddings.tok_embeddings.weight: missing' in error and 'lm_head.weight: not a tensor' in error
    assert not (tmp_path / 'workdir').exists()


def test_every_task_class_exists_in_transformers() -> None:
    for hub in HUB_FAMILIES.values():
        for kind in TASK_CLASSES:
            assert hasattr(transformers, hub.task_class(kind)) == (kind in hub.tasks)


# --- Continued pretraining. ---


@pytest.mark.slow
@pytest.mark.parametrize('name', ['modernbert', 'eurobert'])
def test_training_continues_with_added_tokens_and_longer_rows(name: str, tmp_path: Path, one_device: None) -> None:
    save_model(tmp_path / 'model', name)
    sentences = ['the film is in the town xyz.', 'who is the actor in the plot xyz?'] * 4
    (tmp_path / 'text.txt').write_text('\n\n'.join('\n'.join(sentences) for _ in range(20)) + '\n')
    (tmp_path / 'words.txt').write_text('xyz\n')
    settings = {
        'init': 'model',
        'data.source': 'text:text.txt',
        'data.corpus': 'corpus',
        'data.pairing': 'none',
        'data.packing': True,
        'data.sequence_length': 64,
        'tokenizer.add_tokens': 'words.txt',
        'train.steps': 3,
        'train.global_batch_size': 4,
        'train.evaluate_every': 0,
        'optimizer.warmup_steps': 1,
    }
    flags = [f'--config={ROOT}/configs/continue.py', *(f'--config.{name}={value}' for name, value in settings.items())]
    assert run(['prepare', *flags], tmp_path) == 0
    assert run(['train', *flags, '--workdir=run'], tmp_path) == 0
    assert run(['export', '--workdir=run', '--output=export'], tmp_path) == 0
    content = json.loads((tmp_path / 'export' / 'config.json').read_text())
    assert content['vocab_size'] == SIZES['vocab_size']  # the new token took a row that no token used
    assert content['max_position_embeddings'] == 512  # that of the config, as 64 are needed
    assert bert_jax.load_pretrained(str(tmp_path / 'export')).tokenizer.tokens == [*TOKENS, 'xyz']


def test_family_without_pair_head_rejects_configured_pairs(tmp_path: Path, capsys) -> None:
    save_model(tmp_path / 'model', 'modernbert')
    flags = [f'--config={ROOT}/configs/continue.py', f'--config.init={tmp_path}/model', f'--workdir={tmp_path}/run']
    assert main(['bert_jax', 'train', *flags]) == 2
    assert '--config.data.pairing=none' in capsys.readouterr().err
    assert not (tmp_path / 'run').exists()
