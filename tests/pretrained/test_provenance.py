"""Every form of a model records which positions and heads were trained; only these are used."""

import json
from pathlib import Path

import numpy as np
import pytest

from bert_jax import config
from bert_jax.config.finetuning import finetune, resolve
from bert_jax.errors import BadInput
from bert_jax.pretrained.hub import MLM_HEAD, NSP_HEAD, POOLER
from bert_jax.pretrained.load import load_pretrained
from bert_jax.pretrained.provenance import Provenance, of_files, of_finetune, of_run, start_of
from bert_jax.workdir import identity
from tests.support.models import MODEL, read_tokenizer, write_model

PHASES = ({'steps': 3, 'sequence_length': 16}, {'steps': 2, 'sequence_length': 32}, {'steps': 1, 'sequence_length': 8})

BFLOAT16 = {'': 'bfloat16', 'cls.predictions.bias': 'float32'}


def _config(**data: object) -> config.Config:
    sizes = {'num_layers': 1, 'hidden_size': 32, 'num_heads': 2, 'intermediate_size': 48, 'max_positions': 64}
    given = {'data': {'sequence_length': 16} | data, 'optimizer': {'warmup_steps': 0}, 'phases': PHASES}
    return config.resolve({'model': sizes} | given)


def test_trained_positions_are_the_longest_of_run_and_initial_model() -> None:
    found = [of_run(_config(), step, None).positions_trained for step in range(1, 7)]
    assert found == [16, 16, 16, 32, 32, 32]
    initialized = [of_run(_config(), step, Provenance(20)).positions_trained for step in (0, 1, 4, 6)]
    assert initialized == [20, 20, 32, 32]
    # In a workdir of an earlier version all positions count as trained.
    assert of_run(_config(), 1, Provenance(None)).max_length(64) == 64
    task = resolve(finetune('classification').to_dict() | {'init': 'x'})
    assert of_finetune(task, Provenance(20)).positions_trained == 128
    assert of_finetune(task, Provenance(512)).positions_trained == 512


def test_heads_are_untrained_until_a_step_trains_them() -> None:
    start = Provenance(64, (MLM_HEAD, NSP_HEAD), BFLOAT16)
    assert of_run(_config(), 0, None).untrained_heads == (POOLER, MLM_HEAD, NSP_HEAD)
    assert of_run(_config(), 0, start) == start
    assert of_run(_config(), 1, start) == Provenance(64, ())
    assert of_run(_config(pairing='none'), 1, start).untrained_heads == (POOLER, NSP_HEAD)


@pytest.mark.parametrize('length, expected', [(None, 32), (20, 20), (32, 32), (1000, 32), (int(1e30), 32), (1e30, 32)])
def test_trained_length_of_other_models_is_model_max_length(
    length: float | None, expected: int, tmp_path: Path
) -> None:
    directory = write_model(tmp_path / 'model')
    settings = {'do_lower_case': True} | ({} if length is None else {'model_max_length': length})
    (directory / 'tokenizer_config.json').write_text(json.dumps(settings))
    assert of_files(directory, 32).max_length(32) == expected


def _trained_length(workdir: str, step: int) -> int:
    return of_run(identity.load_config(workdir), step, start_of(workdir)).max_length(64)


def test_workdir_records_the_provenance_of_its_initial_model(tmp_path: Path) -> None:
    tokenizer, workdir = read_tokenizer(tmp_path), str(tmp_path / 'run')
    identity.claim(workdir, _config(), tokenizer, {'init': 'hash'}, start=Provenance(40, (MLM_HEAD,), BFLOAT16))
    assert start_of(workdir) == Provenance(40, (MLM_HEAD,), BFLOAT16)
    assert _trained_length(workdir, 0) == _trained_length(workdir, 5) == 40
    identity.claim(str(tmp_path / 'new'), _config(), tokenizer, {})
    assert start_of(str(tmp_path / 'new')) is None and _trained_length(str(tmp_path / 'new'), 5) == 32
    # As written by versions that did not record it.
    identity.claim(str(tmp_path / 'old'), _config(), tokenizer, {'init': 'hash'})
    assert _trained_length(str(tmp_path / 'old'), 1) == 64


@pytest.mark.parametrize('stored', [5, {}, {'positions_trained': 0, 'untrained_heads': []}, {'untrained_heads': ['x']}])
def test_invalid_recorded_provenance_is_rejected(stored: object, tmp_path: Path) -> None:
    identity.claim(str(tmp_path / 'run'), _config(), read_tokenizer(tmp_path), {}, start=Provenance())
    path = tmp_path / 'run' / 'config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'start': stored}))
    with pytest.raises(BadInput, match='config.json: start'):
        start_of(str(tmp_path / 'run'))


@pytest.mark.compiles
def test_encoding_uses_only_trained_positions(tmp_path: Path) -> None:
    directory = write_model(tmp_path / 'model')
    whole = load_pretrained(str(directory))
    (directory / 'tokenizer_config.json').write_text(json.dumps({'do_lower_case': True, 'model_max_length': 20}))
    cut, text = load_pretrained(str(directory)), ' '.join(['film'] * 40)
    assert (whole.max_length, cut.max_length, cut.config.max_positions) == (32, 20, MODEL.max_positions)
    for model in (whole, cut):
        encoded = model.encode([text])
        assert encoded.num_truncated == 1 and len(encoded.input_ids[0]) == model.max_length
    short = ' '.join(['film'] * 18)
    np.testing.assert_allclose(cut.encode([short]).mean_pooled, whole.encode([short]).mean_pooled, atol=1e-5)
    assert len(whole.fill_mask(f'{short} [MASK]')) == 1
    with pytest.raises(BadInput, match='at most 20, which the model was trained on'):
        cut.fill_mask(f'{short} [MASK]')
