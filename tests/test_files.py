"""A directory or a file is published completely or not at all."""

import dataclasses
import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from etils import epath

from bert_jax import files
from bert_jax.files import (
    discard,
    json_digest,
    map_array,
    matching,
    new_directory,
    new_file,
    remove_leftovers,
    write_whole,
)
from bert_jax.json_files import DamagedJson, parse_json, read_json


def _fill(directory: Path, text: str = 'whole') -> None:
    (directory / 'below').mkdir()
    (directory / 'below' / 'a').write_text(text)
    (directory / 'b').write_text(text)


def _contents(directory: Path) -> dict[str, str]:
    paths = sorted(path for path in directory.rglob('*') if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_text() for path in paths}


WHOLE = {'b': 'whole', 'below/a': 'whole'}


@pytest.mark.parametrize('existing', ['keep', 'replace', 'refuse'])
@pytest.mark.parametrize('is_there', [False, True])
def test_directory_appears_complete_under_its_name(tmp_path: Path, existing: str, is_there: bool) -> None:
    target = tmp_path / 'parent' / 'target[1]'
    if is_there:
        target.mkdir(parents=True)  # an empty one is replaced
    with new_directory(target, existing=existing) as directory:
        _fill(directory)
        assert not target.exists() or not any(target.iterdir())
    assert _contents(target) == WHOLE and os.listdir(target.parent) == [target.name]
    assert target.stat().st_mode & 0o777 == (tmp_path / 'parent').stat().st_mode & 0o777


def test_files_are_synced_before_rename_and_parent_after(tmp_path: Path, monkeypatch) -> None:
    synced = []
    monkeypatch.setattr(files, 'sync', lambda path: synced.append((Path(path).name, (tmp_path / 'target').exists())))
    with new_directory(tmp_path / 'target') as directory:
        _fill(directory)
    assert sorted(synced[:-1]) == sorted((name, False) for name in ('a', 'b', 'below', directory.name))
    assert synced[-1] == (tmp_path.name, True)


def test_failure_leaves_the_existing_directory_unchanged(tmp_path: Path) -> None:
    target = tmp_path / 'target'
    for is_there in (False, True):
        with pytest.raises(KeyboardInterrupt), new_directory(target, existing='replace') as directory:
            _fill(directory, 'half')
            raise KeyboardInterrupt
        assert os.listdir(tmp_path) == [target.name] * is_there
        if not is_there:
            target.mkdir()
            _fill(target)
    assert _contents(target) == WHOLE


def test_existing_target_is_kept_replaced_or_refused(tmp_path: Path) -> None:
    target = tmp_path / 'target'

    def publish(existing: str, text: str) -> None:
        with new_directory(target, existing=existing) as directory:
            _fill(directory, text)
            if not target.exists():
                with new_directory(target) as twin:
                    _fill(twin, 'of the twin')

    publish('keep', 'late')
    assert set(_contents(target).values()) == {'of the twin'}
    with pytest.raises(FileExistsError, match='target'):
        publish('refuse', 'late')
    assert set(_contents(target).values()) == {'of the twin'}
    publish('replace', 'new')
    assert set(_contents(target).values()) == {'new'} and os.listdir(tmp_path) == ['target']


def test_file_under_the_target_name_is_an_error(tmp_path: Path) -> None:
    (tmp_path / 'target').write_text('a file')
    with pytest.raises(OSError), new_directory(tmp_path / 'target') as directory:
        _fill(directory)
    assert os.listdir(tmp_path) == ['target'] and (tmp_path / 'target').read_text() == 'a file'


def test_only_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    old = time.time() - 2 * 24 * 3600

    def left_over(name: str, *, is_old: bool) -> str:
        (tmp_path / name).mkdir()
        _fill(tmp_path / name)
        for path in (tmp_path / name, *(tmp_path / name).rglob('*')):
            os.utime(path, (old, old))
        if not is_old:
            (tmp_path / name / 'below' / 'a').write_text('being written')  # the directories keep their old times
            os.utime(tmp_path / name / 'below', (old, old))
        return name

    dead = left_over('.target.0123456789ab.partial', is_old=True)
    live = left_over('.target.ba9876543210.partial', is_old=False)
    others = [left_over(f'.{name}.partial', is_old=True) for name in ('target', 'target.2.0123456789ab', 'other')]
    with new_directory(tmp_path / 'target', temporary_in=tmp_path) as directory:
        assert directory.parent == tmp_path and not (tmp_path / dead).exists()
    assert sorted(os.listdir(tmp_path)) == sorted([live, *others, 'target'])
    with new_directory(tmp_path / 'target', abandoned_s=0):  # as the holder of a lock does
        pass
    assert sorted(os.listdir(tmp_path)) == sorted([*others, 'target'])


