"""Non-finite updates are skipped, and a run that diverges rolls back and skips the batches read since."""

import dataclasses
import json
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax import config
from bert_jax.data.batches import Batch, CorpusStream
from bert_jax.errors import BadInput
from bert_jax.pretrain import pretrain
from bert_jax.train.divergence import DivergenceMonitor, TrainingRecord
from tests.support.configs import PHASES, as_config, prepared
from tests.support.runs import assert_same_run, copy_stopped_at, metric_lines

pytestmark = [pytest.mark.compiles, pytest.mark.usefixtures('one_device')]
SETTINGS = config.Train(max_bad_steps=3, spike_window=8, spike_threshold=5.0)


def _watch(monitor: DivergenceMonitor, losses: list[float], start: int = 1, phase: int = 0, up_to_now: bool = True):
    for step, loss in enumerate(losses, start):
        monitor.observe(step, phase, jnp.float32(loss), jnp.asarray(not math.isfinite(loss)))
        if anomaly := monitor.anomaly(wait=up_to_now):
            return anomaly
    return None


def test_consecutive_non_finite_losses_are_an_anomaly() -> None:
    monitor = DivergenceMonitor(SETTINGS, TrainingRecord())
    assert _watch(monitor, [1.0, math.nan, math.inf, 1.0, math.nan, math.nan]) is None
    anomaly = _watch(monitor, [math.nan], start=7)
    assert (anomaly.first, anomaly.last) == (5, 7) and 'not finite' in anomaly.found
    assert monitor.record.skipped_updates == 5


def test_spike_is_far_above_the_median_for_several_steps() -> None:
    steady = [2.0, 2.1, 1.9, 2.05, 1.95, 2.0, 2.1, 1.9]  # median 2, MAD 0.075: a spike is beyond 2.375
    assert _watch(DivergenceMonitor(SETTINGS, TrainingRecord()), steady + [2.3, 2.37] * 10) is None
    assert _watch(DivergenceMonitor(SETTINGS, TrainingRecord()), steady + [9.0, 9.0, 2.0] * 10) is None
    anomaly = _watch(DivergenceMonitor(SETTINGS, TrainingRecord()), steady + [2.38, 3.0, 9.0, 2.0])
    assert (anomaly.first, anomaly.last) == (9, 11) and '9.000' in anomaly.found and '2.375' in anomaly.found
    # Too few losses for a median.
    assert _watch(DivergenceMonitor(SETTINGS, TrainingRecord()), steady[:7] + [9.0] * 3) is None
    off = dataclasses.replace(SETTINGS, spike_threshold=0.0)
    assert _watch(DivergenceMonitor(off, TrainingRecord()), steady + [9.0] * 10) is None


def test_losses_of_phases_are_not_compared() -> None:
    monitor = DivergenceMonitor(SETTINGS, TrainingRecord())
    _watch(monitor, [2.0, 2.1, 1.9, 2.05, 1.95, 2.0, 2.1, 1.9])
    assert _watch(monitor, [9.0] * 5, start=9, phase=1) is None


def test_losses_are_read_late_and_recorded_when_read() -> None:
    monitor = DivergenceMonitor(SETTINGS, TrainingRecord())
    assert _watch(monitor, [math.nan] * 4, up_to_now=False) is None
    assert monitor.record.skipped_updates == 2
    assert monitor.anomaly(wait=True).last == 3


def test_monitor_resumes_from_its_record() -> None:
    rng = np.random.default_rng(0)
    losses = [float(np.float32(loss)) for loss in 2 + 0.1 * rng.standard_normal(12)] + [4.0, math.nan, 4.0]
    whole = _watch(DivergenceMonitor(SETTINGS, TrainingRecord()), losses)
    for cut in range(len(losses)):
        first = DivergenceMonitor(SETTINGS, TrainingRecord())
        assert _watch(first, losses[:cut]) is None
        record = TrainingRecord.from_json(json.loads(json.dumps(first.record.to_json())), 'here')
        assert record == first.record
        assert _watch(DivergenceMonitor(SETTINGS, record), losses[cut:], start=cut + 1) == whole


@pytest.mark.parametrize(
    'change', [{'rollbacks': -1}, {'losses': ['x']}, {'passed_over': [[0, 'a', 2]]}, {'phase': None}]
)
def test_damaged_record_is_rejected(change: dict) -> None:
    with pytest.raises(BadInput, match='here: is damaged'):
        TrainingRecord.from_json(TrainingRecord().to_json() | change, 'here')


