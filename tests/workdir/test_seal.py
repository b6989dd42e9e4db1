"""A sealed directory is complete; any changed byte is detected and its file named."""

import hashlib
import json
import random
from pathlib import Path

import pytest
from etils import epath

from bert_jax import files
from bert_jax.workdir import seal


@pytest.fixture
def directory(tmp_path: Path) -> epath.Path:
    """Makes a sealed directory of three files, one of which has several parts."""
    directory = epath.Path(tmp_path / '20')
    (directory / 'd' / 'deep').mkdir(parents=True)
    rng = random.Random(0)
    for name, size in (('record.json', 40), ('d/array', 300), ('d/deep/empty', 0)):
        (directory / name).write_bytes(rng.randbytes(size))
    seal.seal(directory, seal.make_manifest(directory, 20))
    return directory


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seal, '_PART_BYTES', 128)
    monkeypatch.setattr(files, '_BLOCK_BYTES', 50)


def _contents(directory: epath.Path) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in seal.files_of(directory).items()}


def test_manifest_lists_size_and_digests_of_every_part(directory: epath.Path) -> None:
    manifest = json.loads((directory / 'manifest.json').read_text())
    contents = _contents(directory)
    assert manifest['files'] == {
        name: {
            'bytes': len(content),
            'sha256': [
                hashlib.sha256(content[at : at + 128]).hexdigest() for at in range(0, max(len(content), 1), 128)
            ],
        }
        for name, content in contents.items()
    }
    assert (manifest['version'], manifest['step'], manifest['part_bytes']) == (2, 20, 128)
    assert seal.is_sealed(directory) and seal.damage(directory) == ''


def test_every_flipped_bit_truncation_and_deletion_is_detected(directory: epath.Path) -> None:
    rng = random.Random(0)
    for name in [*seal.files_of(directory), 'manifest.json']:
        path, whole = directory / name, (directory / name).read_bytes()
        for _ in range(50 * bool(whole)):
            at, bit = rng.randrange(len(whole)), 1 << rng.randrange(8)
            path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
            damage = seal.damage(directory)
            if name == 'manifest.json':  # a flip in white space changes none of its values
                assert damage or json.loads(path.read_text())['files'] == json.loads(whole)['files']
            else:
                assert damage == f'{name} has a wrong checksum'
        if whole:
            path.write_bytes(whole[: len(whole) // 2])
            assert name in seal.damage(directory)
        path.write_bytes(whole + b'?')
        assert name in seal.damage(directory)
        path.unlink()
        assert name in seal.damage(directory)
        path.write_bytes(whole)
        assert seal.damage(directory) == ''
    (directory / 'more').write_text('x')
    assert seal.damage(directory) == 'more is not in the manifest'


def test_directory_without_manifest_is_reported_as_unfinished(directory: epath.Path) -> None:
    (directory / 'manifest.json').unlink()
    assert not seal.is_sealed(directory)
    assert seal.damage(directory) == 'no manifest.json: the save was not finished'


def test_version_1_manifests_are_still_read(directory: epath.Path) -> None:
    files = {
        name: {'bytes': len(content), 'sha256': hashlib.sha256(content).hexdigest()}
        for name, content in _contents(directory).items()
    }
    (directory / 'manifest.json').write_text(json.dumps({'step': 20, 'files': files}))
    assert seal.damage(directory) == ''
    array = directory / 'd' / 'array'
    array.write_bytes(array.read_bytes()[:-1] + b'?')
    assert seal.damage(directory) == 'd/array has a wrong checksum'


@pytest.mark.parametrize('change', [{'version': 3}, {'part_bytes': 1}, {'files': {}}, {'step': 30}])
def test_damaged_manifest_is_not_reported_as_a_damaged_file(directory: epath.Path, change: dict) -> None:
    path = directory / 'manifest.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert seal.damage(directory) == 'manifest.json is damaged'


def test_only_sealed_directories_named_after_a_step_are_listed(directory: epath.Path) -> None:
    parent = directory.parent
    for name in ('3', 'damaged-5', '100.orbax-checkpoint-tmp'):
        (parent / name).mkdir()
    assert seal.step_directories(parent) == [3, 20] and seal.sealed_steps(parent) == [20]
    assert seal.sealed_steps(parent / 'missing') == []
    seal.delete(directory)
    assert seal.step_directories(parent) == [3]
