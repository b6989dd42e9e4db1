"""ModernBERT and EuroBERT are fine-tuned, predicted with, exported and fine-tuned again."""

import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from bert_jax.finetune.load import load_finetuned, load_model
from tests.pretrained.test_families import save_model
from tests.support.commands import run
from tests.support.processes import ROOT
from tests.support.tasks import write_questions, write_reviews, write_sentences

pytestmark = [pytest.mark.compiles, pytest.mark.usefixtures('one_device')]
SMALL = {
    'init': 'model',
    'task.sequence_length': 16,
    'train.global_batch_size': 16,
    'train.epochs': 5,
    'optimizer.peak_learning_rate': 3e-3,
}
CONFIGS = {'classification': 'glue.py:sst2', 'tagging': 'ner.py', 'spans': 'squad.py'}
EXTRA = {
    'classification': {},
    'tagging': {'task.validation': 'conll:dev.txt', 'train.epochs': 8},
    'spans': {
        'task.train': 'squad:train.json',
        'task.validation': 'squad:dev.json',
        'task.sequence_length': 24,
        'task.max_question_tokens': 8,
        'task.stride': 4,
        'train.epochs': 10,
    },
}
EXAMPLES = {
    'classification': 'a great film',
    'tagging': ['ada', 'the', 'town'],
    'spans': ('who is in town?', 'bob is in town.'),
}
TASKS = [
    ('modernbert', 'classification'),
    ('eurobert encoder', 'classification'),
    *(pytest.param('modernbert encoder', kind, marks=pytest.mark.slow) for kind in ('tagging', 'spans')),
    pytest.param('eurobert', 'tagging', marks=pytest.mark.slow),
]


def _finetune(directory: Path, kind: str, workdir: str, **changes: object) -> int:
    values = SMALL | EXTRA[kind] | {name.replace('__', '.'): value for name, value in changes.items()}
    flags = [f'--config.{name}={value}' for name, value in values.items()]
    config = f'--config={ROOT}/configs/finetune/{CONFIGS[kind]}'
    return run(['finetune', config, *flags, f'--workdir={workdir}'], directory)


@pytest.mark.parametrize('name, kind', TASKS)
def test_fine_tuned_model_learns_and_survives_export(name: str, kind: str, tmp_path: Path) -> None:
    pytest.importorskip('transformers')
    save_model(tmp_path / 'model', name)
    for seed, split in enumerate(('train', 'dev')):
        write_reviews(tmp_path / f'{split}.tsv', [240, 64][seed], seed=seed)
        write_sentences(tmp_path / f'{split}.txt', [160, 40][seed], seed=seed)
        write_questions(tmp_path / f'{split}.json', [200, 40][seed], seed=seed)
    assert _finetune(tmp_path, kind, 'tuned') == 0
    metrics = json.loads((tmp_path / 'tuned' / 'results.json').read_text())['metrics']
    assert next(iter(metrics.values())) > 0.8, metrics
    assert run(['export', '--workdir=tuned', '--output=exported'], tmp_path) == 0
    proof = json.loads((tmp_path / 'exported' / 'proof.json').read_text())
    assert proof['compared_with'].startswith('transformers ')
    trained, exported = load_finetuned(str(tmp_path / 'tuned' / 'seed-0')), load_model(str(tmp_path / 'exported'))
    assert trained.predict([EXAMPLES[kind]]) == exported.predict([EXAMPLES[kind]])
    assert _finetune(tmp_path, kind, 'again', init='exported', reinitialized_layers=1, train__epochs=0.1) == 0


def test_head_of_the_initial_model_is_kept_and_the_rest_is_new(tmp_path: Path) -> None:
    pytest.importorskip('transformers')
    from bert_jax.config.finetuning import finetune, resolve
    from bert_jax.finetune.start import prepare_start

    save_model(tmp_path, 'modernbert')
    settings = finetune('classification')
    settings.init, settings.task.sequence_length = str(tmp_path), 16
    start = prepare_start(resolve(settings), [])
    assert start.initialization.initial is not None
    initial = dict(nnx.to_flat_state(nnx.state(start.initialization.initial.model, nnx.Param)))
    params = start.params(2, seed=0)
    assert params is not None
    found = dict(nnx.to_flat_state(params))
    same = {path for path, leaf in found.items() if path in initial and np.array_equal(leaf, initial[path])}
    assert found.keys() - same == {('classifier', 'kernel'), ('classifier', 'bias')}
