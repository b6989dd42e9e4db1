"""A run that mixes sources reports their epochs before it trains, and resumes inside and across its phases."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from bert_jax import config
from bert_jax.pretrain import pretrain
from bert_jax.text.prepare import prepare
from tests.support.configs import as_config, tiny_run
from tests.support.runs import assert_same_run
from tests.support.texts import write_text

pytestmark = [pytest.mark.compiles, pytest.mark.usefixtures('one_device')]

PHASES = [
    {'steps': 3, 'source_temperature': 0.5, 'warmup_steps': 1},
    {'steps': 3, 'source_weights': (1, 0), 'warmup_steps': 0, 'first_batch_size': 8, 'batch_warmup_steps': 2},
]


def test_run_with_mixed_sources_resumes_bit_for_bit(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for seed, name in enumerate(('one', 'two')):
        write_text(tmp_path / f'{name}.txt', seed=seed)
    sources = tuple((f'text:{tmp_path}/{name}.txt', 1.0) for name in ('one', 'two'))
    fields = tiny_run(tmp_path, train__checkpoint_every=1, train__keep_checkpoints=9, train__examples=())
    resolved = as_config(fields | {'data.source': sources, 'data.pairing': 'none'})
    resolved = config.resolve(dataclasses.asdict(resolved) | {'phases': PHASES})
    prepare(resolved.data, resolved.tokenizer, progress=False)
    assert pretrain(resolved, str(tmp_path / 'run')).step == 6
    printed = capsys.readouterr().err
    assert 'Sources of phase 1: ' in printed and f'Sources of phase 2: text:{tmp_path}/one.txt 100.0%' in printed
    assert printed.index('Sources of phase 1') < printed.index('Devices:')
    for stopped_at in (2, 4):
        shutil.copytree(tmp_path / 'run', tmp_path / f'at{stopped_at}')
        for step in range(stopped_at + 1, 7):
            shutil.rmtree(tmp_path / f'at{stopped_at}' / 'checkpoints' / str(step))
        assert pretrain(resolved, str(tmp_path / f'at{stopped_at}')).resumed_from == stopped_at
        assert_same_run(tmp_path / f'at{stopped_at}', tmp_path / 'run')
