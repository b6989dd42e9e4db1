"""Checks, before anything else, that the required packages are installed in supported versions.

Reads the project's requirements and the metadata of installed packages; imports only `packaging`.
"""

from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from bert_jax.errors import BadInput

_TREE = Path(__file__).parents[2]


def requirements() -> list[str]:
    """Returns the lines of requirements.txt in a source tree, or those recorded when the package was installed."""
    if (_TREE / 'requirements.txt').is_file():
        return _lines('requirements.txt')
    return [line for line in metadata.requires('bert_jax') or () if 'extra ==' not in line]


def beam_requirements() -> list[str]:
    """Returns the lines of requirements-beam.txt, for the environment without jax in which `prepare --beam` runs."""
    return _lines('requirements-beam.txt') if (_TREE / 'requirements-beam.txt').is_file() else []


def _lines(name: str) -> list[str]:
    lines = [line.partition('#')[0].strip() for line in (_TREE / name).read_text().splitlines()]
    return [line for line in lines if line]


def check(required: Iterable[str], fix: str = 'make install') -> None:
    """Raises BadInput if packages are missing or have an unsupported version, with the command that installs them.

    Args:
      required: requirements as in a requirements file, one per element. Pre-releases are allowed.
    """
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError:
        raise BadInput('installed packages', 'packaging is missing', 'all required packages', fix) from None
    problems, expected = [], []
    for line in required:
        requirement = Requirement(line)
        installed = _version(requirement.name)
        if installed is None or not requirement.specifier.contains(installed, prereleases=True):
            problems.append(f'{requirement.name} {installed}' if installed else f'{requirement.name} is missing')
            expected.append(line.partition(';')[0].strip())
    if problems:
        quoted = ' '.join(f"'{requirement}'" for requirement in expected)
        raise BadInput(
            'installed packages',
            ', '.join(problems),
            ', '.join(expected),
            f'python -m pip install {quoted} (or {fix})',
        )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
