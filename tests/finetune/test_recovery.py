"""A diverging fine-tune rolls back, skips the batches, and ends as if they had never been in its stream."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from bert_jax.config.finetuning import FinetuneConfig, resolve
from bert_jax.errors import BadInput
from bert_jax.evaluation.probe import accuracies, load_datasets
from bert_jax.finetune import seed as seed_module
from bert_jax.finetune.command import Summary, finetune
from bert_jax.finetune.export import load_finetuned
from bert_jax.finetune.rows import TaskBatch
from bert_jax.pretrained.load import Pretrained
from bert_jax.report.page import write_report
from bert_jax.report.terminal import summarize
from bert_jax.workdir.checkpoint import Checkpoints
from bert_jax.workdir.log import RunLog
from tests.support.commands import run
from tests.support.models import write_model
from tests.support.processes import ROOT
from tests.support.runs import assert_same_run, final_state, metrics
from tests.support.tasks import write_reviews

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('one_device')]
NUM_STEPS = 20
SMALL = {  # checkpoints after steps 4, 8, …; losses are read late between the steps that are logged
    'epochs': 2.0,
    'global_batch_size': 16,
    'checkpoint_every': 4,
    'log_every': 5,
    'evaluate_every': 7,
    'max_bad_steps': 2,
    'max_rollbacks': 2,
    'spike_window': 8,
    'spike_threshold': 50.0,
}
BAD = {9, 10}  # batches, from 0: steps 10 and 11 are bad, which is noticed at step 12
SKIPPED = (8, 11)  # from the checkpoint of step 8 on
Change = Callable[[Callable[..., TaskBatch], int, slice], TaskBatch]


@pytest.fixture(scope='module')
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with models/mine and the files of a task."""
    directory = tmp_path_factory.mktemp('recovery')
    write_model(directory / 'models' / 'mine')
    for index, split in enumerate(('train', 'dev')):
        write_reviews(directory / f'{split}.tsv', [160, 32][index], seed=index)
    return directory


def _config(directory: Path, kind: str = 'classification', **train: object) -> FinetuneConfig:
    task = {'kind': kind, 'directory': str(directory), 'sequence_length': 16}
    optimizer = {'peak_learning_rate': 3e-3}
    given = {'task': task, 'init': str(directory / 'models' / 'mine'), 'optimizer': optimizer, 'train': SMALL | train}
    given |= {'model': {'dtype': 'float32'}}
    return resolve(given | {'probe': {'sets': (('mood', f'tsv:{directory}/dev.tsv'),)}})


def _change_batches(patch: pytest.MonkeyPatch, change: Change) -> None:
    """Trains on `change(batch, step, rows)` instead of `batch(step, rows)`; evaluation is unchanged."""
    make = seed_module.task_streams

    def changed(config: FinetuneConfig, pad_id: int, mesh: Mesh) -> Callable:
        streams = make(config, pad_id, mesh)

        def stream(rows: object, seed: int | None) -> object:
            found = streams(rows, seed)
            if seed is not None:
                whole = found.batch
                found.batch = lambda step, part=slice(None): change(whole, step, part)
            return found

        return stream

    patch.setattr(seed_module, 'task_streams', changed)


def _not_finite(bad: set[int]) -> Change:
    def change(batch: Callable[..., TaskBatch], step: int, rows: slice) -> TaskBatch:
        found = batch(step, rows)
        return found._replace(weights=np.full_like(found.weights, np.inf)) if step in bad else found

    return change


def _spikes(bad: set[int]) -> Change:
    def change(batch: Callable[..., TaskBatch], step: int, rows: slice) -> TaskBatch:
        found = batch(step, rows)
        return found._replace(labels=np.full_like(found.labels, 1000.0)) if step in bad else found

    return change


def _left_out(first: int, stop: int) -> Change:
    return lambda batch, step, rows: batch(step if step < first else step + stop - first, rows)


def _fit(config: FinetuneConfig, workdir: Path, change: Change | None = None) -> Summary:
    with pytest.MonkeyPatch.context() as patch:
        if change:
            _change_batches(patch, change)
        return finetune(config, str(workdir))


def _record(seed: Path, step: int = NUM_STEPS) -> dict:
    return json.loads((seed / 'checkpoints' / str(step) / 'record.json').read_text())