@pytest.fixture(scope='module')
def resolved(tmp_path_factory) -> config.Config:
    changes = {'data__packing': True, 'train__checkpoint_every': 3, 'train__keep_checkpoints': 9, 'phases': PHASES}
    changes |= {'train__max_bad_steps': 2, 'train__max_rollbacks': 2, 'train__examples': ()}
    changes |= {'data__validation_fraction': 0.0}  # bad batches occur only in training
    return as_config(prepared(tmp_path_factory.mktemp('divergence'), **changes))


def _plant(monkeypatch: pytest.MonkeyPatch, bad: dict[int, set[int]]) -> list[tuple[int, int]]:
    """Makes batches non-finite, {sequence length of the phase: steps}; returns a growing list of the batches read."""
    whole, read = CorpusStream.batch, []

    def batch(self: CorpusStream, step: int, rows: slice = slice(None)) -> Batch:
        found = whole(self, step, rows)
        read.append((self.data.sequence_length, step))
        if step in bad.get(self.data.sequence_length, ()):
            found = found._replace(masked_lm_weights=np.full_like(found.masked_lm_weights, np.inf))
        return found

    monkeypatch.setattr(CorpusStream, 'batch', batch)
    return read


def _without(resolved: config.Config, *windows: tuple[int, int, int]) -> config.Config:
    return dataclasses.replace(resolved, train=dataclasses.replace(resolved.train, skip=windows))


def test_one_bad_batch_is_skipped_and_counted(resolved, tmp_path, monkeypatch, capsys) -> None:
    _plant(monkeypatch, {32: {4}})
    assert pretrain(resolved, str(tmp_path)).finished
    lines = metric_lines(tmp_path)
    assert [line['skipped_updates'] for line in lines] == [0] * 4 + [1] * 8
    assert 'loss' not in lines[4] and all('loss' in line for line in lines[:4] + lines[5:])
    assert lines[5]['learning_rate'] == pytest.approx(lines[3]['learning_rate'] * 3 / 4, rel=0.5)


@pytest.fixture(scope='module')
def rolled_back(resolved, one_device, tmp_path_factory) -> Path:
    """Returns the workdir of a run with non-finite batches: 5 of the first phase and 0 of the second."""
    workdir = tmp_path_factory.mktemp('rolled_back') / 'run'
    with pytest.MonkeyPatch.context() as patch:
        _plant(patch, {32: {5}, 64: {0}})
        assert pretrain(resolved, str(workdir)).finished
    return workdir


def test_rolled_back_run_equals_one_that_skips_the_batches(resolved, rolled_back, tmp_path) -> None:
    window = ((0, 3, 6), (1, 0, 1))  # batches read after the checkpoint of step 3
    record = json.loads((rolled_back / 'checkpoints' / '12' / 'record.json').read_text())
    assert record['passed_over'] == [list(skipped) for skipped in window] and record['rollbacks'] == 1
    assert pretrain(_without(resolved, *window), str(tmp_path)).finished
    assert_same_run(rolled_back, tmp_path)


@pytest.mark.parametrize('stopped_at', [3, 9])  # before and after the rollback
def test_stopped_run_with_a_rollback_resumes_exactly(
    resolved, rolled_back, tmp_path, monkeypatch, capsys, stopped_at: int
) -> None:
    copy_stopped_at(stopped_at, rolled_back, tmp_path / 'run')
    _plant(monkeypatch, {32: {5}, 64: {0}})
    assert pretrain(resolved, str(tmp_path / 'run')).resumed_from == stopped_at
    message = 'not finite, 2 steps in a row. Rolled back to step 3; skipping the batches read since.'
    assert (message in capsys.readouterr().err) == (stopped_at == 3)
    assert_same_run(tmp_path / 'run', rolled_back)


def test_rollback_before_the_first_checkpoint_restarts_the_run(resolved, tmp_path, monkeypatch) -> None:
    _plant(monkeypatch, {32: {1, 2}})
    assert pretrain(resolved, str(tmp_path)).finished
    record = json.loads((tmp_path / 'checkpoints' / '12' / 'record.json').read_text())
    assert record['passed_over'] == [[0, 0, 3]]
    assert [line['step'] for line in metric_lines(tmp_path)] == list(range(1, 13))


def test_too_many_rollbacks_end_the_run_with_an_error(resolved, tmp_path, monkeypatch) -> None:
    read = _plant(monkeypatch, {32: set(range(4, 100))})
    with pytest.raises(BadInput, match=f'{tmp_path}, step .* not finite, 2 steps in a row, after 2 rollbacks'):
        pretrain(resolved, str(tmp_path))
    assert max(step for _, step in read) < 30
    assert (tmp_path / 'checkpoints' / '3' / 'manifest.json').exists()
