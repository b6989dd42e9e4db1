"""A checkpoint is intact, or reported and renamed; nothing damaged is restored."""

import concurrent.futures
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from bert_jax.config import Bert, Config
from bert_jax.errors import BadInput
from bert_jax.train.state import TrainState
from bert_jax.workdir import checkpoint, seal
from bert_jax.workdir.checkpoint import Checkpoints


def _state(step: int) -> TrainState:
    rng = np.random.default_rng(step)
    params = {'kernel': jnp.asarray(rng.standard_normal((64, 32)), jnp.float32), 'bias': jnp.zeros(32)}
    return TrainState(jnp.int32(step), params, {'mean': jax.tree.map(lambda leaf: leaf + 1, params)})


def _restore(checkpoints: Checkpoints, step: int) -> TrainState:
    shapes = jax.eval_shape(lambda: _state(0))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return checkpoints.restore(shapes, jax.tree.map(lambda _: here, shapes), step)


def _save(workdir: Path, *steps: int, **options: int) -> None:
    checkpoints = Checkpoints(str(workdir), **{'keep': 10} | options)
    for step in steps:
        checkpoints.save(_state(step))
    checkpoints.close()


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    _save(tmp_path, 10, 20)
    return tmp_path


def _files(workdir: Path, step: int) -> list[Path]:
    directory = workdir / 'checkpoints' / str(step)
    return sorted(path for path in directory.rglob('*') if path.is_file() and path.stat().st_size)


def test_restored_state_equals_saved_state(workdir: Path) -> None:
    checkpoints = Checkpoints(str(workdir))
    assert checkpoints.steps() == [10, 20] and checkpoints.set_aside_damaged() == 20
    for a, b in zip(jax.tree.leaves(_restore(checkpoints, 20)), jax.tree.leaves(_state(20)), strict=True):
        np.testing.assert_array_equal(a, b)


ODD_NAMES = (
    'exp[1]',
    '[a-z]',
    'a*b',
    'a?b',
    '{x}',
    'a%20b',
    '100%',
    'a#b',
    ' a b ',
    'übung',
    '-v',
    'end.',
    'a\nb',
    'a@5',
    '\'"$HOME~|;',
)


@pytest.mark.parametrize('name', ODD_NAMES)
def test_checkpoint_restores_from_any_directory_name(tmp_path: Path, name: str) -> None:
    if name in ('a*b', 'a?b'):
        _save(tmp_path / 'aXb' / 'run', 10)  # matches the name if it is read as a pattern
    _save(tmp_path / name / 'run', 20)
    checkpoints = Checkpoints(str(tmp_path / name / 'run'))
    assert checkpoints.set_aside_damaged() == 20
    assert jax.tree.all(jax.tree.map(np.array_equal, _restore(checkpoints, 20), _state(20)))


@pytest.mark.parametrize('name', ['a\\b', 'nobody://knows', '\udcff'])
def test_path_that_a_library_would_misread_is_rejected(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match='--workdir'):
        Checkpoints(name if '://' in name else str(tmp_path / name))
    assert not list(tmp_path.iterdir())


