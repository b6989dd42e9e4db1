"""A BERT from Hugging Face is imported completely or rejected, and exported with identical tensors."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import bert_jax
from bert_jax.__main__ import main
from bert_jax.config import finetuning
from bert_jax.finetune.start import prepare_start
from bert_jax.pretrained import initialize, provenance, safetensors_files, tensor_names
from bert_jax.pretrained.hub import HEADS
from bert_jax.pretrained.load import load_pretrained
from bert_jax.text.tokenizer import SPECIAL_TOKENS, load_tokenizer
from tests.support.documents import run_snippet

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

TOKENS = [*SPECIAL_TOKENS, *'abcdefgh', *(f'##{c}' for c in 'abcdefgh'), 'bad', 'cab', 'Hé', '.']
Tensors = dict[str, np.ndarray]


def save_torch_model(directory: Path, kind: str = 'BertForPreTraining') -> Tensors:
    """Writes a small random model of `transformers` and a vocab.txt; returns its tensors by their current names."""
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    settings = transformers.BertConfig(
        vocab_size=len(TOKENS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=20,
    )
    model = getattr(transformers, kind)(settings)
    with torch.no_grad():
        for parameter in model.parameters():  # a swapped bias changes the output
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    (directory / 'vocab.txt').write_text(''.join(f'{token}\n' for token in TOKENS))
    prefix = '' if kind != 'BertModel' else 'bert.'
    return {
        prefix + name: value.numpy()
        for name, value in model.state_dict().items()
        if 'decoder' not in name and 'position_ids' not in name
    }


@pytest.fixture(scope='module')
def original(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp('hugging_face') / 'model'
    save_torch_model(directory)
    return directory


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / 'model'))


def read(directory: Path) -> Tensors:
    """Returns the tensors read from a directory, under Hugging Face's names."""
    found = load_pretrained(str(directory))
    return tensor_names.to_tensors(nnx.state(found.model, nnx.Param), found.config, len(TOKENS))


def assert_same(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, name)


def rewrite(directory: Path, change: Callable[[Tensors], Tensors]) -> None:
    file = directory / 'model.safetensors'
    save_file(change(load_file(file)), file, {'format': 'pt'})


@pytest.mark.compiles
@pytest.mark.parametrize(
    'kind, absent',
    [
        ('BertForPreTraining', []),
        ('BertForMaskedLM', ['pooler', 'next-sentence head']),
        ('BertModel', ['masked-LM head', 'next-sentence head']),
    ],
)
def test_weights_are_read_exactly_and_absent_heads_initialized(
    kind: str, absent: list[str], tmp_path: Path, capsys
) -> None:
    expected = save_torch_model(tmp_path, kind)
    found = read(tmp_path)
    assert_same({name: found[name] for name in expected}, expected)
    assert list(bert_jax.load_pretrained(str(tmp_path)).provenance.untrained_heads) == absent
    assert not capsys.readouterr().err.count('head')  # reported when the head is used
    initialized = {name: value for name, value in found.items() if name not in expected}
    assert bool(initialized) == bool(absent)
    again = read(tmp_path)
    for name, value in initialized.items():
        np.testing.assert_array_equal(value, again[name])
        if 'LayerNorm.weight' in name:
            assert (value == 1).all()
        elif name.endswith('bias'):
            assert (value == 0).all()
        else:  # as in the original: normal(0.02), truncated at two standard deviations
            assert 0 < np.abs(value).max() <= 0.04 and 0.012 < value.std() < 0.024


@pytest.mark.compiles
@pytest.mark.parametrize('kind, named', [('classification', ['pooler']), ('tagging', []), ('spans', [])])
def test_fine_tune_reports_only_untrained_heads_it_uses(kind: str, named: list[str], tmp_path: Path, capsys) -> None:
    save_torch_model(tmp_path, 'BertForMaskedLM')
    given = finetuning.finetune(kind).to_dict() | {'init': str(tmp_path)}
    given['task'] |= {'sequence_length': 20, 'stride': 2, 'max_question_tokens': 4}
    started = prepare_start(finetuning.resolve(given), [])
    printed = capsys.readouterr().err
    assert [head for head in HEADS if head in printed] == named
    assert started.provenance == provenance.Provenance(20, ('pooler', 'next-sentence head'))
    (tmp_path / 'tokenizer_config.json').write_text('{"do_lower_case": true, "model_max_length": 8}')
    prepare_start(finetuning.resolve(given), [])
    assert 'trained on texts of up to 8 tokens' in capsys.readouterr().err