def _events(seed: Path, name: str) -> list[dict]:
    lines = map(json.loads, (seed / 'history.jsonl').read_text().splitlines())
    return [line for line in lines if line['event'] == name]


def _assert_same_end(ours: Path, theirs: Path) -> None:
    assert_same_run(ours, theirs)
    for name in ('predictions-dev.jsonl', 'results.json'):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()


@pytest.fixture(scope='module')
def rolled_back(one_device: None, directory: Path) -> Path:
    """The workdir of a seed, with probes, that met non-finite batches."""
    assert _fit(_config(directory, probe_every=8), directory / 'rolled-back', _not_finite(BAD)).finished
    return directory / 'rolled-back' / 'seed-0'


def test_rollback_ends_as_without_the_skipped_batches(directory: Path, rolled_back: Path) -> None:
    assert _fit(_config(directory, probe_every=8), directory / 'without', _left_out(*SKIPPED)).finished
    _assert_same_end(rolled_back, directory / 'without' / 'seed-0')
    record = _record(rolled_back)
    assert (record['rollbacks'], record['passed_over'], record['skipped_updates']) == (1, [[0, *SKIPPED]], 0)
    [event] = _events(rolled_back, 'back')
    assert (event['step'], event['from']) == (8, 11) and 'not finite, 2 steps in a row' in event['why']


def test_rollback_before_first_checkpoint_returns_to_start(directory: Path, tmp_path: Path) -> None:
    config = _config(directory)
    assert _fit(config, tmp_path / 'ours', _not_finite({1, 2})).finished
    assert _fit(config, tmp_path / 'theirs', _left_out(0, 3)).finished
    assert [event['step'] for event in _events(tmp_path / 'ours' / 'seed-0', 'back')] == [0]
    _assert_same_end(tmp_path / 'ours' / 'seed-0', tmp_path / 'theirs' / 'seed-0')


def test_loss_spike_triggers_a_rollback(directory: Path, tmp_path: Path) -> None:
    config = _config(directory, kind='regression')
    assert _fit(config, tmp_path / 'ours', _spikes(BAD)).finished
    assert _fit(config, tmp_path / 'theirs', _left_out(*SKIPPED)).finished
    [event] = _events(tmp_path / 'ours' / 'seed-0', 'back')
    assert 'is a spike (train.spike_threshold), 2 steps in a row' in event['why']
    _assert_same_end(tmp_path / 'ours' / 'seed-0', tmp_path / 'theirs' / 'seed-0')


@pytest.mark.parametrize(('dies_at', 'resumed_from', 'num_rollbacks'), [(10, 8, 2), (15, 12, 1)])
def test_run_killed_after_rollback_resumes_bit_identical(
    directory: Path, rolled_back: Path, tmp_path: Path, dies_at: int, resumed_from: int, num_rollbacks: int
) -> None:
    """Until the next checkpoint a rollback is not recorded, so it happens again."""

    class Died(Exception):
        pass

    log, roll_back, save, seen = RunLog.log_step, RunLog.roll_back, Checkpoints.save, []

    def note_roll_back(self: RunLog, *what: object) -> None:
        seen.append(what)
        roll_back(self, *what)

    def log_or_die(self: RunLog, step: int, values: dict[str, float]) -> None:
        if seen and step == dies_at:
            raise Died
        log(self, step, values)

    def save_and_wait(self: Checkpoints, *what: object, **how: object) -> None:
        save(self, *what, **how)
        self._wait_for_save()  # the process and its writer are still running

    config = _config(directory, probe_every=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, 'roll_back', note_roll_back)
        patch.setattr(RunLog, 'log_step', log_or_die)
        patch.setattr(Checkpoints, 'save', save_and_wait)
        with pytest.raises(Died):
            _fit(config, tmp_path / 'run', _not_finite(BAD))
    summary = _fit(config, tmp_path / 'run', _not_finite(BAD))
    assert [seed['resumed_from'] for seed in summary.seeds] == [resumed_from]
    ours = tmp_path / 'run' / 'seed-0'
    _assert_same_end(ours, rolled_back)
    assert len(_events(ours, 'back')) == num_rollbacks and _record(ours) == _record(rolled_back)


