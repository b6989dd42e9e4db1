"""Are the required packages installed, in supported versions? Checked before anything else.

Reads the project's own requirements and the metadata of what is installed; imports none of it but `packaging`.
"""

from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from bert_jax.errors import BadInput

_TREE = Path(__file__).parents[2]


def requirements() -> list[str]:
    """The lines of requirements.txt of a source tree, or those that were recorded when the package was installed."""
    if (_TREE / 'requirements.txt').is_file():
        return _lines('requirements.txt')
    return [line for line in metadata.requires('bert_jax') or () if 'extra ==' not in line]


def beam_requirements() -> list[str]:
    """The lines of requirements-beam.txt, of the environment without jax in which `prepare --beam` runs."""
    return _lines('requirements-beam.txt') if (_TREE / 'requirements-beam.txt').is_file() else []


def _lines(name: str) -> list[str]:
    lines = [line.partition('#')[0].strip() for line in (_TREE / name).read_text().splitlines()]
    return [line for line in lines if line]


def check(required: Iterable[str], fix: str = 'make install') -> None:
    """Raises BadInput naming every package that is missing or of another version, with the command that installs them.

    Args:
      required: requirements as in a requirements file, one an element. Pre-releases count.
    """
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError:
        raise BadInput('installed packages', 'packaging is missing', 'all required packages', fix) from None
    bad, wanted = [], []
    for line in required:
        requirement = Requirement(line)
        found = _version(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            bad.append(f'{requirement.name} {found}' if found else f'{requirement.name} is missing')
            wanted.append(line.partition(';')[0].strip())
    if bad:
        quoted = ' '.join(f"'{requirement}'" for requirement in wanted)
        raise BadInput(
            'installed packages', ', '.join(bad), ', '.join(wanted), f'python -m pip install {quoted} (or {fix})'
        )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