def _old_names(tensors: Tensors) -> Tensors:
    renamed = {
        name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace('LayerNorm.bias', 'LayerNorm.beta'): value
        for name, value in tensors.items()
    }
    return renamed | {
        'cls.predictions.decoder.weight': tensors['bert.embeddings.word_embeddings.weight'].copy(),
        'cls.predictions.decoder.bias': tensors['cls.predictions.bias'].copy(),
        'bert.embeddings.position_ids': np.arange(20)[None],
    }


def test_old_names_decoder_copies_and_buffers_are_accepted(original: Path, copy: Path) -> None:
    rewrite(copy, _old_names)
    assert_same(read(copy), read(original))
    rewrite(copy, lambda tensors: {n: v for n, v in tensors.items() if n != 'cls.predictions.bias'})
    assert_same(read(copy), read(original))  # the bias has only the decoder's name
    workdir = copy.parent / 'workdir'
    assert main(['bert_jax', 'import', f'--from={copy}', f'--workdir={workdir}']) == 0
    assert_same(read(workdir), read(original))


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_converted_exactly(original: Path, copy: Path, dtype: type) -> None:
    rewrite(copy, lambda tensors: {name: value.astype(dtype) for name, value in tensors.items()})
    assert_same(read(copy), {n: v.astype(dtype).astype(np.float32) for n, v in read(original).items()})


def test_sharded_model_is_read_through_its_index(original: Path, copy: Path) -> None:
    tensors = load_file(copy / 'model.safetensors')
    (copy / 'model.safetensors').unlink()
    shards = {f'model-0000{n}-of-00002.safetensors': sorted(tensors)[n - 1 :: 2] for n in (1, 2)}
    for shard, names in shards.items():
        save_file({name: tensors[name] for name in names}, copy / shard)
    weight_map = {name: shard for shard, names in shards.items() for name in names}
    index = copy / 'model.safetensors.index.json'
    index.write_text(json.dumps({'weight_map': weight_map}))
    assert_same(read(copy), read(original))
    index.write_text(json.dumps({'weight_map': {'a': '../model.safetensors'}}))
    assert _import_fails(copy, "names the file '../model.safetensors'")


def _pad_vocabulary(directory: Path, rows: int) -> None:
    def pad(tensors: Tensors) -> Tensors:
        for name in ('bert.embeddings.word_embeddings.weight', 'cls.predictions.bias'):
            value = tensors[name]
            tensors[name] = np.concatenate([value, np.full((rows, *value.shape[1:]), 7.0, np.float32)])
        return tensors

    rewrite(directory, pad)
    set_json(directory, vocab_size=len(TOKENS) + rows)


def set_json(directory: Path, **changes: object) -> None:
    content = json.loads((directory / 'config.json').read_text())
    (directory / 'config.json').write_text(json.dumps(content | changes))


@pytest.mark.compiles
def test_rows_beyond_the_tokenizer_survive_import_and_export(copy: Path, tmp_path: Path, capsys) -> None:
    _pad_vocabulary(copy, 5)
    expected = read(copy)
    workdir, export = tmp_path / 'workdir', tmp_path / 'export'
    assert main(['bert_jax', 'import', f'--from={copy}', f'--workdir={workdir}', '--json']) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)['unused_rows'] == 5 and 'word embeddings have 30 rows' in printed.err
    assert main(['bert_jax', 'export', f'--workdir={workdir}', f'--output={export}']) == 0
    assert '5 more rows' in (export / 'README.md').read_text()
    assert_same(load_file(export / 'model.safetensors'), expected)


