"""`finetune` handles signals and devices that run out of memory."""

import json
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx

from bert_jax.config import Mesh, Train
from bert_jax.errors import BadInput
from bert_jax.finetune.evaluator import TaskEvaluator
from bert_jax.finetune.rows import Rows, TaskStream, make_rows
from bert_jax.runtime.mesh import make_mesh
from tests.support.commands import run
from tests.support.models import MODEL, write_model
from tests.support.processes import ROOT
from tests.support.tasks import write_reviews

pytestmark = pytest.mark.usefixtures('one_device')
FLAGS = [
    f'--config={ROOT}/configs/finetune/glue.py:sst2',
    '--config.init=models/mine',
    '--config.task.sequence_length=16',
    '--config.train.global_batch_size=16',
    '--config.train.epochs=1',
]


@pytest.fixture(scope='module')
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with models/mine and the files of a task; an epoch is two steps."""
    directory = tmp_path_factory.mktemp('command')
    write_model(directory / 'models' / 'mine')
    for index, split in enumerate(('train', 'dev')):
        write_reviews(directory / f'{split}.tsv', 32, seed=index)
    return directory


@pytest.mark.slow
def test_stop_during_final_evaluation_starts_no_other_seed(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    evaluate = TaskEvaluator.evaluate

    def evaluate_and_ask(self: TaskEvaluator, params: nnx.State) -> tuple:
        signal.raise_signal(signal.SIGTERM)
        deadline = time.monotonic() + 30
        while 'SIGTERM' not in capsys.readouterr().err:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return evaluate(self, params)

    monkeypatch.setattr(TaskEvaluator, 'evaluate', evaluate_and_ask)
    assert run(['finetune', *FLAGS, '--workdir=between', '--seeds=2'], directory) == 75
    assert 'Stopped by SIGTERM before seed 1.' in capsys.readouterr().err
    assert json.loads((directory / 'between' / 'finetune.json').read_text()) == {'num_seeds': 2}
    assert (directory / 'between' / 'seed-0' / 'results.json').exists() and not (
        directory / 'between' / 'seed-1'
    ).exists()


def test_out_of_memory_message_suggests_remedies(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def exhausted(*_: object) -> None:
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 1024 bytes')

    monkeypatch.setattr('bert_jax.finetune.command.run_seed', exhausted)
    assert run(['finetune', *FLAGS, '--workdir=exhausted'], directory) == 2
    printed = capsys.readouterr().err
    assert 'memory: the step ran out of memory' in printed and '--config.train.microbatches=2, or ' in printed
    assert '--config.train.microbatches=-1' not in printed  # a fine-tune does not take it


def test_signals_are_handled_before_processes_connect(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handlers = []

    def join(*_: object) -> None:
        handlers.append(signal.getsignal(signal.SIGTERM))
        raise BadInput('--distributed', 'is refused here')

    monkeypatch.setattr('bert_jax.cli.finetune.join_processes', join)
    before = signal.getsignal(signal.SIGTERM)
    assert run(['finetune', *FLAGS, '--workdir=refused'], directory) == 2
    assert handlers[0] is not before and signal.getsignal(signal.SIGTERM) is before


def test_evaluation_checks_for_stop_after_each_batch() -> None:
    mesh = make_mesh(Mesh(), MODEL, Train(global_batch_size=16), jax.devices()[:1])
    rows = make_rows([[2, 5, 3]] * 40, [3] * 40, np.zeros(40, np.int32))
    data, asked = SimpleNamespace(validation={'dev': SimpleNamespace(rows=rows)}, predict=None, num_outputs=1), []

    def streams(rows: Rows, seed: int | None) -> TaskStream:
        return TaskStream(rows, batch_size=16, seed=seed, sequence_length=8, pad_id=0)

    def asked_twice() -> bool:
        asked.append(True)
        return len(asked) == 2

    evaluator = TaskEvaluator(data, lambda _, batch: batch.labels[..., None], streams, mesh, every=1)
    assert evaluator({}, 1, asked_twice) is None and len(asked) == 2
