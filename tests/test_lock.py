"""The lock files pin all requirements with hashes, for every supported Python, and name no registry."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCKS = ('requirements.lock', 'requirements-build.lock')
PYTHONS = ('3.11.9', '3.12.9', '3.13.9', '3.14.0')
BUILT_FROM_SOURCE = {'promise'}  # a requirement of TFDS without a wheel


def _locked(name: str) -> list[tuple[Requirement, list[str]]]:
    """Returns (requirement, hashes) of each entry."""
    text = re.sub(r'^#.*\n', '', (ROOT / name).read_text(), flags=re.MULTILINE).replace('\\\n', ' ')
    entries = [line.split(' --hash=') for line in text.splitlines()]
    return [(Requirement(pinned.strip()), [value.strip() for value in hashes]) for pinned, *hashes in entries]


def _versions(name: str, lock: list[tuple[Requirement, list[str]]], python: str) -> list[str]:
    """Returns the versions of a package that would be installed on Linux."""
    environment = {'python_full_version': python, 'python_version': python.rpartition('.')[0], 'sys_platform': 'linux'}
    environment |= {'platform_system': 'Linux', 'platform_machine': 'x86_64', 'os_name': 'posix'}
    found = [each for each, _ in lock if canonicalize_name(each.name) == canonicalize_name(name)]
    found = [each for each in found if each.marker is None or each.marker.evaluate(environment)]
    return [str(each.specifier).removeprefix('==') for each in found]


def _asked(path: Path) -> list[Requirement]:
    lines = [line.partition('#')[0].strip() for line in path.read_text().splitlines()]
    return [Requirement(line) for line in lines if line]


@pytest.mark.parametrize('python', PYTHONS)
def test_lock_has_one_allowed_version_per_requirement(python: str) -> None:
    lock = _locked('requirements.lock')
    for required in _asked(ROOT / 'requirements.txt'):
        [version] = _versions(required.name, lock, python)
        assert required.specifier.contains(version), f'{required}: {version}; make lock'
    build = _locked('requirements-build.lock')
    for required in ('setuptools>=77', 'wheel'):
        [version] = _versions(Requirement(required).name, build, python)
        assert Requirement(required).specifier.contains(version)
    assert {*BUILT_FROM_SOURCE} <= {each.name for each, _ in lock}


@pytest.mark.parametrize('name', LOCKS)
def test_every_lock_entry_has_hashes_and_no_url(name: str) -> None:
    entries = _locked(name)
    assert len(entries) > 2
    for pinned, hashes in entries:
        assert re.fullmatch(r'==[^,*]+', str(pinned.specifier)) and pinned.url is None, pinned
        assert hashes and all(re.fullmatch('sha256:[0-9a-f]{64}', value) for value in hashes), pinned
    assert not re.search(r'://|--(extra-)?index|--find-links|--trusted', (ROOT / name).read_text())


def test_build_requirements_equal_their_lock() -> None:
    assert "requires = ['setuptools>=77']" in (ROOT / 'pyproject.toml').read_text()
    assert "printf 'setuptools>=77\\nwheel\\n'" in (ROOT / 'Makefile').read_text()
