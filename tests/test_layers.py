"""Packages import only from layers to their left, so each can be understood without those to its right."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / 'bert_jax'

# Left to right; packages on one line must not import each other.
LAYERS = (
    ('version',),
    ('errors', 'files', 'console'),
    ('activity', 'json_files'),
    ('config',),
    ('runtime', 'text', 'model'),
    ('data',),
    ('train',),
    ('workdir',),
    ('pretrained',),
    ('evaluation',),
    ('loop',),
    ('pretrain', 'finetune', 'plan'),
    ('report', 'advise'),
    ('sweep',),
    ('cli',),
    ('__main__', '__init__'),
)
LAYER_OF = {unit: layer for layer, units in enumerate(LAYERS) for unit in units}
MAX_LOOSE_MODULES = 10


def _units() -> dict[str, list[Path]]:
    """Returns {package or loose module: its files}."""
    packages = {path.name: sorted(path.rglob('*.py')) for path in PACKAGE.iterdir() if (path / '__init__.py').exists()}
    return packages | {path.stem: [path] for path in PACKAGE.glob('*.py')}


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line, unit) of every import of this project, at the top of the file or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f'{node.module}.{alias.name}' for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            root, _, rest = name.partition('.')
            if root == 'bert_jax':
                first = rest.partition('.')[0]
                yield node.lineno, first if first in LAYER_OF else '__init__'


@pytest.mark.parametrize('unit', sorted(_units()))
def test_imports_only_from_layers_to_the_left(unit: str) -> None:
    against = [
        f'{path.relative_to(PACKAGE)}:{line} imports {imported}'
        for path in _units()[unit]
        for line, imported in _imports(path)
        if imported != unit and LAYER_OF[imported] >= LAYER_OF[unit]
    ]
    assert not against


def test_every_unit_has_a_layer() -> None:
    assert _units().keys() == LAYER_OF.keys()


def test_few_modules_are_outside_packages() -> None:
    loose = sorted(path.name for path in PACKAGE.glob('*.py'))
    assert len(loose) <= MAX_LOOSE_MODULES, loose


@pytest.mark.processes
def test_no_ignored_file_is_tracked() -> None:
    """A tracked link named .venv replaces the environment of whoever merges it."""
    root = PACKAGE.parent
    if not (root / '.git').exists():
        pytest.skip('not a git repository')
    command = ['git', 'ls-files', '--cached', '--ignored', '--exclude-standard']
    tracked = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    assert not tracked
