"""Everything that the program writes has the permissions that the umask allows."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import pytest

from bert_jax.__main__ import main
from bert_jax.data.record_set import open_records
from bert_jax.data.streams import open_streams
from bert_jax.pretrained.export import check_output, publish
from bert_jax.report import write_report
from bert_jax.runtime.lease import Lease
from bert_jax.text.prepare import prepare
from bert_jax.train.state import TrainState
from bert_jax.workdir import identity
from bert_jax.workdir.checkpoint import Checkpoints
from bert_jax.workdir.history import History
from bert_jax.workdir.metrics import MetricsWriter
from tests.support.configs import as_config, tiny_run
from tests.support.models import write_model
from tests.support.records import make_records, write_records
from tests.support.texts import write_text


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def _write_a_corpus_with_plan_and_copy(directory: Path) -> None:
    write_text(directory / 'text.txt')
    config = as_config(tiny_run(directory, data__local_copy=str(directory / 'local')))
    prepare(config.data, config.tokenizer, progress=False)
    streams = open_streams(config, progress=False)
    identity.write(str(directory / 'run'), config, streams.tokenizer, identity.fingerprint(config, streams))


def _write_an_index_of_records(directory: Path) -> None:
    write_records(directory / 'a.tfrecord', make_records(0, 20)[0])
    open_records(f'tfrecord:{directory}/a.tfrecord', progress=False)


def _write_a_run(workdir: Path) -> None:
    lease = Lease(str(workdir))
    lease.acquire()
    with Checkpoints(str(workdir)) as checkpoints:
        checkpoints.save(TrainState(jnp.int32(1), {'kernel': jnp.zeros((8, 4))}, {'mean': jnp.zeros(8)}))
    metrics = MetricsWriter(str(workdir), 0)
    metrics.write(1, {'loss': 2.0, 'mlm_loss': 2.0})
    metrics.write_examples(1, [])
    metrics.close()
    History(str(workdir)).add('start', 0)
    lease.close()
    write_report([str(workdir)])


def _write_an_export(output: Path) -> None:
    def fill(directory: Path) -> dict[str, object]:
        write_model(directory / 'below')  # safetensors makes files readable only for their owner
        return {'sha256': {'below': hashlib.sha256(b'').hexdigest()}}

    publish(check_output(str(output)), fill)


def test_every_output_has_permissions_of_a_new_file(tmp_path: Path, umask: int, capsys, monkeypatch) -> None:
    directory = tmp_path / 'all'
    directory.mkdir()
    _write_a_corpus_with_plan_and_copy(directory)
    with monkeypatch.context() as patch:
        patch.setenv('XDG_CACHE_HOME', str(directory / 'cache'))
        _write_an_index_of_records(directory)
    _write_a_run(directory / 'run')
    _write_an_export(directory / 'export')
    assert main(['bert_jax', 'launch', f'--output={directory}/launch']) == 0
    found = {path.relative_to(directory).as_posix(): path for path in directory.rglob('*')}
    wrong = {}
    for name, path in found.items():
        may_run = path.is_dir() or path.name in ('slurm.sbatch', 'tpu_pod.sh')
        if path.stat().st_mode & 0o777 != (0o777 if may_run else 0o666) & ~umask:
            wrong[name] = oct(path.stat().st_mode)
    assert not wrong
    kinds = ('manifest.json', 'rows.npy', 'facts.json', 'record.json', 'report.html', 'model.safetensors', 'local.py')
    assert not [kind for kind in kinds if not any(name.endswith(kind) for name in found)]