def test_save_that_orbax_cannot_restore_does_not_count(workdir: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr('bert_jax.workdir.checkpoint.literal_path', epath.Path)  # Orbax's own handling of paths
    odd = workdir / 'a[1]'
    checkpoints = Checkpoints(str(odd))
    checkpoints.save(_state(30))
    with pytest.raises(BadInput, match='Orbax cannot restore it'):
        checkpoints.close()
    assert Checkpoints(str(odd)).steps() == [] and (odd / 'checkpoints' / 'damaged-30').is_dir()


def test_sealed_checkpoint_that_orbax_cannot_restore_is_renamed(workdir: Path, capsys) -> None:
    directory = epath.Path(workdir / 'checkpoints' / '20')
    (directory / 'manifest.ocdbt').unlink()  # as if the files of the processes had not been merged
    seal.seal(directory, seal.make_manifest(directory, 20))
    assert seal.damage(directory) == ''
    assert Checkpoints(str(workdir)).set_aside_damaged() == 10
    assert 'Orbax cannot restore it' in capsys.readouterr().err


def test_damaged_checkpoint_is_renamed_and_the_newest_intact_one_used(workdir: Path, capsys) -> None:
    largest = max(_files(workdir, 20), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    assert Checkpoints(str(workdir)).set_aside_damaged() == 10
    assert largest.name in capsys.readouterr().err
    assert sorted(path.name for path in (workdir / 'checkpoints').iterdir()) == ['10', 'damaged-20']
    _save(workdir, 20)
    largest.write_bytes(b'x')
    assert Checkpoints(str(workdir)).set_aside_damaged() == 10
    assert (workdir / 'checkpoints' / 'damaged-20-1').is_dir()


def test_directory_without_manifest_is_not_a_checkpoint(workdir: Path) -> None:
    (workdir / 'checkpoints' / '20' / 'manifest.json').unlink()
    checkpoints = Checkpoints(str(workdir))
    assert checkpoints.steps() == [10] and checkpoints.latest_step() == 10
    assert checkpoints.set_aside_damaged() == 10
    (workdir / 'checkpoints' / '10' / 'manifest.json').write_text('{')
    assert checkpoints.set_aside_damaged() is None


def test_old_checkpoints_are_deleted_except_multiples_of_keep_every(tmp_path: Path) -> None:
    _save(tmp_path, 10, 15, 20, 25, 30, 35, keep=2, keep_every=20)
    assert Checkpoints(str(tmp_path)).steps() == [20, 30, 35]


def test_non_finite_state_is_never_saved(workdir: Path) -> None:
    checkpoints, state = Checkpoints(str(workdir)), _state(30)
    state.opt_state['mean']['bias'] = state.opt_state['mean']['bias'].at[3].set(jnp.nan)
    with pytest.raises(BadInput, match='not finite'):
        checkpoints.save(state)
    assert checkpoints.steps() == [10, 20]


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    def fails(*_: object) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('bert_jax.workdir.checkpoint.write_whole', fails)
    return monkeypatch


def _wait_for_the_save(checkpoints: Checkpoints) -> None:
    concurrent.futures.wait([checkpoints._sealing])


def test_failed_save_is_reported_and_the_next_save_retries(workdir: Path, full_disk, capsys) -> None:
    checkpoints = Checkpoints(str(workdir))
    checkpoints.save(_state(30))
    _wait_for_the_save(checkpoints)
    checkpoints.report_failures()
    printed = capsys.readouterr().err
    assert 'Step 30 could not be saved: No space left on device; step 20 is saved' in printed
    assert not (workdir / 'checkpoints' / '30').exists()  # it would take space that the next attempt needs
    full_disk.undo()
    checkpoints.save(_state(40))
    checkpoints.close()
    assert Checkpoints(str(workdir)).set_aside_damaged() == 40


def test_failed_save_with_busy_threads_is_cleaned_up_later(workdir: Path, full_disk, capsys) -> None:
    checkpoints = Checkpoints(str(workdir))
    checkpoints.save(_state(30))
    _wait_for_the_save(checkpoints)

    def fail_to_delete(*_: object, **__: object) -> None:
        raise OSError(39, 'Directory not empty')

    full_disk.setattr('shutil.rmtree', fail_to_delete)
    checkpoints.report_failures()
    assert 'Step 30 could not be saved: No space left on device' in capsys.readouterr().err
    full_disk.undo()
    assert Checkpoints(str(workdir)).set_aside_damaged() == 20
    assert not (workdir / 'checkpoints' / '30').exists()


def test_three_failed_saves_or_a_failed_last_save_end_the_run(workdir: Path, full_disk) -> None:
    checkpoints = Checkpoints(str(workdir))
    with pytest.raises(BadInput, match='3 times in a row: No space left on device; step 20 is saved'):
        for step in (30, 40, 50):
            checkpoints.save(_state(step))
            _wait_for_the_save(checkpoints)
            checkpoints.report_failures()
    last = Checkpoints(str(workdir))
    last.save(_state(60))
    with pytest.raises(BadInput, match='could not be written: No space left'):
        last.close()
    assert Checkpoints(str(workdir)).set_aside_damaged() == 20


def test_old_checkpoints_are_kept_if_the_new_one_reads_back_damaged(workdir: Path, monkeypatch, capsys) -> None:
    def flip_bit(path: Path) -> None:  # as if the disk held something else than the system's cache
        if path.parent.name == 'd':
            content = bytearray(Path(path).read_bytes())
            content[len(content) // 2] ^= 1
            Path(path).write_bytes(content)

    monkeypatch.setattr('bert_jax.workdir.seal._forget_cached', flip_bit)
    checkpoints = Checkpoints(str(workdir), keep=1)
    checkpoints.save(_state(30))
    _wait_for_the_save(checkpoints)
    checkpoints.report_failures()
    assert 'Step 30 could not be saved: when read back' in capsys.readouterr().err
    assert checkpoints.steps() == [10, 20]
    assert (workdir / 'checkpoints' / 'damaged-30').is_dir()


def test_nothing_is_sealed_after_the_lease_is_lost(workdir: Path) -> None:
    def check() -> None:
        raise BadInput('--workdir', 'is no longer held by this run')

    allowed = [True]  # when the save begins
    checkpoints = Checkpoints(str(workdir), keep=1, check=lambda: allowed.pop() if allowed else check())
    checkpoints.save(_state(30))
    with pytest.raises(BadInput, match='no longer held'):
        checkpoints.close()
    assert Checkpoints(str(workdir)).steps() == [10, 20]
    checkpoints = Checkpoints(str(workdir), check=check)
    for change in (
        checkpoints.set_aside_damaged,
        lambda: checkpoints.roll_back(15),
        lambda: checkpoints.save(_state(30)),
    ):
        with pytest.raises(BadInput, match='no longer held'):
            change()
    assert checkpoints.steps() == [10, 20]


def test_error_propagates_after_the_save_in_progress(workdir: Path, monkeypatch, capsys) -> None:
    with pytest.raises(ZeroDivisionError), Checkpoints(str(workdir)) as checkpoints:
        checkpoints.save(_state(30))
        raise ZeroDivisionError
    assert checkpoints.steps() == [30]
    monkeypatch.setattr(Checkpoints, '_finish', lambda *_: 1 / 0)
    with pytest.raises(BadInput, match='the run diverged'), Checkpoints(str(workdir)) as checkpoints:
        checkpoints.save(_state(40))
        raise BadInput('step 41', 'the run diverged')
    assert 'The last save also failed: division by zero' in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError), Checkpoints(str(workdir)) as checkpoints:
        checkpoints.save(_state(40))


def test_rollback_goes_to_the_newest_checkpoint_before_the_anomaly(workdir: Path) -> None:
    _save(workdir, 30)
    checkpoints = Checkpoints(str(workdir))
    assert checkpoints.roll_back(29) == 20 and checkpoints.steps() == [10, 20]
    assert checkpoints.roll_back(5) == 10  # none is older
    assert Checkpoints(str(workdir / 'new')).roll_back(5) is None


@pytest.mark.parametrize('moment', ['damage', 'restore', 'files'])
def test_reader_of_a_deleted_checkpoint_takes_the_newest_unless_named(workdir: Path, monkeypatch, moment: str) -> None:
    shapes = jax.eval_shape(lambda: _state(0))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    program = types.SimpleNamespace(shapes=shapes, shardings=jax.tree.map(lambda _: here, shapes))
    monkeypatch.setattr(checkpoint, 'build_program', lambda *_, **__: program)

    def read(step: int | None) -> TrainState:
        config = Config(model=Bert(num_layers=1, hidden_size=16))
        target, name = (seal, 'files_of') if moment == 'files' else (Checkpoints, moment)
        unpatched = getattr(target, name)

        def rotates(*arguments: object) -> object:
            monkeypatch.setattr(target, name, unpatched)
            newest = max(Checkpoints(str(workdir)).steps())
            _save(workdir, newest + 10)
            files = unpatched(*arguments) if moment == 'files' else None
            seal.delete(epath.Path(workdir / 'checkpoints' / str(newest)))
            return files if moment == 'files' else unpatched(*arguments)

        monkeypatch.setattr(target, name, rotates)
        return checkpoint.restore_on(None, str(workdir), config, 100, step)

    assert int(read(None).step) == 30
    with pytest.raises(BadInput, match='holds no checkpoint of step 30\n.*one of 10, 40'):
        read(30)
