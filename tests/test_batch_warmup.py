"""A run whose batch grows resumes bit for bit, and has the same losses with any microbatches and devices."""

import dataclasses
from pathlib import Path

import jax
import pytest

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.pretrain import pretrain
from bert_jax.runtime.mesh import make_mesh
from bert_jax.train import gradients
from bert_jax.train.phase_table import phase_table
from tests.support.configs import as_config, prepared
from tests.support.runs import assert_same_run, copy_stopped_at, final_state, metrics

pytestmark = [pytest.mark.compiles]

WARMUP = {
    'data.packing': True,
    'train.global_batch_size': 16,
    'train.first_batch_size': 4,
    'train.batch_warmup_steps': 6,
    'train.steps': 10,
    'train.checkpoint_every': 1,
    'train.keep_checkpoints': 10,
    'train.examples': (),
}


@pytest.fixture(scope='module')
def finished(one_device: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[config.Config, Path]:
    """Returns the config of a run on one device, and its workdir with the checkpoints of all steps."""
    directory = tmp_path_factory.mktemp('warmup')
    resolved = as_config(prepared(directory) | WARMUP)
    assert pretrain(resolved, str(directory / 'run')).finished
    return resolved, directory / 'run'


@pytest.mark.parametrize(
    'stopped_at', [3, pytest.param(1, marks=pytest.mark.slow), pytest.param(6, marks=pytest.mark.slow)]
)
def test_run_resumes_during_the_warmup_bit_for_bit(finished, tmp_path: Path, stopped_at: int) -> None:
    resolved, workdir = finished
    copy_stopped_at(stopped_at, workdir, tmp_path / 'run')
    assert pretrain(resolved, str(tmp_path / 'run')).resumed_from == stopped_at
    assert_same_run(tmp_path / 'run', workdir)


def _losses(workdir: Path) -> list[float]:
    return [values['loss'] for values in metrics(workdir).values() if 'loss' in values]


def test_microbatches_keep_their_size_and_change_no_loss(finished, tmp_path: Path, monkeypatch) -> None:
    resolved, workdir = finished
    parts = {}

    def counted(function, num_parts: int, batch):
        if type(batch) is tuple:  # (rows, their indices), as the train step has them
            parts[len(batch[0].input_ids)] = num_parts
        return gradients.accumulated(function, num_parts, batch)

    monkeypatch.setattr('bert_jax.train.step.accumulated', counted)
    split = dataclasses.replace(resolved, train=dataclasses.replace(resolved.train, microbatches=4))
    assert pretrain(split, str(tmp_path / 'run')).finished
    assert parts == {4: 1, 8: 2, 12: 3, 16: 4}
    assert _losses(tmp_path / 'run') == pytest.approx(_losses(workdir), rel=1e-5)


@pytest.mark.slow
def test_losses_are_the_same_on_a_mesh(finished, tmp_path: Path, monkeypatch) -> None:
    resolved, workdir = finished
    monkeypatch.setattr(jax, 'devices', lambda *_: jax.local_devices()[:4])
    mesh = dataclasses.replace(resolved.mesh, data=2, fsdp=2)
    assert pretrain(dataclasses.replace(resolved, mesh=mesh), str(tmp_path / 'run')).finished
    assert _losses(tmp_path / 'run') == pytest.approx(_losses(workdir), rel=1e-4)


@pytest.mark.slow
def test_exact_sums_have_the_same_bits_on_two_devices(finished, tmp_path: Path, monkeypatch) -> None:
    resolved, _ = finished
    train = dataclasses.replace(resolved.train, reduction='exact', exact_shards=4)
    for number in (1, 2):
        monkeypatch.setattr(jax, 'devices', lambda *_, number=number: jax.local_devices()[:number])
        assert pretrain(dataclasses.replace(resolved, train=train), str(tmp_path / str(number))).finished
    assert _losses(tmp_path / '1') == _losses(tmp_path / '2')  # unlike those on held-out text, which are not exact
    assert final_state(tmp_path / '1') == final_state(tmp_path / '2')


def test_mesh_that_does_not_divide_the_first_batch_is_rejected(finished) -> None:
    resolved, _ = finished
    with pytest.raises(BadInput, match='train.first_batch_size: is 4; data=8 x fsdp=1 does not divide it'):
        make_mesh(resolved.mesh, resolved.model, resolved.train, jax.local_devices())


def test_table_of_phases_counts_the_smaller_batches(finished) -> None:
    headings, rows = phase_table(finished[0])
    cells = dict(zip(headings, rows[0], strict=True))
    assert cells['rows'] == '4 to 16 x 32' and cells['tokens'] == '3.58K'  # 32 x (2 x (4 + 8 + 12) + 4 x 16)
