"""Whether the packages that the project needs are there, in versions that it works with; told before anything else.

Reads the project's own requirements and what is installed, and imports none of it.
"""

import re
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


def requirements_of_beam() -> list[str]:
    """The lines of requirements-beam.txt, of the environment without jax in which `prepare --beam` runs."""
    return _lines('requirements-beam.txt') if (_TREE / 'requirements-beam.txt').is_file() else []


def _lines(name: str) -> list[str]:
    lines = [line.partition('#')[0].strip() for line in (_TREE / name).read_text().splitlines()]
    return [line for line in lines if line]


def check(required: Iterable[str], mend: str = 'make install') -> None:
    """Raises BadInput naming every package that is missing or of another version, with the line that installs them."""
    bad, wanted = [], []
    for line in required:
        name, allowed = re.fullmatch(r'([\w.-]+)(?:\[[\w,-]+\])?\s*([^;]*)(?:;.*)?', line).groups()
        found = _version(name)
        if found is None or not _allows(allowed, found):
            bad.append(f'{name} {found}' if found else f'{name} is missing')
            wanted.append(f'{name}{allowed.strip()}')
    if bad:
        quoted = ' '.join(f"'{requirement}'" for requirement in wanted)
        raise BadInput(
            'installed packages', ', '.join(bad), ', '.join(wanted), f'python -m pip install {quoted} (or {mend})'
        )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _allows(allowed: str, found: str) -> bool:
    """Whether a version is in a range such as '>=0.10,<0.13', by its numbers: a pre-release counts as its release."""
    have = _numbers(found)
    compare = {
        '>=': lambda want: have >= want,
        '<=': lambda want: have <= want,
        '>': lambda want: have > want,
        '<': lambda want: have < want,
        '==': lambda want: have == want,
        '!=': lambda want: have != want,
    }
    clauses = [re.fullmatch(r'\s*(>=|<=|==|!=|>|<)\s*([\w.]+)\s*', clause) for clause in allowed.split(',') if clause]
    return all(compare[clause[1]](_numbers(clause[2])) for clause in clauses)


def _numbers(version: str) -> tuple[int, ...]:
    """1.10.0rc1 is (1, 10): trailing zeros say nothing."""
    found = [int(part) for part in re.match(r'\d+(?:\.\d+)*', version)[0].split('.')]
    while found and not found[-1]:
        found.pop()
    return tuple(found)