def test_interrupted_replacement_restores_the_old_directory(tmp_path: Path, monkeypatch) -> None:
    target = tmp_path / 'target'
    monkeypatch.setattr(files, '_exchange', lambda *_: False)  # as on a file system that cannot

    def replace(text: str) -> None:
        with new_directory(target, existing='replace') as directory:
            _fill(directory, text)

    replace('old')
    rename, killed = Path.rename, False

    def fails(path: Path, new: Path) -> None:
        if path.name.endswith('.partial') or (killed and path.name.endswith('.replaced')):
            raise OSError(errno.EIO, 'the disk is gone')
        rename(path, new)

    monkeypatch.setattr(Path, 'rename', fails)
    with pytest.raises(OSError, match='the disk is gone'):
        replace('new')
    assert set(_contents(target).values()) == {'old'} and os.listdir(tmp_path) == ['target']
    killed = True
    with pytest.raises(OSError, match='the disk is gone'):
        replace('new')
    monkeypatch.setattr(Path, 'rename', rename)
    [aside] = tmp_path.iterdir()
    os.utime(aside, (0, 0))
    with pytest.raises(ZeroDivisionError), new_directory(target, existing='replace'):
        assert set(_contents(target).values()) == {'old'}  # regardless of the age of the leftovers
        raise ZeroDivisionError
    shutil.copytree(target, aside)  # as a process leaves it that is killed after its second rename
    replace('new')
    assert set(_contents(target).values()) == {'new'} and os.listdir(tmp_path) == ['target']


@pytest.mark.parametrize('moment', ['.partial', 'target'])
def test_last_of_two_concurrent_replacements_wins(tmp_path: Path, monkeypatch, moment: str) -> None:
    target, rename = tmp_path / 'target', Path.rename
    monkeypatch.setattr(files, '_exchange', lambda *_: False)

    def replace(text: str) -> None:
        with new_directory(target, existing='replace') as directory:
            _fill(directory, text)

    def comes_second(path: Path, new: Path) -> None:
        if path.name.endswith(moment):  # before the second or the first rename of the other process
            monkeypatch.setattr(Path, 'rename', rename)
            replace('of the twin')
        rename(path, new)

    replace('old')
    monkeypatch.setattr(Path, 'rename', comes_second)
    replace('last')
    assert set(_contents(target).values()) == {'last'} and os.listdir(tmp_path) == ['target']


@pytest.mark.parametrize('can_exchange', [True, False])
@pytest.mark.parametrize('can_link', [True, False])
def test_replacement_takes_over_only_the_kept_names(
    tmp_path: Path, monkeypatch, can_exchange: bool, can_link: bool
) -> None:
    target = tmp_path / 'target'
    if not can_exchange:
        monkeypatch.setattr(files, '_exchange', lambda *_: False)
    if not can_link:

        def fails(*_: object, **__: object) -> None:
            raise OSError(errno.EPERM, 'no hard links here')

        monkeypatch.setattr(os, 'link', fails)
    with new_directory(target) as directory:
        _fill(directory, 'old')
    (target / '.git' / 'objects').mkdir(parents=True)
    (target / '.git' / 'objects' / 'c').write_text('mine')
    (target / 'NOTES.txt').write_text('mine')
    (target / 'NOTES.txt').chmod(0o640)
    (target / 'link').symlink_to('nowhere')
    with new_directory(target, existing='replace', kept=lambda _: ['.git', 'NOTES.txt', 'link']) as directory:
        (directory / 'b').write_text('new')
    assert _contents(target) == {'b': 'new', '.git/objects/c': 'mine', 'NOTES.txt': 'mine'}
    assert os.readlink(target / 'link') == 'nowhere' and (target / 'NOTES.txt').stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ['target']
    for problem in (FileExistsError, ZeroDivisionError):
        with pytest.raises(problem), new_directory(target, existing='replace', kept=lambda _: ['b']) as directory:
            (directory / 'b').write_text('half')
            if problem is ZeroDivisionError:
                raise ZeroDivisionError
    assert _contents(target)['b'] == 'new' and os.listdir(tmp_path) == ['target']


def test_complete_directory_exists_at_every_moment_of_replacement(tmp_path: Path, monkeypatch) -> None:
    target = tmp_path / 'target'
    with new_directory(target) as directory:
        _fill(directory, 'old')
    seen = []

    def watched(function: Callable) -> Callable:
        def call(*arguments: object) -> object:
            seen.append(tuple({*_contents(target).values()}))
            result = function(*arguments)
            seen.append(tuple({*_contents(target).values()}))
            return result

        return call

    for name in ('_exchange', '_follow_umask', '_remove', '_take_over', 'sync'):
        monkeypatch.setattr(files, name, watched(getattr(files, name)))
    monkeypatch.setattr(Path, 'rename', watched(Path.rename))
    with new_directory(target, existing='replace') as directory:
        _fill(directory, 'new')
    assert {*seen} == {('old',), ('new',)}