@pytest.mark.compiles
@pytest.mark.parametrize(
    'kind, architecture, untrained',
    [
        ('BertModel', 'BertModel', ['masked-LM head', 'next-sentence head']),
        ('BertForMaskedLM', 'BertForMaskedLM', ['pooler', 'next-sentence head']),
        ('BertForNextSentencePrediction', 'BertForNextSentencePrediction', ['masked-LM head']),
    ],
)
def test_untrained_heads_are_neither_exported_nor_usable(
    kind: str, architecture: str, untrained: list[str], tmp_path: Path, capsys
) -> None:
    expected = save_torch_model(tmp_path / 'model', kind)
    workdir, export = tmp_path / 'workdir', tmp_path / 'export'
    assert main(['bert_jax', 'import', f'--from={tmp_path}/model', f'--workdir={workdir}', '--json']) == 0
    assert json.loads(capsys.readouterr().out)['untrained_heads'] == untrained
    assert main(['bert_jax', 'export', f'--workdir={workdir}', f'--output={export}', '--json']) == 0
    proof = json.loads(capsys.readouterr().out)
    assert (proof['architecture'], proof['untrained_heads']) == (architecture, untrained)
    assert proof['compared_with'] == f'transformers {architecture}'
    assert_same(load_file(export / 'model.safetensors'), expected)  # exactly the imported tensors
    card = (export / 'README.md').read_text()
    fills_masks = 'masked-LM head' not in untrained
    assert ('pipeline_tag: "fill-mask"' in card) == fills_masks
    assert 'pretrained with bert_jax' not in card and 'trained elsewhere' in card
    for head in untrained:
        assert head in card
    run_snippet(export)
    assert list(bert_jax.load_pretrained(str(export)).provenance.untrained_heads) == untrained
    for model in (tmp_path / 'model', workdir, export):
        status = main(['bert_jax', 'fill-mask', f'--model={model}', 'bad [MASK]'])
        assert status == (0 if fills_masks else 2)
        assert fills_masks or 'no trained masked-LM head' in capsys.readouterr().err


# --- Bad input: exit status 2; the message names file, tensor and fix; nothing is written. ---


def _import_fails(directory: Path, *words: str) -> str:
    workdir = directory.parent / 'out' / 'workdir'
    done = _error_of(['import', f'--from={directory}', f'--workdir={workdir}'])
    for word in words:
        assert word in done, done
    assert not workdir.parent.exists() or not list(workdir.parent.iterdir())
    return done


def _error_of(arguments: list[str]) -> str:
    """Returns the error message of a command that must fail."""
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(io.StringIO()):
        assert main(['bert_jax', *arguments]) == 2
    return printed.getvalue()


def _without(name: str) -> Callable[[Path], None]:
    return lambda directory: rewrite(directory, lambda tensors: {n: v for n, v in tensors.items() if n != name})


def _with(**tensors: np.ndarray) -> Callable[[Path], None]:
    return lambda directory: rewrite(directory, lambda existing: existing | tensors)


def _cut(directory: Path) -> None:
    file = directory / 'model.safetensors'
    file.write_bytes(file.read_bytes()[:-100])


def _set_header_size(size: int) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        file = directory / 'model.safetensors'
        file.write_bytes(size.to_bytes(8, 'little') + file.read_bytes()[8:])

    return change


def _extend_vocabulary(directory: Path) -> None:
    (directory / 'vocab.txt').write_text(''.join(f'{token}\n' for token in [*TOKENS, 'more', 'than', 'there']))


def _two_problems(directory: Path) -> None:
    def change(tensors: Tensors) -> Tensors:
        del tensors['bert.encoder.layer.1.output.dense.bias']
        return tensors | {'classifier.weight': np.zeros((2, 16), np.float32), 'cls.seq_relationship.bias': np.zeros(3)}

    rewrite(directory, change)


@pytest.mark.parametrize(
    'change, words',
    [
        (_cut, ['model.safetensors', 'bytes and cannot be read', 'download the file again']),
        (_set_header_size(2**60), ['model.safetensors', 'header too large']),
        (_set_header_size(50), ['model.safetensors', 'invalid JSON in header']),
        (lambda d: (d / 'model.safetensors').write_bytes(b'abc'), ['has 3 bytes', 'header too small']),
        (_with(**{'../../evil': np.zeros(2)}), ["a tensor named '../../evil'"]),
        (_with(**{'a\\b': np.zeros(2)}), ["a tensor named 'a\\\\b'"]),
        (_extend_vocabulary, ['28 tokens', 'word embeddings have 25 rows']),
        (lambda d: set_json(d, vocab_size=30), ['word_embeddings.weight: shape [25, 16], expected [30, 16]']),
        (
            lambda d: set_json(d, model_type='roberta'),
            ['config.json', "model_type is 'roberta'", 'bert, modernbert, eurobert'],
        ),
        (lambda d: set_json(d, hidden_act='relu'), ['config.json', "hidden_act is 'relu'", "'gelu'"]),
        (lambda d: set_json(d, position_embedding_type='relative_key'), ['relative_key', "'absolute'"]),
        (lambda d: set_json(d, num_attention_heads=3), ['config.json', 'num_heads is 3']),
        (lambda d: set_json(d, layer_norm_eps='small'), ['config.json', "layer_norm_eps is 'small'"]),
        (lambda d: (d / 'config.json').write_text('{'), ['config.json', 'not JSON']),
        (lambda d: (d / 'config.json').write_bytes(b'\xff'), ['config.json', 'not JSON']),
        (lambda d: (d / 'vocab.txt').unlink(), ['holds no tokenizer']),
        (_without('bert.embeddings.LayerNorm.weight'), ['bert.embeddings.LayerNorm.weight: missing']),
        (_without('bert.pooler.dense.bias'), ['bert.pooler.dense.bias: missing']),  # a head must be complete
        (_two_problems, ['layer.1.output.dense.bias: missing', 'classifier.weight: not', 'bias: shape [3], expect']),
        (_with(**{'cls.predictions.decoder.weight': np.zeros((25, 16))}), ['differs from bert.embeddings.word_emb']),
        (_with(**{'pooler.dense.bias': np.zeros(16)}), ['pooler.dense.bias: present under an old name and a new one']),
        (_with(**{'bert.pooler.dense.bias': np.zeros(16, int)}), ['bert.pooler.dense.bias: holds int64']),
        (lambda d: (d / 'model.safetensors').unlink(), ['model.safetensors', 'does not exist']),
    ],
)
def test_unusable_model_is_rejected_and_nothing_written(copy: Path, change: Callable, words: list[str]) -> None:
    change(copy)
    _import_fails(copy, *words)


