"""Held-out losses do not depend on what a run or a phase trains with, and are measured by row length."""

import dataclasses
import json
from pathlib import Path

import pytest

from bert_jax.config import Config, phase_at
from bert_jax.data import evaluation_rows
from bert_jax.data.batches import CorpusStream
from bert_jax.data.streams import open_streams
from bert_jax.evaluation.evaluate import describe, evaluate
from bert_jax.evaluation.held_out import HeldOut, evaluate_params
from bert_jax.pretrain import pretrain
from bert_jax.runtime.mesh import mesh_of_run
from bert_jax.text.corpus import load_corpus
from bert_jax.train.program import build_program
from bert_jax.workdir.checkpoint import restore_on
from bert_jax.workdir.identity import load_config
from tests.support.configs import PHASES, as_config, prepared

pytestmark = [pytest.mark.compiles, pytest.mark.usefixtures('one_device')]

OTHER_TRAINING = [
    {'data.masking': {'rate': 0.4, 'unit': 'word'}, 'data.max_predictions': 30},
    {'data.masking': {'mask_fraction': 1.0, 'random_fraction': 0.0, 'exclude_special': False}},
    {'phases': PHASES, 'data.masking': {'rate': 0.3}},
    {'phases': PHASES[::-1][:1] + PHASES[:1]},
]


@pytest.fixture(scope='module')
def fields(one_device: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Returns the fields of a packed run without pairs, whose corpus exists."""
    return prepared(tmp_path_factory.mktemp('fixed'), data__packing=True, data__pairing='none', train__examples=())


@pytest.fixture(scope='module')
def in_phases(fields: dict[str, object]) -> str:
    """Returns the workdir of a run in two phases, of rows of 32 and of 64 positions, with both last checkpoints."""
    workdir = str(Path(str(fields['data.corpus'])).parent / 'run')
    assert pretrain(as_config(fields | {'phases': PHASES, 'train.checkpoint_every': 6}), workdir).finished
    return workdir


def _held_out(run: Config, step: int) -> dict[str, float]:
    """Returns what the evaluation during training logs for some weights, the same ones for every run."""
    streams = open_streams(run)
    program = build_program(run.model, run.optimizer, run.train, streams.tokenizer.vocab_size, mesh_of_run(run))
    evaluator = HeldOut([program] * 2, streams.validation, lambda at: phase_at(run, at), every=1, max_rows=10_000)
    result = evaluator(program.init_state(0).params, step, lambda: False)
    assert result is not None
    return result.metrics


def test_same_weights_get_identical_metrics_whatever_a_run_trains_with(fields: dict[str, object]) -> None:
    expected = _held_out(as_config(fields), step=12)
    assert expected['validation/mlm_loss'] > 1
    for changes in OTHER_TRAINING:
        assert [_held_out(as_config(fields | changes), step) for step in (1, 12)] == [expected] * 2, changes


def test_run_of_an_earlier_version_is_evaluated_as_it_trains(fields: dict[str, object], in_phases: str) -> None:
    path = Path(in_phases) / 'config.json'
    content = path.read_text()
    older = json.loads(content)
    del older['config']['train']['fixed_evaluation']
    try:
        path.write_text(json.dumps(older))
        run = load_config(in_phases)
    finally:
        path.write_text(content)
    assert load_config(in_phases).train.fixed_evaluation and not run.train.fixed_evaluation
    assert [stream.data for stream in open_streams(run).validation if stream] == [p.data for p in run.in_phases]


def test_evaluation_masks_fifteen_percent_of_the_tokens(fields: dict[str, object]) -> None:
    changes = {'data.masking': {'rate': 0.5}, 'data.packing': False, 'data.sequence_length': 64}
    [stream] = open_streams(as_config(fields | changes)).validation
    assert stream is not None
    batches = [stream.batch(step) for step in range(len(stream))]
    of_rows = [(row > 0).sum() for batch in batches for row in batch.sequence_ids]
    num_masked = [int(weights.sum()) for batch in batches for weights in batch.masked_lm_weights]
    assert num_masked == [max(1, round(0.15 * length)) if length else 0 for length in of_rows]


@pytest.mark.parametrize('step, lengths', [(6, [16, 32]), (12, [16, 48, 64])])
def test_evaluate_measures_the_loss_at_each_trained_length(
    in_phases: str, monkeypatch: pytest.MonkeyPatch, step: int, lengths: list[int]
) -> None:
    monkeypatch.setattr(evaluation_rows, 'LENGTHS', (16, 48, 96))
    run = load_config(in_phases)
    result = evaluate(in_phases, step, sample=0)
    assert [*result['mlm_loss_by_length']] == [str(length) for length in lengths]
    corpus, mesh = load_corpus(run.data.corpus), mesh_of_run(run)
    state = restore_on(mesh, in_phases, run, corpus.tokenizer.vocab_size, step)
    program = build_program(run.model, run.optimizer, run.train, corpus.tokenizer.vocab_size, mesh, phases=run.phases)
    for length in lengths:
        data = dataclasses.replace(run.data, sequence_length=length, max_sequences=0)
        stream = CorpusStream(corpus, data, 'validation', batch_size=8, seed=None)
        expected = evaluate_params(state.params, program, stream)
        assert expected is not None
        assert result['mlm_loss_by_length'][str(length)] == pytest.approx(expected['mlm_loss'], rel=1e-6)
    if step == 6:  # the rows of the shortest phase
        assert result['mlm_loss_by_length']['32'] == result['mlm_loss']
    assert f'at {lengths[-1]} positions' in describe(result)
