"""Any damage to any JSON file is reported without a traceback, and blocks no run."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import jax.numpy as jnp
import pytest

from bert_jax.data.streams import open_streams
from bert_jax.errors import BadInput
from bert_jax.finetune import workdirs
from bert_jax.json_files import DamagedJson
from bert_jax.pretrained.export import check_output
from bert_jax.pretrained.load import load_pretrained
from bert_jax.report import write_report
from bert_jax.runtime.lease import Lease
from bert_jax.text.prepare import prepare
from bert_jax.train.state import TrainState
from bert_jax.workdir import identity
from bert_jax.workdir.checkpoint import Checkpoints
from tests.support.configs import as_config, tiny_run
from tests.support.models import write_model
from tests.support.texts import write_text

DAMAGES = {
    'nested': b'{"files":' * 50_000 + b'0' + b'}' * 50_000,
    'huge numbers': b'{"step": ' + b'9' * 400 + b', "pid": ' + b'9' * 400 + b'}',
    'half a character': rb'{"config": "\ud800"}',
    'array': b'[1, 2]',
    'other keys': b'{"a": null}',
}


def _write(directory: Path) -> None:
    """Writes a corpus with its window index, a workdir with a lease and a checkpoint, and a model with a proof."""
    write_text(directory / 'text.txt')
    config = as_config(tiny_run(directory))
    prepare(config.data, config.tokenizer, progress=False)
    streams, workdir = open_streams(config, progress=False), str(directory / 'run')
    identity.write(workdir, config, streams.tokenizer, identity.fingerprint(config, streams))
    lease = Lease(workdir)
    lease.acquire()
    lease.close()
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(TrainState(jnp.int32(1), {'kernel': jnp.zeros((8, 4))}, {'mean': jnp.zeros(8)}))
    (directory / 'run' / 'metrics.jsonl').write_text('{"step": 1, "loss": 2.0, "mlm_loss": 2.0}\n')
    for name in ('evaluation', 'results', 'finetune'):
        (directory / 'run' / f'{name}.json').write_text('{}\n')
    write_model(directory / 'model')
    (directory / 'model' / 'proof.json').write_text('{"sha256": {}}\n')
    (directory / 'model' / 'model.safetensors.index.json').write_text('{"weight_map": {}}\n')
    (directory / 'model' / 'tokenizer_config.json').write_text('{}\n')


def _lease(workdir: str) -> None:
    lease = Lease(workdir, heartbeat_seconds=0.01, timeout_seconds=0.02)
    lease.acquire()
    lease.close()


def _readers(directory: Path, name: Path) -> Iterator[Callable[[], object]]:
    """Returns the functions that read a file of `directory`."""
    config, workdir = as_config(tiny_run(directory)), str(directory / 'run')
    if name.parts[0] == 'corpus':
        yield lambda: prepare(config.data, config.tokenizer, progress=False)
        yield lambda: open_streams(config, progress=False)
    elif name.parts[0] == 'model':
        yield lambda: load_pretrained(str(directory / 'model'))
        yield lambda: check_output(str(directory / 'model'))
    elif 'checkpoints' in name.parts:
        yield lambda: Checkpoints(workdir).record(1)
        yield lambda: Checkpoints(workdir).set_aside_damaged()
    elif '.lease' in name.parts:
        yield lambda: _lease(workdir)
    else:
        yield lambda: identity.load_config(workdir)
        yield lambda: identity.load_fingerprint(workdir)
        yield lambda: workdirs.seeds_of(workdir)
        yield lambda: workdirs.read_results(workdir)
        yield lambda: workdirs.read_plan(workdir)
        yield lambda: write_report([workdir])


@pytest.fixture(scope='module')
def whole(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp('whole')
    _write(directory)
    return directory


@pytest.mark.parametrize(
    'damage', [pytest.param(name, marks=[pytest.mark.slow] * (name != 'nested')) for name in DAMAGES]
)
def test_damage_to_any_json_file_is_reported(whole: Path, tmp_path: Path, damage: str, capsys) -> None:
    names = sorted(path.relative_to(whole) for path in whole.rglob('*.json')) + [Path('run/checkpoints/1/_METADATA')]
    kinds = {'manifest.json', 'sources.json', 'checksums.json', 'config.json', 'record.json', '1.json', 'proof.json'}
    assert kinds < {name.name for name in names}
    for name in names:
        shutil.copytree(whole, tmp_path / 'copy')
        (tmp_path / 'copy' / name).write_bytes(DAMAGES[damage])
        for read in _readers(tmp_path / 'copy', name):
            try:
                read()
            except (BadInput, DamagedJson) as error:  # the command line reports both
                shown = str(error)
                assert len(shown) < 2000 and '\ud800' not in shown, name
        shutil.rmtree(tmp_path / 'copy')