@pytest.mark.parametrize('umask', [0o022, 0o077, 0o007])
def test_files_of_libraries_get_permissions_of_new_files(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with new_directory(tmp_path / 'target') as directory:
            (directory / 'below').mkdir(mode=0o700)
            for name in ('a', 'below/b'):
                os.close(os.open(directory / name, os.O_CREAT | os.O_WRONLY, 0o600))
            (directory / 'public').touch()
            (directory / 'public').chmod(0o666)
            (directory / 'program').touch()
            (directory / 'program').chmod(0o700)
            (directory / 'link').symlink_to('nowhere')
    finally:
        os.umask(before)
    for path in (tmp_path / 'target', *(tmp_path / 'target').rglob('*')):
        if not path.is_symlink():
            whole = 0o777 if path.is_dir() or path.name == 'program' else 0o666
            assert path.stat().st_mode & 0o777 == whole & ~umask, path


def test_link_is_replaced_and_its_target_stays(tmp_path: Path) -> None:
    (tmp_path / 'private').write_text('mine')  # a workdir from others may link to anything
    (tmp_path / 'report.html').symlink_to(tmp_path / 'private')
    write_whole(tmp_path / 'report.html', 'whole')
    assert (tmp_path / 'private').read_text() == 'mine' and (tmp_path / 'report.html').read_text() == 'whole'


def test_device_is_never_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / 'pipe')
    with pytest.raises(PermissionError, match='not a regular file'):
        write_whole(tmp_path / 'pipe', 'text')
    assert (tmp_path / 'pipe').is_fifo() and os.listdir(tmp_path) == ['pipe']


def test_discarded_directory_is_removed_now_or_later(tmp_path: Path, monkeypatch) -> None:
    target = tmp_path / 'target'
    for is_killed in (False, True):
        target.mkdir()
        _fill(target)
        with monkeypatch.context() as patch:
            if is_killed:
                patch.setattr(files, '_remove', lambda _: None)
            discard(target)
        assert not target.exists() and len(os.listdir(tmp_path)) == is_killed
    remove_leftovers(target)
    assert not os.listdir(tmp_path)


def test_temporary_directory_can_be_elsewhere(tmp_path: Path) -> None:
    with new_directory(tmp_path / 'parent' / 'target', temporary_in=tmp_path / 'work') as directory:
        assert directory.parent == tmp_path / 'work' and not os.listdir(tmp_path / 'parent')
        _fill(directory)
    assert _contents(tmp_path / 'parent' / 'target') == WHOLE and not os.listdir(tmp_path / 'work')


