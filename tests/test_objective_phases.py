"""A run may change its objective between phases: it resumes bit for bit, and is evaluated and exported as it trains."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.evaluation.evaluate import describe, evaluate
from bert_jax.pretrain import pretrain
from bert_jax.pretrained.electra import export_electra
from bert_jax.pretrained.export import export
from tests.support.configs import as_config, prepared
from tests.support.runs import assert_same_run, copy_stopped_at, metric_lines

pytestmark = [pytest.mark.compiles, pytest.mark.usefixtures('one_device')]

FAMILIES = {
    'bert': {'data__pairing': 'sop'},
    'modernbert': {
        'model__family': 'modernbert',
        'model__num_layers': 3,
        'model__local_attention': 8,
        'data__pairing': 'none',
    },
}
PHASES = (
    {'steps': 2, 'warmup_steps': 1, 'objective': 'clm'},
    {'steps': 2, 'warmup_steps': 0, 'objective': 'mntp', 'causal_share': 0.5},
    {'steps': 2, 'warmup_steps': 0},
)


@pytest.fixture(scope='module', params=['bert', pytest.param('modernbert', marks=pytest.mark.slow)])
def run(one_device, request, tmp_path_factory) -> tuple[config.Config, Path]:
    """Returns a config whose phases change the objective, and the workdir of its run with all checkpoints."""
    directory = tmp_path_factory.mktemp('objectives')
    changes = {'train__checkpoint_every': 1, 'train__keep_checkpoints': 6, 'train__evaluate_every': 1}
    values = prepared(directory, **FAMILIES[request.param], **changes, data__packing=True)
    resolved = config.resolve(dataclasses.asdict(as_config(values)) | {'phases': PHASES})
    assert pretrain(resolved, str(directory / 'run')).step == 6
    return resolved, directory / 'run'


def test_metrics_are_those_of_the_objective(run) -> None:
    lines = metric_lines(run[1])
    trained = [{key for key in line if key.endswith('_loss') and '/' not in key} for line in lines if 'loss' in line]
    has_pairs = {'nsp_loss'} if run[0].data.pairing != 'none' else set()
    assert [found - {'nsp_loss'} for found in trained[::2]] == [{'clm_loss'}, {'clm_loss', 'mntp_loss'}, {'mlm_loss'}]
    assert has_pairs <= trained[2] and has_pairs <= trained[4] and 'nsp_loss' not in trained[0]
    evaluated = {line['step']: line for line in lines if any(key.startswith('validation/') for key in line)}
    assert 'validation/clm_loss' in evaluated[2] and 'validation/mlm_loss' not in evaluated[2]
    assert 'validation/mntp_loss' in evaluated[4] and 'validation/mlm_loss' in evaluated[6]
    filled = [json.loads(line)['step'] for line in (run[1] / 'examples.jsonl').read_text().splitlines()]
    assert filled and min(filled) > 4  # only a masked-LM head fills in the examples


@pytest.mark.parametrize(
    'stopped_at', [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_run_resumes_exactly_across_a_change_of_objective(run, tmp_path: Path, stopped_at: int) -> None:
    resolved, finished = run
    copy_stopped_at(stopped_at, finished, tmp_path / 'run')
    assert pretrain(resolved, str(tmp_path / 'run')).resumed_from == stopped_at
    assert_same_run(tmp_path / 'run', finished)


def test_evaluation_measures_what_the_phase_learns(run) -> None:
    causal, mixed, masked = (evaluate(str(run[1]), step, sample=16) for step in (2, 4, 6))
    assert causal['mlm_loss'] is None and causal['mlm_loss_by_length'] == {} and causal['clm_loss'] > 1
    assert 0 < causal['causal_nats_per_character'] < 20 and causal['causal_characters'] > 100
    assert causal['unigram_nats_per_character'] > 1 and 'masked_word_nats_per_character' not in causal
    assert mixed['mntp_loss'] > 1 and 'causal_nats_per_character' in mixed and mixed['mlm_loss'] is None
    assert masked['mlm_loss'] > 1 and 'masked_word_nats_per_character' in masked and 'clm_loss' not in masked
    assert 'CLM loss' in describe(causal) and 'Read causally' in describe(causal)
    assert 'MLM loss' not in describe(causal) and 'CLM loss' not in describe(masked)


def test_model_exports_as_its_family_once_it_fills_masks(run, tmp_path: Path) -> None:
    resolved, finished = run
    family = {'bert': ('BertModel', 'BertForPreTraining'), 'modernbert': ('ModernBertModel', 'ModernBertForMaskedLM')}
    for step, architecture in zip((2, 6), family[resolved.model.family], strict=True):
        assert export(str(finished), str(tmp_path / str(step)), step=step)['architecture'] == architecture


# --- Replaced tokens. ---


@pytest.fixture(scope='module')
def detecting(one_device, tmp_path_factory) -> tuple[config.Config, Path]:
    """Returns a config of a BERT that detects replaced tokens in two phases, and the workdir of its run."""
    directory = tmp_path_factory.mktemp('detecting')
    changes = {'train__checkpoint_every': 1, 'train__keep_checkpoints': 6, 'objective__name': 'rtd'}
    values = prepared(directory, **changes, data__pairing='none')
    phases = ({'steps': 2, 'warmup_steps': 1}, {'steps': 2, 'warmup_steps': 0, 'masking': {'rate': 0.3}})
    resolved = config.resolve(dataclasses.asdict(as_config(values)) | {'phases': phases})
    assert pretrain(resolved, str(directory / 'run')).step == 4
    return resolved, directory / 'run'


def test_run_with_a_generator_logs_both_losses_and_resumes_exactly(detecting, tmp_path: Path) -> None:
    resolved, finished = detecting
    lines = metric_lines(finished)
    names = {'generator_loss', 'generator_accuracy', 'rtd_loss', 'rtd_accuracy', 'replaced_share'}
    assert all(names <= line.keys() for line in lines if 'learning_rate' in line)
    assert any(f'validation/{name}' in line for line in lines for name in names)
    copy_stopped_at(3, finished, tmp_path / 'run')
    assert pretrain(resolved, str(tmp_path / 'run')).resumed_from == 3
    assert_same_run(tmp_path / 'run', finished)


def test_detecting_run_exports_as_its_family_and_as_electra(detecting, tmp_path: Path) -> None:
    _, finished = detecting
    proof = export(str(finished), str(tmp_path / 'bert'))
    assert proof['architecture'] == 'BertModel' and 'masked-LM head' in proof['untrained_heads']
    proof = export_electra(str(finished), str(tmp_path / 'electra'))
    written = json.loads((tmp_path / 'electra' / 'config.json').read_text())
    assert written['architectures'] == [proof['architecture']] == ['ElectraForPreTraining']
    assert written['model_type'] == 'electra' and written['embedding_size'] == written['hidden_size'] == 16
    assert proof['logits'] == ['logits'] and proof['largest_difference'] <= proof['tolerance']
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    assert proof['compared_with'] == 'transformers ElectraForPreTraining'
    ids = torch.tensor(proof['input_ids'])
    encoders = [transformers.AutoModel.from_pretrained(tmp_path / name).eval() for name in ('bert', 'electra')]
    assert type(encoders[1]).__name__ == 'ElectraModel'
    with torch.no_grad():
        as_bert, as_electra = (encoder(ids).last_hidden_state.numpy() for encoder in encoders)
    np.testing.assert_allclose(as_bert, as_electra, atol=1e-5)


def test_a_run_may_start_from_one_that_detected(detecting, tmp_path: Path) -> None:
    resolved, finished = detecting
    values = dataclasses.asdict(resolved) | {'phases': (), 'objective': {}, 'init': str(finished)}
    values['train'] |= {'steps': 1}
    values['optimizer'] |= {'warmup_steps': 0}
    metrics = pretrain(config.resolve(values), str(tmp_path / 'run')).metrics
    assert metrics['mlm_loss'] is not None and metrics['mlm_loss'] > 0


def test_evaluation_measures_both_models(detecting) -> None:
    found = evaluate(str(detecting[1]), sample=16)
    assert found['generator_loss'] > 1 and found['rtd_loss'] > 0 and found['mlm_loss'] is None
    assert 'RTD loss' in describe(found) and 'masked_word_nats_per_character' not in found


def test_only_a_bert_that_detected_becomes_electra(run, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="a bert with objective 'rtd'"):
        export_electra(str(run[1]), str(tmp_path / 'electra'))
