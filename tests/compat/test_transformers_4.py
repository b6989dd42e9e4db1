"""Exports open in `transformers` 4.48.0, the first release with ModernBERT, and compute the same outputs.

`make test-compat` installs that release in .venv-compat and runs this. The exports are written here, by commands of
bert_jax, and `open_exports.py` opens them with the Python of .venv-compat. It reads from one directory:

    exports.json    {name: {class_name: the class that opens it, texts: the texts to compare}}
    NAME/           an export
    NAME.npz        input_ids and attention_mask [B, L] of the texts, and what bert_jax computes for them: outputs
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bert_jax import config
from bert_jax.finetune.load import load_model
from bert_jax.finetune.predict import FineTuned, forward
from bert_jax.model.inputs import Inputs
from bert_jax.pretrained.load import Pretrained
from bert_jax.text.vocabulary import encode_with_masks
from tests.pretrained.test_families import save_model
from tests.support.commands import run
from tests.support.models import MODEL, write_model
from tests.support.processes import ROOT
from tests.support.tasks import write_reviews, write_sentences
from tests.text.test_pipelines import modernbert as byte_level_bpe

pytestmark = [pytest.mark.compat, pytest.mark.usefixtures('one_device')]
VERSION = '4.48.0'
TOLERANCE = 1e-4
TEXTS = ['who is the [MASK] in town?', ' '.join(['the great film', 'the [MASK] actor'] * 5)]  # longer than the window
FINETUNE = {
    'classification': ('glue.py:sst2', {}),
    'tagging': ('ner.py', {'task.validation': 'conll:dev.txt'}),
}


class Export(NamedTuple):
    """An export and the class that opens it.

    model: a name in `MODELS` of `test_families.py` or in `OWN_MODELS`.
    kind: of the task that it is fine-tuned for, or ''.
    """

    model: str
    class_name: str
    kind: str = ''


SIZES = {'num_layers': 3, 'hidden_size': 32, 'num_heads': 4, 'intermediate_size': 40, 'max_positions': 48}
OWN_MODELS = {'bert': MODEL, 'byte-level BPE': config.ModernBert(vocab_size=448, local_attention=8, **SIZES)}
EXPORTS = {
    'bert': Export('bert', 'AutoModelForMaskedLM'),
    'bert-classification': Export('bert', 'AutoModelForSequenceClassification', 'classification'),
    'modernbert': Export('modernbert', 'AutoModelForMaskedLM'),
    'modernbert-encoder': Export('modernbert encoder', 'AutoModel'),
    'modernbert-biases': Export('modernbert with biases', 'AutoModelForMaskedLM'),
    'modernbert-bpe': Export('byte-level BPE', 'AutoModelForMaskedLM'),
    'modernbert-classification': Export('modernbert', 'AutoModelForSequenceClassification', 'classification'),
    'modernbert-tagging': Export('modernbert', 'AutoModelForTokenClassification', 'tagging'),
}


def _write_export(directory: Path, name: str, export: Export) -> None:
    """Writes NAME/: a model that was imported or fine-tuned, and exported."""
    model, workdir = f'{name}-model', f'{name}-run'
    if export.model in OWN_MODELS:
        write_model(directory / model, OWN_MODELS[export.model])
    else:
        save_model(directory / model, export.model)
    if export.model == 'byte-level BPE':
        (directory / model / 'vocab.txt').unlink()
        byte_level_bpe().save(str(directory / model / 'tokenizer.json'))
    if not export.kind:
        assert run(['import', f'--from={model}', f'--workdir={workdir}'], directory) == 0
    else:
        config_name, changes = FINETUNE[export.kind]
        settings = {'init': model, 'task.sequence_length': 16, 'train.global_batch_size': 16, 'train.epochs': 1}
        flags = [f'--config.{field}={value}' for field, value in (settings | changes).items()]
        command = ['finetune', f'--config={ROOT}/configs/finetune/{config_name}', f'--workdir={workdir}', *flags]
        assert run(command, directory) == 0
    assert run(['export', f'--workdir={workdir}', f'--output={name}'], directory) == 0


def _encode(pretrained: Pretrained, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns (ids, 1 for tokens and 0 for padding), [B, L]."""
    rows = [encode_with_masks(pretrained.tokenizer, text) for text in texts]
    ids = np.full((len(rows), max(map(len, rows))), pretrained.tokenizer.pad_id, np.int32)
    present = np.zeros_like(ids)
    for row, row_ids in enumerate(rows):
        ids[row, : len(row_ids)], present[row, : len(row_ids)] = row_ids, 1
    return ids, present


def _outputs(trained: Any, class_name: str, ids: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Returns what bert_jax computes where `transformers` returns logits or, for AutoModel, vectors."""
    if isinstance(trained, FineTuned):
        return np.asarray(forward(*nnx.split(trained.model), ids, np.zeros_like(ids), present))
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    hidden = trained.model.encode(Inputs(ids, np.zeros_like(ids), present, positions))
    if class_name == 'AutoModel':
        return np.asarray(hidden)
    num_rows = trained.config.num_embeddings(trained.tokenizer.vocab_size)
    return np.asarray(trained.model.mlm_logits(hidden, positions)[..., :num_rows])


@pytest.fixture(scope='module')
def opened(tmp_path_factory: pytest.TempPathFactory, one_device: None) -> dict[str, Any]:
    """The version and the comparisons that `open_exports.py` prints."""
    directory = tmp_path_factory.mktemp('exports')
    for seed, split in enumerate(('train', 'dev')):
        write_reviews(directory / f'{split}.tsv', 64, seed=seed)
        write_sentences(directory / f'{split}.txt', 40, seed=seed)
    for name, export in EXPORTS.items():
        _write_export(directory, name, export)
        trained = load_model(str(directory / name))
        ids, present = _encode(trained, TEXTS)
        outputs = _outputs(trained, export.class_name, ids, present)
        np.savez(directory / f'{name}.npz', input_ids=ids, attention_mask=present, outputs=outputs)
    described = {name: {'class_name': export.class_name, 'texts': TEXTS} for name, export in EXPORTS.items()}
    (directory / 'exports.json').write_text(json.dumps(described))
    python = os.environ.get('COMPAT_PYTHON', f'{ROOT}/.venv-compat/bin/python')
    command = [python, str(Path(__file__).with_name('open_exports.py')), str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_environment_has_the_first_release_with_modernbert(opened: dict[str, Any]) -> None:
    assert opened['version'] == VERSION


@pytest.mark.parametrize('name', EXPORTS)
def test_older_transformers_computes_the_same_from_an_export(name: str, opened: dict[str, Any]) -> None:
    result = opened['results'][name]
    assert result['ids_are_equal'] and result['largest_difference'] < TOLERANCE, result
    unused = {'cls.seq_relationship.weight', 'cls.seq_relationship.bias', 'bert.pooler.dense.weight'}
    unused |= {'bert.pooler.dense.bias'}  # AutoModelForMaskedLM ignores the heads for pairs
    assert set(result['unmatched_tensors']) <= (unused if name == 'bert' else set()), result
