"""Each phase has its own schedule, and a run resumes bit for bit within a phase and between phases."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bert_jax import config
from bert_jax.data.batches import CorpusStream
from bert_jax.data.streams import open_streams
from bert_jax.errors import BadInput
from bert_jax.evaluation.evaluate import evaluate
from bert_jax.pretrain import pretrain
from bert_jax.train.optimizer import make_schedule
from bert_jax.train.speed import Speedometer
from tests.support.configs import PHASES, as_config, prepared
from tests.support.runs import assert_same_run, metric_lines

pytestmark = [pytest.mark.compiles, pytest.mark.usefixtures('one_device')]


def test_each_phase_has_its_own_learning_rate_schedule() -> None:
    schedule = make_schedule(config.Optimizer(), 12, PHASES)
    alone = [
        make_schedule(config.Optimizer(peak_learning_rate=p.peak_learning_rate, warmup_steps=p.warmup_steps), p.steps)
        for p in PHASES
    ]
    expected = [float(alone[0](step)) for step in range(6)] + [float(alone[1](step)) for step in range(6)]
    np.testing.assert_allclose([float(schedule(step)) for step in range(12)], expected, rtol=1e-6)
    assert expected[2] == pytest.approx(1e-2) and expected[7] == pytest.approx(5e-3)


@pytest.fixture(scope='module')
def run(one_device, tmp_path_factory) -> tuple[config.Config, Path]:
    """Returns a config of two packed phases, and the workdir of its uninterrupted run with all checkpoints."""
    directory = tmp_path_factory.mktemp('phases')
    changes = {'phases': PHASES, 'data__packing': True, 'train__checkpoint_every': 3, 'train__keep_checkpoints': 4}
    resolved = as_config(prepared(directory, **changes, train__examples=()))
    assert pretrain(resolved, str(directory / 'run')).step == 12
    return resolved, directory / 'run'


@pytest.mark.slow
@pytest.mark.parametrize('stopped_at', [6, 9])  # between the phases, inside the second
def test_run_resumes_exactly(run, tmp_path: Path, stopped_at: int) -> None:
    resolved, finished = run
    workdir = tmp_path / 'run'
    shutil.copytree(finished, workdir)
    for step in range(stopped_at + 3, 13, 3):
        shutil.rmtree(workdir / 'checkpoints' / str(step))
    outcome = pretrain(resolved, str(workdir))
    assert outcome.resumed_from == stopped_at and outcome.finished
    assert_same_run(workdir, finished)


def test_reports_and_files_show_both_phases(run) -> None:
    resolved, finished = run
    found = [line for line in metric_lines(finished) if 'loss' in line]
    assert [line['step'] for line in found] == list(range(1, 13))
    schedule = make_schedule(resolved.optimizer, 12, PHASES)
    rates = [float(schedule(step)) for step in range(12)]
    np.testing.assert_allclose([line['learning_rate'] for line in found], rates, rtol=1e-5)
    lines = (finished / 'metrics.jsonl').read_text().splitlines()
    waits = [json.loads(line).get('input_wait_fraction') for line in lines]
    assert all(0 <= wait <= 1 for wait in waits if wait is not None) and any(wait is not None for wait in waits)


class _Asked(Exception):
    pass


@pytest.mark.parametrize('step, length', [(6, 32), (9, 64)])
def test_checkpoint_is_evaluated_with_rows_of_its_phase(run, monkeypatch, step: int, length: int) -> None:
    def asked(_params: object, _step: object, stream: CorpusStream, *_: object) -> None:
        raise _Asked(stream.data.sequence_length)

    monkeypatch.setattr('bert_jax.evaluation.evaluate.evaluate_params', asked)
    with pytest.raises(_Asked, match=str(length)):
        evaluate(str(run[1]), step)


def test_only_waiting_with_idle_devices_counts() -> None:
    class Step:
        def __init__(self, is_ready: bool):
            self.is_ready = lambda: is_ready

    waited = {}
    for is_ready in (True, False):
        speed = Speedometer.__new__(Speedometer)
        speed._waited, speed._newest = 0.0, Step(is_ready)
        assert list(speed.waiting(iter(range(3)))) == [0, 1, 2]
        waited[is_ready] = speed._waited
    assert waited[True] > 0 and waited[False] == 0


@pytest.mark.slow
def test_run_in_buckets_resumes_exactly(run, tmp_path: Path) -> None:
    resolved, _ = run
    values = dataclasses.asdict(resolved) | {'phases': []}
    values['data'] |= {'packing': False, 'sequence_length': 32, 'bucket_lengths': (16,), 'pairing': 'none'}
    values['data'] |= {'short_sequence_probability': 0.7}
    values['train'] |= {'steps': 12, 'global_batch_size': 16}
    values['optimizer'] |= {'warmup_steps': 2}
    resolved = config.resolve(values)
    assert pretrain(resolved, str(tmp_path / 'whole')).step == 12
    shutil.copytree(tmp_path / 'whole', tmp_path / 'stopped')
    for step in (9, 12):
        shutil.rmtree(tmp_path / 'stopped' / 'checkpoints' / str(step))
    assert pretrain(resolved, str(tmp_path / 'stopped')).resumed_from == 6
    assert_same_run(tmp_path / 'stopped', tmp_path / 'whole')
    stream = open_streams(resolved).train[0]
    assert {stream.batch(step).input_ids.shape for step in range(12)} == {(16, 16), (16, 32)}
    with pytest.raises(BadInput, match='data.bucket_lengths'):
        pretrain(
            dataclasses.replace(resolved, data=dataclasses.replace(resolved.data, bucket_lengths=())),
            str(tmp_path / 'whole'),
        )