@pytest.mark.slow
@pytest.mark.processes
def test_pickle_is_rejected_with_a_command_to_convert_it(original: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(original, tmp_path / "a model's directory"))
    tensors = {name: torch.tensor(value) for name, value in load_file(directory / 'model.safetensors').items()}
    tensors['cls.predictions.decoder.weight'] = tensors['bert.embeddings.word_embeddings.weight']  # shared memory
    torch.save(tensors, directory / 'pytorch_model.bin')
    (directory / 'model.safetensors').unlink()
    printed = _import_fails(directory, 'pytorch_model.bin', 'could run any program')
    line = printed.partition('fix:')[2].strip()
    assert line == safetensors_files.conversion_command(directory)
    with_this_python = line.replace('python -c', f'{sys.executable} -c', 1)
    subprocess.run(with_this_python, shell=True, check=True, timeout=120)
    assert_same(read(directory), read(original))


@pytest.mark.compiles
def test_import_then_export_gives_identical_tensors(original: Path, tmp_path: Path) -> None:
    workdir, export = tmp_path / 'workdir', tmp_path / 'export'
    assert main(['bert_jax', 'import', f'--from={original}', f'--workdir={workdir}']) == 0
    assert main(['bert_jax', 'export', f'--workdir={workdir}', f'--output={export}']) == 0
    theirs, ours = load_file(original / 'model.safetensors'), load_file(export / 'model.safetensors')
    assert_same(ours, {name: value for name, value in theirs.items() if 'decoder' not in name})
    imported, exported = (initialize.hash_weights(bert_jax.load_pretrained(str(model))) for model in (workdir, export))
    assert imported == exported  # a run may start from either
    first = transformers.AutoTokenizer.from_pretrained(export)
    text = 'bad cab abc. Hé [MASK]'
    assert (
        first(text)['input_ids'][1:-2]
        == bert_jax.load_pretrained(str(workdir)).tokenizer.encode_batch([text.removesuffix(' [MASK]')])[0]
    )
    assert 'is a workdir already' in _error_of(['import', f'--from={workdir}', f'--workdir={tmp_path}/other'])
    assert 'workdir: exists' in _error_of(['import', f'--from={original}', f'--workdir={workdir}'])
    printed = _error_of(['train', f'--workdir={workdir}'])
    assert 'holds an imported model' in printed and f'--config.init={workdir}' in printed


@pytest.mark.parametrize('settings', [None, {}, {'do_lower_case': False}, {'do_lower_case': True}])
def test_casing_comes_from_settings_or_from_the_vocabulary(settings: dict | None, tmp_path: Path, capsys) -> None:
    (tmp_path / 'vocab.txt').write_text(''.join(f'{token}\n' for token in TOKENS))
    if settings is not None:
        (tmp_path / 'tokenizer_config.json').write_text(json.dumps(settings))
    found = load_tokenizer(tmp_path)
    assert found.lowercase == (settings is not None and settings.get('do_lower_case', True))
    assert found.strip_accents == found.lowercase
    assert ('vocab.txt: cased' in capsys.readouterr().err) == (settings is None)
    if settings is not None:
        theirs = transformers.BertTokenizerFast.from_pretrained(tmp_path)
        texts = ['Bad CAB bád.', 'Hé hé HÉ', 'abcdefgh']
        assert found.encode_batch(texts) == theirs(texts, add_special_tokens=False)['input_ids']