def test_errors_never_show_a_temporary_name(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(files, '_temporary_name', lambda target, kind: f'.{target.name}.partial/no/such')
    with pytest.raises(OSError) as error, new_file(tmp_path / 'file') as temporary:
        temporary.write_text('text')
    assert str(error.value.filename) == str(tmp_path / 'file')
    with pytest.raises(OSError) as error, new_directory(tmp_path / 'directory'):
        pass
    assert str(error.value.filename) == str(tmp_path / 'directory')


def test_file_appears_complete_and_replaces_the_old_one(tmp_path: Path, monkeypatch) -> None:
    synced = []
    monkeypatch.setattr(files, 'sync', lambda path: synced.append(Path(path).read_text()))
    path = tmp_path / 'file'
    for text in ('first', 'zweite ä'):
        write_whole(path, text)
        assert path.read_text('utf-8') == text
    with pytest.raises(ZeroDivisionError), new_file(path) as temporary:
        temporary.write_text('half')
        raise ZeroDivisionError
    assert path.read_text('utf-8') == 'zweite ä' and os.listdir(tmp_path) == ['file'] and len(synced) == 2


def test_old_files_of_killed_writers_are_removed(tmp_path: Path) -> None:
    names = [f'.{name}.0123456789ab.partial' for name in ('file', 'other')] + ['.file.ba9876543210.partial']
    for name in names:
        (tmp_path / name).write_text('half')
    old = time.time() - 2 * 24 * 3600
    for name in names[:2]:
        os.utime(tmp_path / name, (old, old))
    write_whole(tmp_path / 'file', 'whole')
    assert sorted(os.listdir(tmp_path)) == sorted([*names[1:], 'file'])
    with new_file(tmp_path / 'file', temporary_in=tmp_path / 'elsewhere') as temporary:
        assert temporary.parent == tmp_path / 'elsewhere'
        temporary.parent.mkdir()
        temporary.write_text('new')
    assert (tmp_path / 'file').read_text() == 'new' and not os.listdir(tmp_path / 'elsewhere')


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    with new_file(tmp_path / 'file') as slow:
        slow.write_text('slow')
        write_whole(tmp_path / 'file', 'fast')
        assert (tmp_path / 'file').read_text() == 'fast'
    assert (tmp_path / 'file').read_text() == 'slow' and os.listdir(tmp_path) == ['file']


def test_name_of_the_directory_is_not_a_pattern(tmp_path: Path) -> None:
    for directory in (tmp_path / 'a[1]', tmp_path / 'a1'):
        directory.mkdir()
        (directory / f'seed-{directory.name}').touch()
    for kind in (Path, epath.Path):
        assert [path.name for path in matching(kind(tmp_path / 'a[1]'), 'seed-*')] == ['seed-a[1]']
        assert matching(kind(tmp_path / 'none'), '*') == []


def test_digests_equal_those_in_existing_files() -> None:
    # Recorded with earlier versions: existing workdirs and corpora contain these digests.
    assert json_digest({'b': [1, 2.5, None, 'ä'], 'a': True}) == json_digest({'a': True, 'b': [1, 2.5, None, 'ä']})
    assert json_digest({'b': [1, 2.5, None, 'ä'], 'a': True}) == '2f3e808d039da86e'
    masking = {'rate': 0.15, 'mask_fraction': 0.8, 'random_fraction': 0.1, 'unit': 'token'}
    Masking = dataclasses.make_dataclass('Masking', masking)
    assert json_digest(masking) == json_digest(Masking(**masking)) == '6b91299a3343a16e'


DAMAGED_JSON = {
    'cut short': b'{"a": 1',
    'nested': b'{"a":' * 100_000 + b'1' + b'}' * 100_000,
    'nested arrays': b'[' * 100_000 + b']' * 100_000,
    'a huge number': b'{"a": ' + b'1' * 400 + b'}',
    'a negative one': b'{"a": -' + b'1' * 5000 + b'}',
    'not UTF-8': b'{"a": "\xff"}',
    'UTF-16': '{"a": 1}'.encode('utf-16'),
    'half a character': rb'{"a": "\ud83d"}',
    'a list': b'[]',
    'null': b'null',
    'empty': b'',
    'zeros': bytes(100),
}


@pytest.mark.parametrize('content', DAMAGED_JSON.values(), ids=DAMAGED_JSON)
def test_any_defect_of_json_is_one_exception(tmp_path: Path, content: bytes) -> None:
    (path := tmp_path / 'file.json').write_bytes(content)
    for kind in (Path, epath.Path, str):
        with pytest.raises(DamagedJson) as raised:
            read_json(kind(path))
        assert raised.value.path == str(path) and len(str(raised.value)) < 100
    with pytest.raises(DamagedJson):
        parse_json(content)


def test_written_json_is_read_back(tmp_path: Path) -> None:
    value = {'a': [2**63, -(2**63), 2**64 - 1, 1.5, None, True, 'ä😀'], 'b': {'c': {}}}
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        write_whole(tmp_path / 'file.json', text)
        assert read_json(tmp_path / 'file.json') == value
    assert parse_json('[1]', list) == [1]
    unlimited = parse_json('{"model_max_length": 1000000000000000019884624838656}')['model_max_length']
    assert unlimited == 1e30 and isinstance(unlimited, float)
    with pytest.raises(DamagedJson, match='more than the limit of 10'):
        read_json(tmp_path / 'file.json', max_bytes=10)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / 'none.json')


@pytest.mark.parametrize(
    'header',
    [
        "{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000000000,)}",
        "{'descr': '<i8', 'fortran_order': False, 'shape': (9223372036854775808,)}",
        "{'descr': '<i8', 'fortran_order': False, 'shape': (True,)}",
        "{'descr': '<i8', 'fortran_order': False, 'shape': (-1,)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
        "{'descr': [('a', '<i8', (1000000000,))], 'fortran_order': False, 'shape': (1,)}",
        "{'descr': " + '-' * 5000 + '1}',
        '{[1]: 2}',
        '(' * 9000,
    ],
    ids=lambda header: header[:60],
)
def test_any_defect_of_an_array_header_is_one_exception(tmp_path: Path, header: str) -> None:
    content = header.encode() + b'\n'
    path = tmp_path / 'a.npy'
    path.write_bytes(b'\x93NUMPY\x01\x00' + len(content).to_bytes(2, 'little') + content + bytes(64))
    with pytest.raises(ValueError):
        map_array(path)
