"""Any value of any config field gives exit status 2 with a message that names it, or a run that works."""

import contextlib
import io
import json
import os
import re
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from bert_jax import config
from bert_jax.__main__ import main
from bert_jax.console import printable
from bert_jax.data.streams import open_streams
from bert_jax.pretrain import Outcome
from bert_jax.pretrained import initialize
from bert_jax.runtime.mesh import make_mesh, mesh_sizes
from bert_jax.train.program import build_program
from bert_jax.workdir import identity
from tests.soak.harness import Row, prepare, random_numbers, tries
from tests.support.processes import caching, command, environment

VALUES = [
    *('', '0', '1', '-1', '-7', '2', '3', '999999999999999999999', '2147483648', '-2147483649'),
    *('0.5', '-0.5', '1e30', '1e308', '1e-300', 'nan', 'inf', '-inf', 'True', 'False', 'None'),
    *(
        'x',
        '../../x',
        'a' * 300,
        "('a', 1)",
        '()',
        '((0, 1, 2),)',
        "(('text:x', 1.0),)",
        '[1]',
        '{}',
        'é\u202e\x07',
        '@',
    ),
]
_FIELDS = [name for name in config.field_names() if name != 'platform']
_ADDRESS_SPACE_MIB = 6000  # running out of memory must be reported as well
pytestmark = pytest.mark.filterwarnings('ignore')  # ml_collections warns when a config file is read repeatedly


def _prepared(workdir: str, run_config: config.Config) -> Outcome:
    """Does everything that `train` does before it compiles the step."""
    point = initialize.pretraining_start(run_config, workdir)
    streams = open_streams(point.config, progress=False)
    resolved = streams.config
    for phase in resolved.in_phases:
        mesh_sizes(resolved.mesh, resolved.model, phase.train, 1)
    mesh = make_mesh(config.Mesh(), resolved.model, config.Train(), jax.devices()[:1])
    model, optimizer, train, phases = resolved.model, resolved.optimizer, resolved.train, resolved.phases
    build_program(model, optimizer, train, streams.tokenizer.vocab_size, mesh, phases=phases)
    json.dumps(identity.fingerprint(resolved, streams))
    return Outcome(0, True, None, {})


def _in_this_process(arguments: list[str]) -> tuple[int, str]:
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()):
        status = main(['bert_jax', *arguments])
    return status, err.getvalue()


def _changes() -> Iterator[tuple[str, str]]:
    for field in _FIELDS:
        yield from ((field, value) for value in VALUES)


def _is_reported(field: str, value: str, status: int, message: str) -> bool:
    leaf = re.split(r'[.]', field)[-1]
    shown = printable(value)[:40]  # messages show control characters as escapes
    names = leaf in message or field.partition('.')[0] in message or (shown and shown in message)
    return status == 2 and 'Traceback' not in message and bool(names)


def _change_fields(
    flags: list[str], directory: Path, changes: list[tuple[str, str]], row: Row
) -> list[tuple[str, str]]:
    """Tries changes up to compilation; returns those that were accepted."""
    accepted = []
    for field, value in changes:
        arguments = ['train', *flags, f'--config.{field}={value}', f'--workdir={directory}/none']
        try:
            status, message = _in_this_process(arguments)
        except Exception as error:
            raise AssertionError(f'--config.{field}={value!r}: {type(error).__name__}: {error}') from error
        if status == 0:
            accepted.append((field, value))
            row.outcomes.append('accepted')
        else:
            assert _is_reported(field, value, status, message), (field, value, status, message)
            row.outcomes.append('rejected with a message that names the field')
        assert not (directory / 'none').exists()
    return accepted


@pytest.fixture
def without_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepared(run_config: config.Config, workdir: str, *_: object, **__: object) -> Outcome:
        return _prepared(workdir, run_config)

    monkeypatch.setattr('bert_jax.pretrain.pretrain', prepared)


@pytest.fixture(scope='module')
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return prepare(tmp_path_factory.mktemp('fields'), train__steps=2, optimizer__warmup_steps=0)


def test_sampled_config_values_are_accepted_or_rejected(flags, tmp_path, without_training, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # a value may be the name of a directory
    changes = list(_changes())
    chosen = random_numbers('fields').choice(len(changes), 30, replace=False)
    _change_fields(flags, tmp_path, [changes[index] for index in chosen], Row(''))


def _limit_memory() -> None:
    os.setsid()
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE_MIB << 20,) * 2)


@pytest.mark.soak
def test_any_value_of_any_field_works_or_is_rejected(flags, tmp_path, without_training, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # a value may be the name of a directory
    row = Row('arbitrary value of a config field (up to compilation)')
    accepted = _change_fields(flags, tmp_path, list(_changes()), row)
    rng, runs = random_numbers('runs'), Row('run with an accepted arbitrary value')
    for index in rng.permutation(len(accepted))[: tries(60)]:
        field, value = accepted[index]
        done = subprocess.run(
            command('train', *flags, f'--config.{field}={value}', f'--workdir={tmp_path}/run-{index}'),
            env=environment(**caching(tmp_path / 'cache')),
            capture_output=True,
            text=True,
            timeout=900,
            preexec_fn=_limit_memory,
            cwd=tmp_path,
        )
        assert done.returncode in (0, 2) and 'Traceback' not in done.stderr, (field, value, done.stderr[-3000:])
        runs.outcomes.append('worked' if done.returncode == 0 else 'rejected with a message')
    with capsys.disabled():
        print(row, runs, sep='\n')