@pytest.fixture(scope='module')
def given_up(one_device: None, directory: Path) -> list[object]:
    """Returns the flags of a run in the workdir `given-up` whose batches are non-finite from the fifth on."""
    train = SMALL | {'max_rollbacks': 1}
    values = {'task.sequence_length': 16, 'init': 'models/mine'} | {f'train.{name}': train[name] for name in train}
    config = f'--config={ROOT}/configs/finetune/glue.py:sst2'
    flags = ['finetune', config, *(f'--config.{name}={value}' for name, value in values.items())]
    with pytest.MonkeyPatch.context() as patch:
        _change_batches(patch, _not_finite({*range(5, 99)}))
        assert run([*flags, '--workdir=given-up'], directory) == 2
    return flags


def test_rollback_limit_ends_the_run_which_can_resume(
    directory: Path, given_up: list[object], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(directory / 'given-up', tmp_path / 'run')
    seed = tmp_path / 'run' / 'seed-0'
    assert (seed / 'checkpoints' / '4' / 'manifest.json').exists() and not (seed / 'results.json').exists()
    flags = [*given_up, f'--workdir={tmp_path}/run']
    with pytest.MonkeyPatch.context() as patch:  # the same data end the run again
        _change_batches(patch, _not_finite({*range(5, 99)}))
        assert run(flags, directory) == 2
    printed = capsys.readouterr().err
    assert 'step 6: the loss or its gradient is not finite, 2 steps in a row, after 1 rollback\n' in printed
    assert [event['step'] for event in _events(seed, 'back')] == [4, 4] and not (seed / 'results.json').exists()
    assert run(flags, directory) == 0  # with repaired data
    assert f'Resuming {seed} from step 4 of 20.' in capsys.readouterr().err


def test_changed_settings_of_ended_run_need_another_workdir(
    directory: Path, given_up: list[object], capsys: pytest.CaptureFixture
) -> None:
    assert run([*given_up, '--config.optimizer.peak_learning_rate=1e-5', '--workdir=given-up'], directory) == 2
    printed = capsys.readouterr().err
    assert 'optimizer.peak_learning_rate' in printed and 'use another --workdir' in printed
    assert 'allow_change' not in printed  # `finetune` has no such flag


def test_probes_are_logged_when_due_and_reported(directory: Path, rolled_back: Path) -> None:
    found = {step: values for step, values in metrics(rolled_back).items() if 'probe/mood' in values}
    assert [*found] == [8, 16, 20]
    datasets = load_datasets(_config(directory).probe, every=8)
    last = load_finetuned(str(rolled_back))
    encoder = Pretrained(last.model, last.tokenizer, last.config, NUM_STEPS)
    assert accuracies(encoder, datasets).items() <= found[20].items()
    assert '<svg' in (page := write_report([str(rolled_back)]).read_text()) and 'Probe: mood' in page
    printed = ' '.join(summarize([str(rolled_back)]).split())
    assert f'Probe: mood {found[20]["probe/mood"]:.1%} baseline: 50.0% (most frequent label)' in printed


def test_seeds_are_not_ranked_by_their_probes(directory: Path, rolled_back: Path) -> None:
    assert 'ranked by' not in summarize([str(rolled_back), str(rolled_back)]).lower()


def test_exact_reduction_is_bit_identical_on_any_devices(directory: Path, tmp_path: Path, monkeypatch) -> None:
    config = _config(directory, epochs=0.3, reduction='exact', log_every=1)
    assert _fit(config, tmp_path / 'one').finished
    monkeypatch.setattr(jax, 'devices', lambda *_: jax.local_devices()[:4])
    assert _fit(config, tmp_path / 'four').finished
    one, four = (tmp_path / name / 'seed-0' for name in ('one', 'four'))
    assert final_state(one) == final_state(four)
    losses = [[values['loss'] for values in metrics(seed).values()] for seed in (one, four)]
    assert losses[0] == losses[1] and len(losses[0]) == 3
    assert [_events(seed, 'start')[0]['mesh']['data'] for seed in (one, four)] == [1, 4]


def test_probes_with_several_processes_are_rejected_early(directory: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    with pytest.raises(BadInput, match=r'probe_every: is 8, and this run has 2 processes\n.*expected: 0'):
        finetune(_config(directory, probe_every=8), str(tmp_path / 'run'))
    assert not (tmp_path / 'run').exists()
