"""`embed` computes the same vectors as sentence-transformers, or rejects settings it does not support."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bert_jax.__main__ import main
from bert_jax.errors import BadInput
from bert_jax.pretrained.load import load_pretrained
from bert_jax.pretrained.sentences import MODES, SentenceSettings, read_settings
from bert_jax.pretrained.vectors import TextEncoder
from tests.support.models import write_model

D = 32  # hidden size
TEXTS = ['the film', '', 'ada is in town, bob is in town. cleo is in the end', 'Fine FINE fine']
OLD, NEW = 'sentence_transformers.models', 'sentence_transformers.sentence_transformer.modules'


def write_sentence_model(
    directory: Path,
    pooling: dict[str, object],
    *,
    normalize: bool = False,
    transformer: dict[str, object] | None = None,
    subdirectory: str = '',
    prompt: str = '',
) -> Path:
    """Writes a small BERT with the files of sentence-transformers, the encoder in the subdirectory `subdirectory`."""
    if subdirectory:
        directory.mkdir()
    encoder = write_model(directory / subdirectory)
    (encoder / 'tokenizer_config.json').write_text(json.dumps({'do_lower_case': True, 'model_max_length': 24}))
    (encoder / 'sentence_bert_config.json').write_text(json.dumps(transformer or {}))
    modules = [('0', subdirectory, f'{OLD}.Transformer'), ('1', '1_Pooling', f'{NEW}.pooling.Pooling')]
    modules += [('2', '2_Normalize', f'{OLD}.Normalize')] if normalize else []
    listed = [{'idx': int(name), 'name': name, 'path': path, 'type': kind} for name, path, kind in modules]
    (directory / 'modules.json').write_text(json.dumps(listed))
    (directory / '1_Pooling').mkdir()
    (directory / '1_Pooling' / 'config.json').write_text(json.dumps(pooling))
    prompts = {'prompts': {'query': prompt}, 'default_prompt_name': 'query' if prompt else None}
    (directory / 'config_sentence_transformers.json').write_text(json.dumps(prompts))
    return directory


def pooled(vectors: np.ndarray, mode: str) -> np.ndarray:
    """Pools the token vectors of one text, [L, D], to [D]."""
    weights = np.arange(1.0, len(vectors) + 1)[:, None]
    return {
        'cls': lambda: vectors[0],
        'max': lambda: vectors.max(axis=0),
        'mean': lambda: vectors.mean(axis=0),
        'mean_sqrt_len_tokens': lambda: vectors.sum(axis=0) / np.sqrt(len(vectors)),
        'weightedmean': lambda: (weights * vectors).sum(axis=0) / weights.sum(),
        'lasttoken': lambda: vectors[-1],
    }[mode]()


@pytest.mark.compiles
@pytest.mark.parametrize(
    'options, modes, longest, prepare',
    [
        ({'pooling': {'pooling_mode': [*reversed(MODES)]}, 'normalize': True}, [*reversed(MODES)], 24, str),
        (
            {
                'pooling': {MODES['lasttoken']: True, MODES['cls']: True, MODES['max']: False},
                'transformer': {'do_lower_case': True, 'max_seq_length': 8},
                'subdirectory': '0_Transformer',
            },
            ['cls', 'lasttoken'],
            8,
            str.lower,
        ),
        (
            {'pooling': {'pooling_mode': 'mean'}, 'prompt': 'who is: ', 'transformer': {'max_seq_length': 99}},
            ['mean'],
            32,
            'who is: {}'.format,
        ),
    ],
)
def test_vectors_follow_the_settings_of_the_directory(
    options: dict, modes: list[str], longest: int, prepare: Callable[[str], str], tmp_path: Path, capsys
) -> None:
    directory = write_sentence_model(tmp_path / 'model', **options)
    (tmp_path / 'lines.txt').write_text('\n'.join([*TEXTS, ' '.join(['film'] * 40)]))
    output = tmp_path / 'out.npy'
    flags = [f'--model={directory}', f'--input={tmp_path}/lines.txt', f'--output={output}', '--json']
    assert main(['bert_jax', 'embed', *flags]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary['hidden_size'], summary['max_length']) == (D * len(modes), longest)
    assert (summary['pooling'], summary['normalized']) == (modes, options.get('normalize', False))
    model = load_pretrained(str(directory / options.get('subdirectory', '')))
    for text, found in zip(TEXTS, np.load(output), strict=False):
        [vectors] = model.encode([prepare(text)]).token_vectors
        if len(vectors) <= longest:
            expected = np.concatenate([pooled(vectors, mode) for mode in modes])
            expected /= np.linalg.norm(expected) if options.get('normalize') else 1
            np.testing.assert_allclose(found, expected, atol=1e-5)
    assert summary['truncated'] >= 1


@pytest.mark.compiles
def test_vectors_match_sentence_transformers(tmp_path: Path) -> None:
    reference = pytest.importorskip('sentence_transformers')
    pooling = {MODES['mean']: True, MODES['cls']: True, 'word_embedding_dimension': D}
    options = {'normalize': True, 'transformer': {'max_seq_length': 9}, 'prompt': 'town '}
    directory = str(write_sentence_model(tmp_path / 'model', pooling, **options))
    settings = read_settings(directory)
    theirs = reference.SentenceTransformer(directory, device='cpu').encode(TEXTS)
    ours, _ = TextEncoder(load_pretrained(settings.directory), settings).encode(TEXTS)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_without_modules_mean_pooling_is_used(tmp_path: Path) -> None:
    assert read_settings(str(tmp_path)) == SentenceSettings(str(tmp_path), modes=('mean',), normalize=False)


def _change(path: str, **changes: object) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        file = directory / path
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def _set_modules(*modules: dict[str, object]) -> Callable[[Path], None]:
    return lambda directory: (directory / 'modules.json').write_text(json.dumps(modules)) and None


TRANSFORMER = {'type': f'{OLD}.Transformer', 'path': ''}
POOLING = {'type': f'{OLD}.Pooling', 'path': '1_Pooling'}


@pytest.mark.parametrize(
    'change, words',
    [
        (lambda d: (d / 'modules.json').write_text('{'), ['modules.json: is not JSON']),
        (lambda d: (d / 'modules.json').write_text('{}'), ['modules.json: is a dict, not a JSON array']),
        (_set_modules(), ['has the modules none']),
        (_set_modules(TRANSFORMER), ['has the modules Transformer', 'Pooling']),
        (_set_modules(TRANSFORMER, POOLING, {'type': f'{OLD}.Dense', 'path': '2_Dense'}), ['Dense', 'package sent']),
        (_set_modules(TRANSFORMER, {'type': f'{OLD}.Pooling', 'path': '../other'}), ["directory '../other'"]),
        (_set_modules(TRANSFORMER, {'type': 3}), ['a module without a type or a path']),
        (lambda d: (d / '1_Pooling' / 'config.json').unlink(), ['1_Pooling/config.json: does not exist']),
        (_change('1_Pooling/config.json', pooling_mode='middle'), ['the pooling middle', 'weightedmean']),
        (_change('1_Pooling/config.json', pooling_mode=[]), ['the pooling none']),
        (_change('1_Pooling/config.json', pooling_mode=5), ['the pooling 5']),
        (_change('sentence_bert_config.json', max_seq_length='all'), ["max_seq_length is 'all'"]),
        (_change('sentence_bert_config.json', max_seq_length=2), ['max_seq_length is 2']),
        (
            _change('sentence_bert_config.json', modality_config={'text': {'method_output_name': 'pooler_output'}}),
            ["takes 'pooler_output' of text"],
        ),
        (_change('config_sentence_transformers.json', default_prompt_name='x'), ["default_prompt_name is 'x'"]),
        (_change('1_Pooling/config.json', include_prompt=False), ['include_prompt is false']),
    ],
)
def test_unsupported_settings_are_rejected(change: Callable, words: list[str], tmp_path: Path) -> None:
    directory = write_sentence_model(tmp_path / 'model', {'pooling_mode': 'mean'}, prompt='query: ')
    change(directory)
    with pytest.raises(BadInput) as caught:
        read_settings(str(directory))
    for word in words:
        assert word in str(caught.value)
